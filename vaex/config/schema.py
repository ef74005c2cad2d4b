"""The composed config: where its files are, its types and ranges. Imports no torch, so that an error comes at once."""

import dataclasses
import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from vaex.errors import UserError

Group = dict[str, Any]


@dataclass
class TrainerConfig:
    log_every: int = MISSING
    validate_every: int = MISSING
    checkpoint_every: int = MISSING
    clip_norm: float | None = MISSING
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


@dataclass
class Config:
    """What `vaex train` runs on. Defaults and units are in conf/train.yaml."""

    dataset: Group = MISSING
    architecture: Group = MISSING
    likelihood: Group = MISSING
    objective: Group = MISSING
    corruption: Group = MISSING
    optimizer: Group = MISSING
    schedule: Group = MISSING
    beta: float = MISSING
    latent_dim: int = MISSING
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
    experiment: str | None = None


GROUPS = ("dataset", "architecture", "likelihood", "objective", "corruption", "optimizer", "schedule")


def config_dir() -> Path:
    """The folder of vaex's YAML files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def check(composed: DictConfig) -> Config:
    """A composed config with every type and range checked.

    Raises:
        UserError: naming the key, the value and the remedy.
    """
    for field in dataclasses.fields(Config):
        if field.default is MISSING and field.name not in composed:
            raise UserError(f"{field.name}: was removed (~{field.name}) but is needed; leave that override out")
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        assert isinstance(plain, dict)
        # None of these can be told from a dict by the schema, and each would be a traceback later.
        for key in GROUPS:
            if key in plain and not isinstance(plain[key], dict):
                raise UserError(
                    f"{key}={plain[key]}: must name an option of this group; `vaex train --help` lists them"
                )
        merged = OmegaConf.merge(OmegaConf.structured(Config), plain)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{missing[0]}: was removed (~{missing[0]}) but is needed; leave that override out")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    assert isinstance(config, Config)
    for key in ("compile", "capture"):  # YAML's true is Python's True
        setattr(config.trainer, key, getattr(config.trainer, key).lower())
    _check_ranges(config)
    return config


def restored(saved: Group) -> Config:
    """A run's config as it was, without checks. Raises UserError for a key or a type that the schema doesn't have."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), saved))
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    assert isinstance(config, Config)
    return config


# What may be given anew when a run goes on; anything else would make it another run.
CONTINUABLE = ("epochs", "steps", "device", "trainer", "figures")


def continued(composed: Config, saved: Group, overrides: list[str]) -> Config:
    """The saved config of a run, with what the command line gives anew.

    Args:
        composed: what Hydra made of the command line.
        saved: the run's config.yaml.
        overrides: the command line, as KEY=VALUE.

    Raises:
        UserError: something was given that can't change within a run.
    """
    config = OmegaConf.merge(OmegaConf.structured(Config), saved)
    given = OmegaConf.structured(composed)
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key == "resume":
            continue
        if key.split(".")[0] not in CONTINUABLE:
            raise UserError(
                f"{key}={value}: can't change when a run goes on; only {', '.join(CONTINUABLE)} can. Leave it out, "
                "or start a new run"
            )
        OmegaConf.update(config, key, OmegaConf.select(given, key))
    config.resume = composed.resume
    result = OmegaConf.to_object(config)
    assert isinstance(result, Config)
    _check_ranges(result)
    return result


