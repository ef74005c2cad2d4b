"""`vaex train`: build what the config says, train it, test it, and leave a folder that tells everything."""

import logging
import math
import os
import platform
import re
import shlex
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from vaex.config.schema import Config
from vaex.data.dataset import Images
from vaex.data.feed import placed
from vaex.errors import Interrupted, UserError
from vaex.evaluation.bound import Numbers
from vaex.evaluation.frozen_scale import freeze_scales
from vaex.experiment import Experiment
from vaex.likelihoods.scale import Fixed, OptimalScale
from vaex.model import Autoencoder
from vaex.runs.folder import METRICS, RESULTS, WEIGHTS, RunFolder
from vaex.runs.provenance import provenance
from vaex.runs.writing import WriteFailed, Writing
from vaex.training.background import Background
from vaex.training.checkpoint import Checkpoints
from vaex.training.distributed import Ranks, build_alike, joined
from vaex.training.loop import Loop
from vaex.training.memory import keep_freed_memory, ran_out
from vaex.training.mode import resolved
from vaex.training.signals import StopFlag, stop_on_signals
from vaex.training.writer import Hyperparameters, NoRecord, Record

log = logging.getLogger("vaex")

# The columns of the hparams table; each is logged as a scalar at the end.
HPARAMS_METRICS = ["test/elbo", "test/rate", "test/distortion", "test/mse", "test/active_units"]


def train(config: Config, folder: RunFolder, choices: dict[str, str], overrides: Sequence[str] = ()) -> float | None:
    """Run to the end, or go on with the run in the folder where `config.resume` is set.

    Args:
        config: checked.
        folder: claimed, or reopened to go on.
        choices: the option chosen in each group.
        overrides: KEY=VALUE as given, for the hparams table.

    Returns:
        The ELBO (of an autoencoder: minus the distortion) of the exported weights on the validation split, in nats, for
        sweepers to maximise; None without such a split. It never looks at the test split.

    Raises:
        UserError: what the config asks for can't be done, or training diverged.
        Interrupted: a signal asked to stop; a checkpoint was written.
    """
    logging.raiseExceptions = False  # on a full disk vaex.log fails too; what else can't be written says so
    with folder.alone(), joined(folder) as ranks, stop_on_signals(under_torchrun=ranks.size > 1) as stop:
        folder.set_status("running")
        try:
            config, choices, overrides = ranks.broadcast_from_rank0(lambda: (config, choices, overrides))
            return _train(config, folder, choices, overrides, stop, ranks)
        except (KeyboardInterrupt, Interrupted) as interrupted:
            with suppress(WriteFailed):
                folder.set_status("interrupted", reason=str(interrupted) or "KeyboardInterrupt")
            raise
        except BaseException as error:
            with suppress(WriteFailed):
                folder.set_status("failed", error=str(error), traceback=traceback.format_exc())
            if ran_out(error):
                raise UserError(
                    f"out of memory with batch_size={config.batch_size}: lower it, or objective.samples, or the sizes "
                    f"in architecture; precision=bf16 takes less. {folder.path} keeps the checkpoints so far"
                ) from error
            raise


