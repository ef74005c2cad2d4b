"""`vaex train`: build the experiment of a config, train and test it, and write the results into the run folder."""

import logging
import math
import os
import platform
import re
import signal
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from vaex.build import build
from vaex.config.schema import Config
from vaex.data.dataset import Dataset, changed_splits
from vaex.errors import Interrupted, UserError
from vaex.evaluation.bound import as_results, freeze_scales
from vaex.evaluation.comparison import PREFIX
from vaex.evaluation.floor import floor_cost
from vaex.evaluation.metrics import describe
from vaex.experiment import Experiment
from vaex.runs.folder import RunFolder
from vaex.runs.provenance import provenance, versions
from vaex.runs.writing import WriteFailed
from vaex.training import torchrun
from vaex.training.capture import resolve_auto
from vaex.training.checkpoint import State, random_state, restore_random_state
from vaex.training.distributed import PeerLost, Processes, join_processes
from vaex.training.loop import Training, evaluate_split, run_to_end
from vaex.training.loop import train as train_loop
from vaex.training.memory import keep_freed_memory, ran_out
from vaex.training.messages import end_message, start_message, summary
from vaex.training.session import Session, Settings
from vaex.training.signals import StopFlag, stop_on_signals
from vaex.training.writer import NullWriter, RunWriter, Writer

log = logging.getLogger("vaex")

# The metrics in TensorBoard's hparams table; each is logged as a scalar at the end.
HPARAMS_METRICS = ["test/elbo", "test/rate", "test/distortion", "test/mse", "test/active_units"]


def train(
    config: Config, folder: RunFolder | None, choices: dict[str, str], overrides: Sequence[str] = ()
) -> float | None:
    """Train to the end, or resume the run in the folder if `config.resume` is set.

    Args:
        config: a config that has been checked.
        folder: the run folder, claimed, or reopened to resume; None in every process but rank 0.
        choices: the option chosen in each config group.
        overrides: KEY=VALUE as the user gave them, for the hparams table.

    Returns:
        The ELBO (for an autoencoder, minus the distortion) of the exported weights on the validation split, in nats,
        which sweepers maximize; None without such a split. It never depends on the test split.

    Raises:
        UserError: the config can't be trained, or training diverged.
        Interrupted: a signal asked the run to stop; a checkpoint was saved.
    """
    return run_to_end(training(config, folder, choices, overrides))


def training(
    config: Config, folder: RunFolder | None, choices: dict[str, str], overrides: Sequence[str] = ()
) -> Training:
    """`train` as a generator that yields before each step, which whoever iterates takes (see vaex.training.loop)."""
    logging.raiseExceptions = False  # writing vaex.log fails too if the disk is full, which other files report
    stop = config.trainer.on_save_error == "stop"
    writer = RunWriter(folder, stop=stop, config=config) if folder else NullWriter()

    def end_unstarted(number: int) -> None:
        with suppress(WriteFailed):
            writer.set_status("interrupted", reason=f"{signal.Signals(number).name} before the first step")

    with (
        writer.lock(),
        join_processes() as processes,
        stop_on_signals(under_torchrun=processes.size > 1, end_unstarted=end_unstarted) as stop_flag,
    ):
        writer.begin()
        try:
            config, choices, overrides = processes.broadcast_from_rank0(lambda: (config, choices, overrides))
            return (yield from _train(config, choices, overrides, writer, processes, stop_flag))
        except KeyboardInterrupt as interrupted:
            with suppress(WriteFailed):
                writer.set_status("interrupted", reason=str(interrupted) or "KeyboardInterrupt")
            raise
        except BaseException as error:
            with suppress(WriteFailed):
                if config.resume and not writer.opened and isinstance(error, UserError):
                    writer.refuse(str(error))
                else:
                    writer.set_status("failed", error=str(error), traceback=traceback.format_exc())
            if isinstance(error, PeerLost):
                remedy = f"vaex train resume={writer.path} continues from the last checkpoint"
                raise PeerLost(f"{error}; {remedy}") from error
            if ran_out(error):
                raise UserError(
                    f"out of memory with batch_size={config.batch_size}: lower it, or objective.samples, or the sizes "
                    f"in architecture; precision=bf16 needs less. {writer.path} keeps the checkpoints so far"
                ) from error
            raise


