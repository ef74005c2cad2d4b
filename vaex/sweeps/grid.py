"""A run for each combination of values, every value checked before a run starts."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from vaex.config.compose import one_line_errors
from vaex.config.overrides import parse_overrides
from vaex.config.schema import check
from vaex.sweeps.folder import announce
from vaex.sweeps.plan import key_of, swept_keys


class GridSweeper(Sweeper):
    """Hydra's sweeper of `hydra/sweeper=grid`. Unlike Hydra's basic one, it does not raise the first failure of a job.

    Args:
        params: key -> its values, as in a command; the command's own values replace them. So a recipe can be a sweep.
    """

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Check every value, and launch a job for each combination.

        Raises:
            UserError: naming the first value that no run can have.
        """
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # only once Hydra has loaded its plugins

        assert self.hydra_context and self.config and self.launcher
        loader = self.hydra_context.config_loader
        keys = {key_of(argument) for argument in arguments}
        arguments = [f"{key}={value}" for key, value in self.params.items() if key not in keys] + arguments
        parsed = parse_overrides(arguments, loader)
        (combinations,) = BasicSweeper.split_arguments(parsed, None)
        jobs = [list(job) for job in dict.fromkeys(map(tuple, combinations))]  # a value given twice is run once
        for job in each_value_once(jobs):
            with one_line_errors(loader, job):
                composed = loader.load_sweep_config(self.config, list(job))
            check(composed)
        swept = swept_keys(parsed)
        announce(self.config.hydra.sweep.dir, f"{len(jobs)} runs: {' × '.join(swept)}" if swept else "1 run")
        return self.launcher.launch(jobs, initial_job_idx=0)


def each_value_once(jobs: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The first job and those that differ from it in one value: every value, without the whole product."""
    return [job for job in jobs if sum(a != b for a, b in zip(job, jobs[0], strict=True)) <= 1]
