"""A run for each combination of the values given, with every value checked before a run starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from vaex.commands.train import job_name, key_of
from vaex.config.schema import check
from vaex.errors import UserError
from vaex.sweeps.folder import SweepFolder


class GridSweeper(Sweeper):
    """Hydra's sweeper of `hydra/sweeper=grid`.

    Where Hydra's basic one raises the first failure of a job, what became of each is left to the table.

    Args:
        params: key -> its values, as in a command; the command's own come first. So a recipe can be a sweep.
    """

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Check, write down which jobs there are, launch them.

        Raises:
            UserError: naming the first value that no run can have.
        """
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra loads it again before this

        assert self.hydra_context and self.config and self.launcher
        loader = self.hydra_context.config_loader
        given = {key_of(argument) for argument in arguments}
        arguments = [f"{key}={value}" for key, value in self.params.items() if key not in given] + arguments
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
        for job in along_axes(jobs):
            composed = loader.load_sweep_config(self.config, list(job))
            with open_dict(composed):
                composed.pop("hydra")
            check(composed)
        constant = self.config.hydra.job.config.override_dirname.exclude_keys
        folder = SweepFolder(Path(self.config.hydra.sweep.dir))
        by_name = {job_name(job, constant): job for job in jobs}  # a value given twice is run once
        names, jobs = list(by_name), list(by_name.values())
        folder.add_jobs(names)
        keys = [override.get_key_element() for override in parsed if override.is_sweep_override()]
        done = sum(folder.job(name).status == "completed" for name in names)
        what = f"{len(jobs)} runs: {' × '.join(keys)}" if keys else "1 run"
        announce(folder, what + (f"; {done} complete already" if done else ""))
        returned = self.launcher.launch(jobs, initial_job_idx=0)
        for name, result in zip(names, returned, strict=True):
            if result.status == JobStatus.FAILED and folder.job(name).status == "completed":
                raise UserError(str(result._return_value))  # it isn't the job that it was, and its folder is as it was
        return returned


def announce(folder: SweepFolder, what: str) -> None:
    print(f"{'sweep':>10}  {what}\n{'in':>10}  {folder.path}", flush=True)


def along_axes(jobs: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The first job, and those that differ from it in one value: each value once, not the whole product."""
    return [job for job in jobs if sum(a != b for a, b in zip(job, jobs[0], strict=True)) <= 1]


def swept_keys(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Of a command's overrides, the keys that have several values, and the others with their value.

    Raises hydra.errors.OverrideParseException.
    """
    parsed = OverridesParser.create().parse_overrides(list(arguments))
    swept = [override.get_key_element() for override in parsed if override.is_sweep_override()]
    constant = {
        key_of(text): text.partition("=")[2]
        for text, override in zip(arguments, parsed, strict=True)
        if not override.is_sweep_override()
    }
    return swept, constant
