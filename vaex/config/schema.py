"""The schema of a config: its types and ranges. Imports no torch, so that an error appears at once."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vaex.config.errors import explain
from vaex.errors import UserError

Group = dict[str, Any]


@dataclass
class TrainerConfig:
    log_every: int = MISSING
    validate_every: int = MISSING
    checkpoint_every: int = MISSING
    clip_norm: float | None = MISSING
    skip_norm: float | None = None  # runs of older versions have no value for this and the next two
    ema: float | None = None
    patience: int | None = None
    weights: str = MISSING
    threads: int | None = MISSING
    compile: str = MISSING
    capture: str = MISSING
    on_nonfinite: str = MISSING
    on_save_error: str = MISSING


@dataclass
class FiguresConfig:
    kinds: list[str] = MISSING
    every: int = MISSING
    images: int = MISSING
    parameter: bool = MISSING


@dataclass
class SweepConfig:
    workers: str = MISSING
    together: str = MISSING


@dataclass
class Config:
    """The config of a run. Defaults and units are in conf/train.yaml."""

    dataset: Group = MISSING
    architecture: Group = MISSING
    likelihood: Group = MISSING
    objective: Group = MISSING
    corruption: Group = MISSING
    optimizer: Group = MISSING
    schedule: Group = MISSING
    beta: float = MISSING
    latent_dim: int = MISSING
    latent_shape: list[int] | None = None  # runs of older versions have no such value
    batch_size: int = MISSING
    epochs: int = MISSING
    steps: int | None = MISSING
    seed: int = MISSING
    device: str = MISSING
    precision: str = MISSING
    conditional: bool = MISSING
    resume: str | None = MISSING
    trainer: TrainerConfig = MISSING
    figures: FiguresConfig = MISSING
    sweep: SweepConfig = MISSING
    # Values of runs of older versions, whose configs have no such keys.
    start: str = "zero"
    prior: Group = dataclasses.field(default_factory=lambda: {"_target_": "vaex.latents.prior.Standard"})
    posterior: Group = dataclasses.field(default_factory=lambda: {"_target_": "vaex.latents.posterior.Diagonal"})
    experiment: str | None = None


LARGEST_FLOAT = (2 - 2**-23) * 2.0**127  # of float32
GROUPS = (
    "dataset",
    "architecture",
    "likelihood",
    "prior",
    "posterior",
    "objective",
    "corruption",
    "optimizer",
    "schedule",
)


def config_dir() -> Path:
    """The folder of the YAML files of vaex: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def check(composed: DictConfig, working_folder: str | None = None) -> Config:
    """Check every type and range of a composed config, with or without Hydra's own node.

    Args:
        working_folder: where relative paths of images start; None for the current folder.

    Raises:
        UserError: naming the key, the value and the remedy.
    """
    composed = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    for field in dataclasses.fields(Config):
        if field.default is MISSING and field.name not in composed:
            raise UserError(_removed(field.name))
    try:
        plain: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        assert isinstance(plain, dict)
        for key in GROUPS:  # the schema would accept a string here, as from likelihood=null
            if key in plain and not isinstance(plain[key], dict):
                raise UserError(
                    f"{key}={plain[key]}: must name an option of this group; `vaex train --help` lists them"
                )
    except OmegaConfBaseException as error:
        raise UserError(explain(error, all_keys())) from error
    merged = _merged(plain)
    if missing := sorted(OmegaConf.missing_keys(merged)):
        raise UserError(_removed(missing[0]))
    config = _config(merged, working_folder)
    for key in ("compile", "capture"):  # YAML's true is Python's True
        setattr(config.trainer, key, getattr(config.trainer, key).lower())
    config.sweep.together = config.sweep.together.lower()
    _check_ranges(config)
    return config


def _removed(key: str) -> str:
    return f"{key}: was removed (~{key}) but is needed; leave that override out"