def _train(
    config: Config,
    choices: dict[str, str],
    overrides: Sequence[str],
    writer: Writer,
    processes: Processes,
    stop_flag: StopFlag,
) -> Training:
    keep_freed_memory()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    experiment = build_in_all(config, processes)
    model, dataset, device = experiment.model, experiment.dataset, experiment.device
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # matrix products in TF32, with 10 bits of mantissa
    resumes = config.resume is not None
    config = replace(config, resume=None, trainer=resolve_auto(config.trainer, device, experiment.steps))
    if config.trainer.compile == "true":
        torch.compiler.reset()  # code compiled by an earlier run in this process holds that run's tensors
    recorded = {
        "device": str(device),
        "image_shape": list(dataset.image_shape),
        "classes": dataset.classes,
        "choices": choices,
        "overrides": list(overrides),
        "threads": torch.get_num_threads(),
        "ranks": processes.size,
    }
    checkpoint = processes.broadcast_from_rank0(writer.load_newest) if resumes else None
    if checkpoint:
        _check_images(checkpoint, dataset, writer.path)
    writer.write_config(config, provenance() | recorded)
    writer.set_status("running", steps=experiment.steps, process=os.getpid(), host=platform.node())
    settings = Settings(config.batch_size, config.seed, config.trainer, config.figures)
    log.info(start_message(experiment, settings, processes.size, choices, writer.path))

    writer.check_space(model, experiment.optimizer, config.trainer.ema is not None)
    if resumes and not checkpoint:
        log.info("there is no checkpoint yet: starting at step 0")

    def about() -> dict[str, Any]:
        return {"config": asdict(config), "versions": versions(), "images": dict(dataset.identity())}

    stop_flag.start()
    with writer.open(checkpoint["step"] if checkpoint else 0, about):
        writer.hyperparameters(_hyperparameters(config, choices, overrides), HPARAMS_METRICS)
        session = Session(experiment, settings, writer, processes, stop_flag, checkpoint)
        yield from train_loop(session)
        freeze_scales(model, dataset.train, dataset.to_float)
        results = _test(session)
        progress = session.progress
        results |= {
            "train/steps": progress.step,
            "train/skipped_steps": progress.skipped,
            "train/seconds": progress.seconds,
            "train/images_per_second": session.images_seen / progress.step_seconds,
            **{f"train/{name}": value for name, value in experiment.objective.results().items()},
            **floor_cost(model, dataset.train, dataset.to_float),
            "model/parameters": experiment.parameters,
            **{f"likelihood/{name}": value for name, value in model.likelihood.bounds().items()},
        }
        numbers = {name: value for name, value in results.items() if name.startswith("test/")}
        writer.numbers(progress.step, session.epoch, numbers)
        writer.finish()
    results = describe(results, model, dataset, config, choices)
    results |= {PREFIX + key: value for key, value in dataset.identity("train", "validation").items()}
    writer.write_results(results, model.state_dict())
    outcome = {"steps": progress.step, "best_step": progress.best_step, "monitored": progress.monitored}
    writer.set_status("completed", **outcome, summary=summary(results))
    longer = f"steps={2 * config.steps}" if config.steps else f"epochs={2 * config.epochs}"
    if session.ran_out_of_patience and config.trainer.patience:
        longer = f"trainer.patience={2 * config.trainer.patience}"
    log.info(end_message(experiment, results, writer.path, longer))
    return progress.monitored


