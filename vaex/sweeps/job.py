"""A job: one run with a composed config, either the only one of a command or one of a sweep."""

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vaex.config.identity import config_hash, difference
from vaex.config.schema import DATA, Config, check, restore_config
from vaex.errors import Interrupted, UserError
from vaex.runs.folder import CONFIG, LOG, RunFolder
from vaex.sweeps.stopping import stop_with_sweep
from vaex.training.signals import stop_on_signals

if TYPE_CHECKING:
    from vaex.training.loop import Training

log = logging.getLogger("vaex")

WAIT = 60.0  # seconds in which an earlier process of the job may save its run and exit


def sweep_job(composed: DictConfig) -> float | None:
    """Train one job of a sweep: the task function that Hydra's launchers call, in any process.

    A run that is complete is left as it is, an interrupted one is resumed, and a failed one is started again.

    Returns:
        What `vaex.train.train` returns: the number that a search maximizes.

    Raises:
        UserError: the job failed, as its status.json says; or its folder contains a run with different settings.
        Interrupted: a signal asked the job to stop, and it saved a checkpoint. In a process of its own this is a
            UserError, since joblib would kill the other jobs.
    """
    is_child = multiprocessing.parent_process() is not None
    if is_child:
        stop_with_sweep()
    with stop_on_signals() as stop:
        try:
            if stop.number:
                raise Interrupted(stop.number, "not started, because the sweep was asked to stop")
            log_file = folder_of_job().path / LOG
            with output_to(log_file):
                from vaex.training.loop import run_to_end

                return run_to_end(training_of_job(composed))
        except Interrupted as interrupted:
            if is_child:
                raise UserError(str(interrupted)) from interrupted
            raise


def folder_of_job() -> RunFolder:
    """The folder of the job whose config Hydra has composed."""
    return RunFolder(relative(Path(HydraConfig.get().runtime.output_dir)))


def training_of_job(composed: DictConfig) -> "Training":
    """Train a job of a sweep, as `sweep_job` does; a generator as vaex.train.training."""
    hydra = HydraConfig.get()
    folder = folder_of_job()
    with folder.lock(WAIT):
        config_exists = (folder.path / CONFIG).exists()
        try:
            config = check(composed, hydra.runtime.cwd)  # hydra.job.chdir may have left that folder
            earlier = restore_config(folder.read_config()[0]) if config_exists else config
        except UserError as error:
            if not config_exists:
                folder.set_status("failed", error=str(error))
            raise
        if config_hash(earlier) != config_hash(config):
            raise UserError(
                f"{folder.path}: already contains a run with different settings: {difference(earlier, config)}; use "
                "the same settings, or another sweep=FOLDER"
            )
        status: dict[str, Any] = {}
        with suppress(UserError):
            status = folder.read_status()
        if config_exists and status.get("status") == "completed":
            if earlier.dataset != config.dataset:
                _check_same_images(folder, config)
            value = status.get("monitored")
            return None if value is None else float(value)
        if status.get("status") == "failed":
            folder.clear()
        elif config_exists:
            config.resume = str(folder.path)
        try:
            return (yield from training_in(folder, config, hydra))
        except UserError:
            raise
        except Exception as error:  # a bug in vaex or in a class of the user
            log.exception(f"{folder.path}: failed")
            raise UserError(f"{folder.path}: {type(error).__name__}: {error}") from error


def _check_same_images(folder: RunFolder, config: Config) -> None:
    """Raises UserError unless a complete run was trained on the images that the command names now."""
    from vaex.build import load_dataset
    from vaex.data.dataset import changed_splits
    from vaex.evaluation.comparison import recorded_identity

    before = recorded_identity(folder.read_results())
    changes = changed_splits(before, load_dataset(config.dataset, folder.path).identity())
    if changes or "train_sha256" not in before:
        reason = changes or "the run recorded no hash of its images"
        raise UserError(
            f"{folder.path}: is complete, and {DATA} was another path: {reason}; give the images of the run, or "
            "another sweep=FOLDER"
        )


def train_in(
    folder: RunFolder | None, config: Config, hydra: HydraConf, recorded: dict[str, Any] | None = None
) -> float | None:
    """Train, trusting the `_target_` names in the folders that the config came from.

    Args:
        folder: None in every process but rank 0.
        hydra: Hydra's own node of the composed config.
        recorded: for a resumed run, its options and overrides as its config.yaml records them.

    Raises:
        UserError, Interrupted: as vaex.train.train.
    """
    from vaex.training.loop import run_to_end  # imports torch, which waits until the config is checked

    return run_to_end(training_in(folder, config, hydra, recorded))


def training_in(
    folder: RunFolder | None, config: Config, hydra: HydraConf, recorded: dict[str, Any] | None = None
) -> "Training":
    """`train_in` as a generator, as vaex.train.training is."""
    from vaex.config.targets import config_folders, trust
    from vaex.train import training

    if recorded is None:
        recorded = {"choices": _choices(hydra), "overrides": list(hydra.overrides.task)}
    with trust(config_folders(hydra.runtime.config_sources)):
        return (yield from training(config, folder, recorded["choices"], recorded.get("overrides", [])))


def relative(path: Path) -> Path:
    """The path from the working directory, if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _choices(hydra: HydraConf) -> dict[str, str]:
    """The option chosen in each group, apart from Hydra's own groups."""
    choices = hydra.runtime.choices.items()
    return {str(key): str(value) for key, value in choices if not str(key).startswith("hydra/") and value is not None}


@contextmanager
def output_to(log_file: Path) -> Iterator[None]:
    """Write what a job prints into its log, since the jobs of a sweep share a terminal."""
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