def restore_config(saved: Group) -> Config:
    """The config of an earlier run. Raises UserError for a key or a value that the schema does not allow."""
    config = _config(_merged(saved))
    _check_ranges(config)
    return config


def _merged(values: Group) -> DictConfig | ListConfig:
    """The schema with these values. Raises UserError for a key or a type that is not in it."""
    _check_numbers(values)
    try:
        return OmegaConf.merge(OmegaConf.structured(Config), values)
    except OmegaConfBaseException as error:
        raise UserError(explain(error, all_keys())) from error


def _config(merged: DictConfig | ListConfig, working_folder: str | None = None) -> Config:
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # a value is missing
        raise UserError(explain(error, all_keys())) from error
    assert isinstance(config, Config)
    config.dataset = _with_absolute_roots(config.dataset, working_folder or os.getcwd())
    if config.latent_shape and min(config.latent_shape) > 0:
        config.latent_dim = math.prod(config.latent_shape)
    return config


def _with_absolute_roots(group: Group, working_folder: str) -> Group:
    """Make every path under a key `root` absolute, so that the run reads the same files from any folder."""
    absolute: Group = {}
    for key, value in group.items():
        if isinstance(value, dict):
            value = _with_absolute_roots(value, working_folder)
        elif key == "root" and isinstance(value, str) and value and "://" not in value:
            value = str(Path(working_folder, os.path.expanduser(value)))
        absolute[key] = value
    return absolute


def with_data(config: Config, path: str | Path | None) -> Config:
    """The config with the images read from another path.

    Raises:
        UserError: the dataset has no key for a path.
    """
    source = config.dataset.get("source")
    if not isinstance(source, dict) or "root" not in source:
        raise UserError(f"--data={path}: this dataset has no {DATA}, since it reads no files; leave --data out")
    moved = {**config.dataset, "source": {**source, "root": path and str(Path(path).expanduser().absolute())}}
    return dataclasses.replace(config, dataset=moved)


# What the command line may change when a run is resumed; anything else would make it another run.
CHANGEABLE = ("epochs", "steps", "device", "trainer", "figures")
# Where the images are, which --data sets in every command. It may change too: a run knows its images by their hashes.
DATA = "dataset.source.root"


def resume_config(composed: Config, saved: Group, overrides: Sequence[str]) -> Config:
    """The saved config of a run, with the changes that the command line asks for.

    Args:
        composed: the checked config of the command line, without the run's own values.
        saved: the run's config.yaml.
        overrides: of the command line, as KEY=VALUE.

    Raises:
        UserError: an override may not change within a run.
    """
    config = _merged(saved)
    changes = OmegaConf.structured(composed)
    keys = [override.lstrip("+~").partition("=")[::2] for override in overrides]
    for key, value in keys:
        if key != DATA and key.split(".")[0] not in CHANGEABLE:
            raise UserError(
                f"{key}={value}: cannot change when a run is resumed; only {', '.join(CHANGEABLE)} can, and --data if "
                "the images moved. Leave it out, or start a new run"
            )
        if key != DATA:
            OmegaConf.update(config, key, OmegaConf.select(changes, key))
    config.resume = composed.resume
    result = _config(config)
    if any(key == DATA for key, _ in keys):
        result = with_data(result, OmegaConf.select(changes, DATA))
    _check_ranges(result)
    return result


def all_keys() -> list[str]:
    """The groups, and the dotted names of all values outside the groups."""
    nested = {"trainer": TrainerConfig, "figures": FiguresConfig, "sweep": SweepConfig}
    names = [field.name for field in dataclasses.fields(Config)]
    return names + [f"{name}.{field.name}" for name, schema in nested.items() for field in dataclasses.fields(schema)]


