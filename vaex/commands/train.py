"""What Hydra calls with a composed config: a single run, or one job of a sweep."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vaex.config.schema import Config, check, config_hash, continued, difference, restored
from vaex.errors import Interrupted, UserError
from vaex.runs.folder import CONFIG, LOG, STATUS, RunFolder
from vaex.training.torchrun import rank

log = logging.getLogger("vaex")

LONGEST = 100  # characters of a job's name; a file system takes 255
WAIT = 60.0  # seconds that a job's former process has to save itself and end


def run(composed: DictConfig) -> float | None:
    """Train in a folder of its own, or go on with the run that `resume` names.

    Raises:
        UserError, Interrupted: as vaex.train.train; also for a config that can't be. What is refused before it began
            leaves no folder.
    """
    path = _output_folder()
    try:
        config = check(composed)
    except UserError:
        if not (path / STATUS).exists():
            RunFolder(path).discard()
        raise
    if rank() > 0:
        return _train(config, RunFolder(path, written=False), _choices(), list(HydraConfig.get().overrides.task))
    if config.resume:
        folder = RunFolder.reopen(path)
        saved, recorded = folder.read_config()
        config = continued(config, saved, list(HydraConfig.get().overrides.task))
        return _train(config, folder, recorded["choices"], recorded.get("overrides", []))
    folder = RunFolder.claim(path)
    try:
        return _train(config, folder, _choices(), list(HydraConfig.get().overrides.task))
    except UserError:
        folder.discard()
        raise


def job(composed: DictConfig) -> float | None:
    """One run of a sweep: begin it, go on with it, or begin it anew if it failed; what is complete isn't run again.

    Raises:
        UserError: the job failed, and its status.json says how; or its folder holds a run of other settings.
        KeyboardInterrupt: it was asked to stop, and saved itself.
    """
    folder = RunFolder(_output_folder())
    with folder.alone(WAIT), _quiet(folder.path / LOG):
        there = (folder.path / CONFIG).exists()
        try:
            config = check(composed)
            before = restored(folder.read_config()[0]) if there else config
        except UserError as error:
            if not there:
                folder.set_status("failed", error=str(error))
            raise
        if config_hash(before) != config_hash(config):
            raise UserError(
                f"{folder.path}: holds a run of other settings: {difference(before, config)}; give those it had, or "
                "another sweep=FOLDER"
            )
        status: dict[str, Any] = {}
        with suppress(UserError):
            status = folder.read_status()
        if there and status.get("status") == "completed":
            value = status.get("monitored")
            return None if value is None else float(value)
        if status.get("status") == "failed":
            folder.clear()
        elif there:
            config.resume = str(folder.path)
        try:
            return _train(config, folder, _choices(), list(HydraConfig.get().overrides.task))
        except Interrupted as stop:  # which Hydra would take for one more failed job, and start the next
            raise KeyboardInterrupt(str(stop)) from stop
        except UserError:
            raise
        except Exception as error:  # a fault of vaex's own, or of a user's class
            log.exception(f"{folder.path}: failed")
            raise UserError(f"{folder.path}: {type(error).__name__}: {error}") from error


def _train(config: Config, folder: RunFolder, choices: dict[str, str], overrides: list[str]) -> float | None:
    from vaex.config.targets import (  # torch comes with them, after the config is known to be good
        config_folders,
        trusting,
    )
    from vaex.train import train

    with trusting(config_folders(HydraConfig.get().runtime.config_sources)):
        return train(config, folder, choices, overrides)


def _output_folder() -> Path:
    path = Path(HydraConfig.get().runtime.output_dir)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _choices() -> dict[str, str]:
    """The option chosen in each group."""
    chosen = HydraConfig.get().runtime.choices.items()
    return {str(key): str(value) for key, value in chosen if not str(key).startswith("hydra/") and value is not None}


@contextmanager
def _quiet(log_file: Path) -> Iterator[None]:
    """What a job prints goes into its log, since jobs share a terminal."""
    root = logging.getLogger()
    console = [handler for handler in root.handlers if type(handler) is logging.StreamHandler]
    for handler in console:
        root.removeHandler(handler)
    try:
        with open(log_file, "a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
            yield
    finally:
        for handler in console:
            root.addHandler(handler)


def key_of(override: str) -> str:
    """`likelihood/scale` of `+likelihood/scale=fixed`."""
    return override.partition("=")[0].lstrip("+~")


def job_name(overrides: Iterable[str], constant: Iterable[str] = ()) -> str:
    """The values of one job, as `beta=0.5,scale=fixed`; those whose key is `constant`, the same in all jobs, left out.

    A key is cut to its last part. What a folder's name can't hold is replaced, and a digest tells such names apart.
    """
    left_out = set(constant)
    own = sorted(override.lstrip("+") for override in overrides if key_of(override) not in left_out)
    if not own:
        return "run"
    short = ",".join(re.sub(r"^[^=]*[/.](?=[^=/.]+=)", "", override) for override in own)
    plain = re.sub(r"[^\w.,=+~-]+", "-", short)
    if plain == short and len(plain) <= LONGEST:
        return plain
    return f"{plain[:LONGEST]}~{hashlib.sha256(','.join(own).encode()).hexdigest()[:8]}"


# How conf/train.yaml names a job's folder, in whichever process a launcher runs it.
OmegaConf.register_new_resolver("vaex_job", job_name, replace=True)