def _check_images(checkpoint: State, dataset: Dataset, run: Path) -> None:
    """Raises UserError if a checkpoint was trained on other images."""
    # A checkpoint of an older version records no images.
    if changes := "images" in checkpoint and changed_splits(checkpoint["images"], dataset.identity()):
        raise UserError(
            f"resume={run}: its dataset is not the one of its checkpoint: {changes}. Restore the images, say "
            "where they are with --data PATH, or start a new run"
        )


def _test(session: Session) -> dict[str, Any]:
    """The metrics of the test split, under their keys in results.json."""
    try:
        return as_results(evaluate_split(session))
    except Interrupted as interrupted:  # the checkpoint of the last step has been saved
        message = f"stopped while testing; to continue: vaex train resume={session.writer.path}"
        raise Interrupted(interrupted.signal_number, message) from None


def build_in_all(config: Config, processes: Processes) -> Experiment:
    """Build the experiment in every process of the run, with the weights and the random state of rank 0.

    Raises:
        UserError: as for `build`; or the batch can't be divided among the processes, or a process has no device.
    """
    size = processes.size
    if config.batch_size % size:
        lower = config.batch_size - config.batch_size % size
        raise UserError(
            f"batch_size={config.batch_size}: is divided among {size} processes; use a multiple of {size}, such as "
            f"{lower or size}"
        )
    with processes.one_at_a_time():
        experiment = build(replace(config, device=_local_device(config.device, processes)))
    if size > 1:
        check_divisible(experiment, config)
    processes.use(experiment.device)
    model, objective = experiment.model, experiment.objective
    processes.copy_from_rank0(chain(model.parameters(), model.buffers(), objective.buffers()))
    random = processes.broadcast_from_rank0(partial(random_state, experiment.device))
    restore_random_state(random, experiment.device)
    return experiment


def _local_device(device: str, processes: Processes) -> str:
    """The device of this process. Raises UserError if a machine has too few GPUs for its processes."""
    if processes.size == 1 or device == "cpu" or not torch.cuda.is_available():
        return device
    if device.startswith("cuda:"):
        raise UserError(f"device={device}: each of the {processes.size} processes uses its own GPU; use device=cuda")
    local_processes, gpus = torchrun.processes(on_this_machine=True), torch.cuda.device_count()
    if local_processes > gpus:
        raise UserError(
            f"--nproc-per-node={local_processes}: each process needs its own GPU, and this machine has {gpus}; use "
            f"{gpus}, or device=cpu"
        )
    return f"cuda:{torchrun.rank(on_this_machine=True)}"


def check_divisible(experiment: Experiment, config: Config) -> None:
    """Raises UserError unless the loss of a batch is the mean of the losses of its parts."""
    if experiment.model.likelihood.depends_on_x:
        raise UserError(
            "likelihood/scale=optimal…: is computed from the errors of a batch, of which each process has a part; use "
            "likelihood/scale=shared, or a single process"
        )
    if not experiment.objective.linear_in_batch:
        bits = config.objective.get("free_bits")
        name = str(config.objective["_target_"]).rpartition(".")[2]
        key, remedy = (f"objective.free_bits={bits}", "set it to 0, or ") if bits else (f"objective: {name}", "")
        raise UserError(
            f"{key}: the loss of a batch is not the mean over its parts, of which each process has one; {remedy}use a "
            "single process"
        )


def _hyperparameters(config: Config, choices: dict[str, str], overrides: Sequence[str]) -> dict[str, Any]:
    """The values of the run's row in TensorBoard's hparams table."""
    values: dict[str, Any] = {}
    for override in overrides:
        key, _, text = override.lstrip("+").partition("=")
        number = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, flags=re.IGNORECASE)
        values[key] = float(text) if number else text
    values |= choices
    for name in ("beta", "latent_dim", "batch_size", "seed", "precision", "conditional"):
        values[name] = getattr(config, name)
    values["lr"] = float(config.optimizer.get("lr", math.nan))
    values["steps" if config.steps else "epochs"] = config.steps or config.epochs
    return values