def _train(
    config: Config,
    folder: RunFolder,
    choices: dict[str, str],
    overrides: Sequence[str],
    stop: StopFlag,
    ranks: Ranks,
) -> float | None:
    keep_freed_memory()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    experiment = build_alike(config, ranks)
    if experiment.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # products in TF32, with 10 bits of mantissa
    config = replace(config, trainer=resolved(config.trainer, experiment.device, experiment.steps))
    if config.trainer.compile == "true":
        torch.compiler.reset()  # what an earlier run of this process compiled is for that run's tensors
    dataset = experiment.dataset
    folder.write_config(
        replace(config, resume=None),
        provenance()
        | {"device": str(experiment.device), "image_shape": list(dataset.image_shape), "classes": dataset.classes}
        | {"choices": choices, "overrides": list(overrides)}
        | {"threads": torch.get_num_threads(), "ranks": ranks.size},
    )
    folder.set_status("running", steps=experiment.steps, process=os.getpid(), host=platform.node())
    parameters = sum(p.numel() for p in experiment.model.parameters())
    _announce(config, folder.path, experiment, choices, parameters, ranks)

    writing = Writing(folder.path, stop=config.trainer.on_save_error == "stop")
    checkpoints = Checkpoints(folder.path / "checkpoints", writing)
    state = ranks.broadcast_from_rank0(checkpoints.load_newest) if config.resume else None
    if ranks.first:
        checkpoints.check_space(experiment.model, experiment.optimizer)
    if config.resume and not state:
        log.info("no checkpoint yet: starting at step 0")
    from_step = state["step"] if state else 0
    recording = Record(folder.path, METRICS, from_step, writing) if ranks.first else NoRecord()
    with recording as record, Background() as background:
        record.hyperparameters(_hyperparameters(config, choices, overrides), HPARAMS_METRICS)
        loop = Loop(experiment, config, folder.path, checkpoints, record, background, stop, ranks)
        if state:
            loop.restore(state)
            log.info(f"going on from step {loop.progress.step} of {experiment.steps}")
        try:
            loop.run()
        finally:
            loop.feed.close()
        if config.trainer.weights == "best":
            loop.use_best_weights()
        freeze_scales(experiment.model, dataset.train, dataset.to_float)
        numbers = loop.test(placed(dataset.test, experiment.device, dataset.resident))
        results = _results(numbers, loop, parameters)
        scalars: Numbers = {name: value for name, value in results.items() if name.startswith("test/")}
        record.numbers(loop.progress.step, loop.epoch, scalars)
        record.finish()
    weights = {name: tensor.contiguous() for name, tensor in experiment.model.state_dict().items()}
    folder.write(WEIGHTS, save(weights))
    folder.write_json(RESULTS, results)
    progress = loop.progress
    folder.set_status("completed", steps=progress.step, best_step=progress.best_step, monitored=progress.monitored)
    _report(config, folder.path, results)
    return progress.monitored


def _results(numbers: Numbers, loop: Loop, parameters: int) -> dict[str, Any]:
    """The flat object of results.json."""
    progress = loop.progress
    results: dict[str, Any] = {}
    for name, value in numbers.items():
        results["beta/" + name if name.startswith("effective_") else "test/" + name] = value
    return results | {
        "train/steps": progress.step,
        "train/skipped_steps": progress.skipped,
        "train/seconds": progress.seconds,
        "train/images_per_second": loop.images_seen / progress.step_seconds,
        "model/parameters": parameters,
        **{f"likelihood/{name}": value for name, value in loop.experiment.model.likelihood.bounds().items()},
    }


def _hyperparameters(config: Config, choices: dict[str, str], overrides: Sequence[str]) -> Hyperparameters:
    values: Hyperparameters = {}
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


def _announce(
    config: Config, path: Path, experiment: Experiment, choices: dict[str, str], parameters: int, ranks: Ranks
) -> None:
    dataset, model = experiment.dataset, experiment.model
    channels, height, width = dataset.image_shape

    def count(images: Images) -> str:
        return f"{len(images):,}"

    splits = " / ".join(count(part) for part in (dataset.train, dataset.validation, dataset.test))
    kind = model.likelihood.kind
    note = "pseudo-likelihood: no probability of grey images, to be compared with itself only"
    objective = choices["objective"]
    if "beta" in config.objective:
        objective += f", beta {config.beta:g}: distortion + {config.beta:g} · KL(q(z|x) ‖ p(z))"
        objective += _beside_mean_error(model, config.beta, dataset.image_shape)
    if experiment.objective.samples > 1:
        objective += f", {experiment.objective.samples} draws of z"
    if choices.get("corruption", "none") != "none":
        objective += f", the encoder's input under {choices['corruption']} noise"
    conditional = f", given the label of {dataset.classes} classes" if config.conditional else ""
    likelihood = choices["likelihood"]
    if "likelihood/scale" in choices:
        likelihood += f", {choices['likelihood/scale']} scale"
    lines = {
        "data": f"{choices['dataset']}, {splits} images of {channels} × {height} × {width}",
        "model": f"{choices['architecture']}, {config.latent_dim} latents, {parameters:,} parameters{conditional}",
        "likelihood": f"{likelihood}, a {note if kind == 'pseudo' else kind}",
        "distortion": f"{model.likelihood.formula}, summed over pixels",
        "objective": objective,
        "training": ", ".join(
            [f"{experiment.steps:,} steps of {config.batch_size} on {ranks.where(experiment.device)}", config.precision]
            + ["compiled"] * (config.trainer.compile == "true")
            + ["captured"] * (config.trainer.capture == "true")
        ),
        "folder": str(path),
    }
    bounds = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in model.likelihood.bounds().items())
    if bounds:
        lines["likelihood"] += f", {bounds}"
    if not model.likelihood.formula:
        del lines["distortion"]
    warning = getattr(getattr(model.likelihood, "scale", None), "warning", None)
    if warning:
        lines["warning"] = f"likelihood/scale={choices['likelihood/scale']}: {warning}"
    log.info("\n".join(f"{name:>10}  {value}" for name, value in lines.items()))


