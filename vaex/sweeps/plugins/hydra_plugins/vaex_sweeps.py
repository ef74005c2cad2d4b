"""The plugins of vaex for Hydra, which accepts only plugins from a package of this name."""

from vaex.sweeps.grid import GridSweeper
from vaex.sweeps.local import LocalLauncher
from vaex.sweeps.plan import PlanningLauncher
from vaex.sweeps.slurm import SlurmLauncher

PLUGINS = (GridSweeper, LocalLauncher, PlanningLauncher, SlurmLauncher)
for plugin in PLUGINS:
    plugin.__module__ = __name__
