"""Where Hydra looks for plugins: it takes them of a package of this name only."""

from vaex.sweeps.grid import GridSweeper
from vaex.sweeps.local import LocalLauncher

PLUGINS = (GridSweeper, LocalLauncher)
for plugin in PLUGINS:
    plugin.__module__ = __name__