def _beside_mean_error(model: Autoencoder, beta: float, image_shape: tuple[int, int, int]) -> str:
    """What the loss is in code that takes a mean over pixels, where that is known before training."""
    likelihood = model.likelihood
    scale = getattr(likelihood, "scale", None)
    if isinstance(scale, OptimalScale):
        return ""
    channels, height, width = image_shape
    with torch.no_grad():
        h = torch.zeros(1, likelihood.out_channels(channels), height, width, device=model.device)
        weight = likelihood.mean_error_weight(likelihood(h))
    if weight is None or not likelihood.mean_error:
        return ""
    when = "" if scale is None or isinstance(scale, Fixed) else " at first"
    return f", as mean {likelihood.mean_error.upper()} + {beta / weight.item():.3g} · KL{when}"


def _report(config: Config, path: Path, results: dict[str, Any]) -> None:
    units = {"elbo": "nats", "rate": "nats", "distortion": "nats", "loss": "nats", "active_units": ""}
    units |= {"mse": "", "mse_corrupted": "", "mse_restored": ""}
    lines = ["", f"{'test':>14}  (whole split, per image)"]
    for name, unit in units.items():
        value = results.get(f"test/{name}")
        if value is not None:
            shown = (
                f"{value:.5f}" if name.startswith("mse") else f"{value}" if name == "active_units" else f"{value:.2f}"
            )
            extra = f" of {config.latent_dim}" if name == "active_units" else ""
            lines.append(f"{name.replace('_', ' '):>14}  {shown} {unit}{extra}".rstrip())
    for name, value in results.items():
        if name.startswith("beta/effective_"):
            error = name.removeprefix("beta/effective_")
            lines.append(f"{'beta':>14}  {config.beta:g} here is {value:.3g} × KL beside a mean {error.upper()}")
    seconds, rate = results["train/seconds"], results["train/images_per_second"]
    lines.append(f"{'trained':>14}  {results['train/steps']:,} steps in {seconds:.0f} s, {rate:,.0f} images/s in steps")
    lines.append(f"{'pictures':>14}  {path / 'figures'}")
    lines.append(f"{'everything':>14}  {path}")
    quoted = shlex.quote(str(path))
    further = f"steps={2 * config.steps}" if config.steps else f"epochs={2 * config.epochs}"
    lines.append(f"{'all numbers':>14}  vaex eval {quoted}")
    lines.append(f"{'further':>14}  vaex train resume={quoted} {further}")
    lines.append(f"{'TensorBoard':>14}  tensorboard --logdir {shlex.quote(str(_shown_root(path)))} --host 127.0.0.1")
    log.info("\n".join(lines))


def _shown_root(path: Path) -> Path:
    """The outputs folder when the run is inside one, so that all runs are seen together."""
    return next((parent for parent in path.parents if parent.name == "outputs"), path)
