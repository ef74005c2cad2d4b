"""Which jobs a sweep has: the name of each, which is its folder, and the overrides that make it."""

import copy
import hashlib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vaex.errors import UserError
from vaex.sweeps.folder import SweepFolder

LONGEST = 100  # characters of a job's name; a file system takes 255
SUBDIR = "hydra.sweep.subdir="  # the job's folder inside the folder of the sweep

MOST_TOGETHER = 16  # runs in one step: the weights and activations of all of them are on one GPU
# Keys, or first parts of keys, in which runs that are trained together may differ.
VALUES = ("seed", "beta", "start", "epochs", "steps", "optimizer", "schedule")
# Keys in which they may differ only in value: 0 and null take another path through the step.
SWITCHES = (
    "likelihood.scale.lr",
    "likelihood.scale.value",
    "objective.capacity",
    "objective.delay",
    "objective.diagonal",
    "objective.free_bits",
    "objective.mmd",
    "objective.integral",
    "objective.off_diagonal",
    "objective.proportional",
    "objective.rate",
    "objective.tc",
    "objective.warmup",
    "objective.weight",
    "trainer.clip_norm",
    "trainer.ema",
    "trainer.skip_norm",
)
OFF = ("0", "0.0", "null", "None")


@dataclass(frozen=True)
class PlannedJob:
    """A job of a sweep: its number, from 0, and its overrides."""

    number: int
    overrides: Sequence[str]


def plan(job_overrides: Iterable[Sequence[str]], constant: Collection[str]) -> dict[str, list[str]]:
    """Name the jobs of a sweep.

    Args:
        job_overrides: those of each job, KEY=VALUE.
        constant: keys that have the same value in every job, and do not appear in the names.
    Returns:
        Name -> overrides, which then name the folder too, so that every launcher runs the job there.
    """
    jobs = {job_name(overrides, constant): overrides for overrides in job_overrides}
    return {name: [*overrides, f"{SUBDIR}'{name}'"] for name, overrides in jobs.items()}


def planned_name(overrides: Iterable[str]) -> str:
    """The job's name, from the overrides of its plan."""
    return next(override for override in overrides if override.startswith(SUBDIR)).removeprefix(SUBDIR).strip("'")


def job_name(overrides: Iterable[str], constant: Collection[str] = ()) -> str:
    """The values of one job, such as `beta=0.5,scale=fixed`.

    Keys are cut to their last part, and keys in `constant` are left out. Characters that do not belong in the name of a
    folder are replaced; a digest of the overrides then keeps the names of different jobs apart.
    """
    values = sorted(override.lstrip("+") for override in overrides if key_of(override) not in constant)
    if not values:
        return "run"
    short = ",".join(re.sub(r"^[^=]*[/.](?=[^=/.]+=)", "", override) for override in values)
    plain = re.sub(r"[^\w.,=+~-]+", "-", short)
    if plain == short and len(plain) <= LONGEST:
        return plain
    return f"{plain[:LONGEST]}~{hashlib.sha256(','.join(values).encode()).hexdigest()[:8]}"


def plan_groups(jobs: Sequence[PlannedJob], at_least: int) -> list[list[PlannedJob]]:
    """Divide jobs into groups that differ only in values, each of which one process can train in one step.

    Args:
        at_least: smallest number of groups, one for each GPU, if there are enough jobs.
    """
    alike: dict[tuple[str, ...], list[PlannedJob]] = {}
    for job in jobs:
        alike.setdefault(tuple(_fixed_part(override) for override in sorted(job.overrides)), []).append(job)
    groups = []
    for same in alike.values():
        parts = max(math.ceil(len(same) / MOST_TOGETHER), math.ceil(at_least / len(alike)))
        size = math.ceil(len(same) / parts)
        groups += [same[n : n + size] for n in range(0, len(same), size)]
    return groups


def _fixed_part(override: str) -> str:
    """The part of an override in which jobs that are trained together may not differ."""
    key, value = key_of(override), override.partition("=")[2]
    if key == "optimizer.fused":  # it decides whether the step can be captured
        return override
    if override.startswith(SUBDIR) or key.partition(".")[0] in VALUES:
        return key
    if key in SWITCHES:
        return f"{key} {'off' if value in OFF else 'on'}"
    return override


def key_of(override: str) -> str:
    """`likelihood/scale` of `+likelihood/scale=fixed`."""
    return override.partition("=")[0].lstrip("+~")


def constant_values(parsed: Iterable[Override]) -> dict[str, str]:
    """Key -> value of the overrides that have one value for the whole sweep."""
    texts = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    return {key_of(text): text.partition("=")[2] for text in texts}


def swept_keys(parsed: Iterable[Override]) -> list[str]:
    """The keys that have several values."""
    return [override.get_key_element() for override in parsed if override.is_sweep_override()]


class PlanningLauncher(Launcher):
    """The launcher that Hydra's sweepers see: it plans their jobs, then has the configured launcher run them.

    Args:
        launcher: the config of the configured launcher.
        constant: as `plan`.
    """

    def __init__(self, launcher: Mapping[str, Any], constant: Sequence[str]) -> None:
        self.launcher_config, self.constant = launcher, constant

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        config = copy.deepcopy(config)
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.launcher = self.launcher_config
        self.folder = SweepFolder(Path(config.hydra.sweep.dir))
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Store the names of the jobs in sweep.json, then launch them.

        Raises:
            UserError: a folder contains a complete run with different settings, which was left as it is.
        """
        jobs = plan(job_overrides, self.constant)
        self.folder.add_jobs(list(jobs))
        completed = sum(self.folder.job(name).status == "completed" for name in jobs)
        if completed:
            print(f"{'complete':>10}  {completed} of {len(jobs)} runs already", flush=True)
        launched = self.launcher.launch(list(jobs.values()), initial_job_idx=initial_job_idx)
        results = dict(zip(jobs, launched, strict=True))
        for name, result in results.items():
            if result.status == JobStatus.FAILED and self.folder.job(name).status == "completed":
                raise UserError(str(result._return_value))
        return [results[job_name(overrides, self.constant)] for overrides in job_overrides]  # some may be equal


def planning_config(config: DictConfig, constant: Iterable[str]) -> DictConfig:
    """The config of a sweep, with a PlanningLauncher around its launcher."""
    target = "hydra_plugins.vaex_sweeps.PlanningLauncher"
    launcher = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    planning = {"_target_": target, "_recursive_": False, "launcher": launcher, "constant": list(constant)}
    config = copy.deepcopy(config)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.launcher = planning
    return config