def explain(error: OmegaConfBaseException) -> str:
    """One line for an error of OmegaConf's."""
    key = str(error.full_key or error.key)
    message = (error.msg or str(error)).splitlines()[0]
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"{key}: no such key{closest(key, all_keys())}"
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: needs a value; give {key}=…"
    if match := re.fullmatch(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", message):
        return f"{key}={match[1]}: must be of type {TYPE_NAMES.get(match[2], match[2])}"
    if match := re.fullmatch(r"Incompatible value 'None' for field of type '(\w+)'", message):
        return f"{key}=null: must be of type {match[1]}"
    if match := re.match(r"Value '(.*)' is not a valid bool", message):
        return f"{key}={match[1]}: must be of type {TYPE_NAMES['Boolean']}"
    if "is not a ListConfig" in message:
        return f"{key}: must be a list, as in {key}=[a,b]"
    return f"{key}: {message}; `vaex train --cfg job` prints all keys and values"


# What may differ between two calls of a sweep whose runs are the same: where and how fast they are trained.
ELSEWHERE = ("device", "resume", "sweep")
ELSEWHERE_IN_TRAINER = ("threads", "compile", "capture", "on_save_error")


def config_hash(config: Config) -> str:
    """Equal for two configs that train the same: hexadecimal, of all values but those of ELSEWHERE."""
    return hashlib.sha256(json.dumps(_identity(config), sort_keys=True).encode()).hexdigest()


def difference(before: Config, now: Config) -> str:
    """In words, the values for which config_hash differs: `epochs was 2 and is 3`."""
    old, new = _identity(before), _identity(now)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {old.get(key)} and is {new.get(key)}" for key in changed)


def _identity(config: Config) -> dict[str, Any]:
    """The values that make a run what it is, by dotted key."""
    values = dataclasses.asdict(config)
    for key in ELSEWHERE:
        del values[key]
    for key in ELSEWHERE_IN_TRAINER:
        del values["trainer"][key]

    def flat(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        inner = [flat(f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items()]
        return {key: item for part in inner for key, item in part.items()}

    return flat("", values)


TYPE_NAMES = {"Float": "float (a number)", "Integer": "int (a whole number)", "Boolean": "bool (true or false)"}


def all_keys() -> list[str]:
    """The dotted names of everything outside the groups, and the groups."""
    nested = {"trainer": TrainerConfig, "figures": FiguresConfig, "sweep": SweepConfig}
    names = []
    for field in dataclasses.fields(Config):
        names.append(field.name)
        names += (
            [f"{field.name}.{inner.name}" for inner in dataclasses.fields(nested[field.name])]
            if field.name in nested
            else []
        )
    return names


def closest(name: str, names: Iterable[str]) -> str:
    """`; did you mean …?` when something is close, first among its neighbours; else a pointer to the list."""
    parent, _, leaf = name.rpartition(".")
    neighbours = {other.rpartition(".")[2]: other for other in names if other.rpartition(".")[0] == parent}
    if close := difflib.get_close_matches(leaf, neighbours, n=1):
        return f"; did you mean {neighbours[close[0]]}?"
    if close := difflib.get_close_matches(name, list(names), n=1):
        return f"; did you mean {close[0]}?"
    return "; `vaex train --cfg job` prints all keys"


def _check_ranges(c: Config) -> None:
    def need(good: bool, key: str, value: object, what: str) -> None:
        if not good:
            raise UserError(f"{key}={value}: must be {what}")

    need(
        math.isfinite(c.beta) and c.beta >= 0, "beta", c.beta, "a finite number >= 0; 1 gives the evidence lower bound"
    )
    need(1 <= c.latent_dim < 2**31, "latent_dim", c.latent_dim, f"from 1 to {2**31 - 1}")
    need(c.batch_size >= 1, "batch_size", c.batch_size, ">= 1 image")
    need(c.epochs >= 1, "epochs", c.epochs, ">= 1; for less than an epoch give steps=…")
    need(c.steps is None or c.steps >= 1, "steps", c.steps, ">= 1 optimizer step, or null to use epochs")
    need(0 <= c.seed < 2**31, "seed", c.seed, f"from 0 to {2**31 - 1}")
    need(bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", c.device)), "device", c.device, "auto, cpu, cuda or cuda:N")
    need(c.precision in ("float32", "bf16"), "precision", c.precision, "float32 or bf16")
    need(c.trainer.log_every >= 1, "trainer.log_every", c.trainer.log_every, ">= 1 step")
    need(c.trainer.validate_every >= 1, "trainer.validate_every", c.trainer.validate_every, ">= 1 epoch")
    need(c.trainer.checkpoint_every >= 1, "trainer.checkpoint_every", c.trainer.checkpoint_every, ">= 1 epoch")
    clip = c.trainer.clip_norm
    need(clip is None or (math.isfinite(clip) and clip > 0), "trainer.clip_norm", clip, "a finite number > 0, or null")
    need(c.trainer.weights in ("last", "best"), "trainer.weights", c.trainer.weights, "last or best")
    threads, most = c.trainer.threads, max(os.cpu_count() or 1, 256)  # with too many the process crashes
    need(threads is None or 1 <= threads <= most, "trainer.threads", threads, f"from 1 to {most}, or null")
    for key in ("compile", "capture"):
        value = getattr(c.trainer, key)
        need(value in ("auto", "true", "false"), f"trainer.{key}", value, "auto, true or false")
    for key, choices in (("on_nonfinite", ("stop", "skip")), ("on_save_error", ("stop", "continue"))):
        value = getattr(c.trainer, key)
        need(value in choices, f"trainer.{key}", value, " or ".join(choices))
    need(c.figures.every >= 1, "figures.every", c.figures.every, ">= 1 epoch")
    need(c.figures.images >= 1, "figures.images", c.figures.images, ">= 1 picture")
    workers = c.sweep.workers
    counts = workers == "auto" or re.fullmatch(r"[1-9]\d{0,3}", workers) is not None
    need(counts, "sweep.workers", workers, "auto, or how many runs at once")
    beta = c.objective.get("beta", c.beta)
    if beta != c.beta:
        raise UserError(f"objective.beta={beta}: is set by beta; give beta={beta} instead")
    if "beta" not in c.objective and c.beta != 1:
        raise UserError(f"beta={c.beta}: this objective has no beta; leave beta out or take objective=vae")
    for key in GROUPS:
        _check_numbers(key, getattr(c, key))


def _check_numbers(key: str, value: object) -> None:
    """No option has a use for nan or inf, and YAML spells both."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_numbers(f"{key}.{name}", inner)
    elif isinstance(value, list):
        for n, inner in enumerate(value):
            _check_numbers(f"{key}[{n}]", inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value}: must be a finite number")