def _check_ranges(c: Config) -> None:
    _check_numbers(dataclasses.asdict(c))
    trainer, figures, workers = c.trainer, c.figures, c.sweep.workers
    clip, skip, ema, threads = trainer.clip_norm, trainer.skip_norm, trainer.ema, trainer.threads
    patience = trainer.patience
    most_threads = max(os.cpu_count() or 1, 256)  # far more of them crash the process
    shape = c.latent_shape
    devices = r"auto|cpu|cuda(:\d+)?"
    for valid, key, requirement in (
        (c.beta >= 0, "beta", ">= 0; 1 gives the evidence lower bound"),
        (1 <= c.latent_dim < 2**31, "latent_dim", f"from 1 to {2**31 - 1}"),
        (
            shape is None or (len(shape) == 3 and min(shape) >= 1),
            "latent_shape",
            "[channels,height,width], each >= 1, or null",
        ),
        (c.batch_size >= 1, "batch_size", ">= 1 image"),
        (c.epochs >= 1, "epochs", ">= 1; for less than an epoch give steps=…"),
        (c.steps is None or c.steps >= 1, "steps", ">= 1 optimizer step, or null to use epochs"),
        (0 <= c.seed < 2**31, "seed", f"from 0 to {2**31 - 1}"),
        (re.fullmatch(devices, c.device), "device", "auto, cpu, cuda or cuda:N"),
        (c.start in ("data", "zero"), "start", "data or zero"),
        (c.precision in ("float32", "bf16"), "precision", "float32 or bf16"),
        (trainer.log_every >= 1, "trainer.log_every", ">= 1 step"),
        (trainer.validate_every >= 1, "trainer.validate_every", ">= 1 epoch"),
        (trainer.checkpoint_every >= 1, "trainer.checkpoint_every", ">= 1 epoch"),
        (clip is None or clip > 0, "trainer.clip_norm", "> 0, or null"),
        (skip is None or skip > 1, "trainer.skip_norm", "> 1, a multiple of the usual norm, or null"),
        (ema is None or 0 <= ema < 1, "trainer.ema", "from 0 to less than 1, such as 0.999, or null"),
        (trainer.weights in ("last", "best"), "trainer.weights", "last or best"),
        (patience is None or patience >= 1, "trainer.patience", ">= 1 validation, or null"),
        (threads is None or 1 <= threads <= most_threads, "trainer.threads", f"from 1 to {most_threads}, or null"),
        (trainer.compile in ("auto", "true", "false"), "trainer.compile", "auto, true or false"),
        (trainer.capture in ("auto", "true", "false"), "trainer.capture", "auto, true or false"),
        (trainer.on_nonfinite in ("stop", "skip"), "trainer.on_nonfinite", "stop or skip"),
        (trainer.on_save_error in ("stop", "continue"), "trainer.on_save_error", "stop or continue"),
        (figures.every >= 1, "figures.every", ">= 1 epoch"),
        (figures.images >= 1, "figures.images", ">= 1 image"),
        (re.fullmatch(r"auto|[1-9]\d{0,3}", workers), "sweep.workers", "auto, or a number of processes"),
        (c.sweep.together in ("auto", "true", "false"), "sweep.together", "auto, true or false"),
    ):
        if not valid:
            raise UserError(f"{key}={OmegaConf.select(OmegaConf.structured(c), key)}: must be {requirement}")
    beta = c.objective.get("beta", c.beta)
    if beta != c.beta:
        raise UserError(f"objective.beta={beta}: is set by beta; give beta={beta} instead")
    if "beta" not in c.objective and c.beta != 1:
        raise UserError(f"beta={c.beta}: this objective has no beta; leave beta out or take objective=vae")


def _check_numbers(value: object, key: str = "") -> None:
    """Raises UserError for a number that no option has a use for: nan, or one too large for float32 or int64."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_numbers(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for n, inner in enumerate(value):
            _check_numbers(inner, f"{key}[{n}]")
    elif isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
        raise UserError(f"{key}={value}: must be a finite number, up to {LARGEST_FLOAT:.1e}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        bits = value.bit_length()  # Python does not write an integer of more than 4,300 digits
        text = value if bits < 256 else f"(an integer of {bits} bits)"
        raise UserError(f"{key}={text}: must be less than 2^63 = 9.2e18")
