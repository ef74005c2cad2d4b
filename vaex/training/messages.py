"""The messages that a run prints at its start and at its end."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vaex.evaluation.metrics import HEADLINES
from vaex.experiment import Experiment
from vaex.training.session import Settings

WORTH_SAYING = 0.01  # bits/dim that a floor costs


def start_message(
    experiment: Experiment, settings: Settings, processes: int, choices: Mapping[str, str], path: Path
) -> str:
    """The data, the model, the formula that is minimized, and how it is trained.

    Args:
        processes: number of processes in this run.
        choices: the option chosen in each config group.
        path: the run folder.
    """
    dataset, model, likelihood = experiment.dataset, experiment.model, experiment.model.likelihood
    channels, height, width = dataset.image_shape
    splits = " / ".join(f"{len(split):,}" for split in (dataset.train, dataset.validation, dataset.test))
    conditional = f", given the label of {model.classes} classes" if model.classes else ""
    kind: str = likelihood.kind
    if kind == "pseudo":
        kind = "pseudo-likelihood: not a probability of gray images, and comparable only with itself"
    scale = f", {choices['likelihood/scale']} scale" if "likelihood/scale" in choices else ""
    bounds = "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in likelihood.bounds().items())
    device = experiment.device
    devices = f"{processes} processes, each on {device.type}" if processes > 1 else str(device)
    objective, loss, corruption = experiment.objective, "", choices.get("corruption", "none")
    if objective.formula:
        loss = f", {objective.formula}"
    elif objective.beta is not None:
        beta = float(objective.beta)
        loss = f", beta {beta:g}: distortion + {beta:g} · KL(q(z|x) ‖ p(z)){_as_mean_error(experiment, beta)}"
    lines = {
        "data": f"{choices['dataset']}, {splits} images of {channels} × {height} × {width}",
        "model": f"{choices['architecture']}, {model.latent_dim} latents, {experiment.parameters:,} parameters"
        + conditional,
        "latents": _latents(choices),
        "likelihood": f"{choices['likelihood']}{scale}, a {kind}{bounds}",
        "distortion": f"{likelihood.formula}, summed over pixels" if likelihood.formula else "",
        "objective": choices["objective"]
        + loss
        + (f", {objective.samples} samples of z" if objective.samples > 1 and not objective.formula else "")
        + (f", the encoder's input under {corruption} noise" if corruption != "none" else ""),
        "training": f"{experiment.steps:,} steps of {settings.batch_size} on {devices}"
        + (", bf16" if model.bf16 else ", float32")
        + (", compiled" if settings.trainer.compile == "true" else "")
        + (", captured" if settings.trainer.capture == "true" else ""),
        "folder": str(path),
        "warning": f"likelihood/scale={choices.get('likelihood/scale')}: {likelihood.warning}"
        if likelihood.warning
        else "",
    }
    return "\n".join(f"{name:>10}  {text}" for name, text in lines.items() if text)


def _latents(choices: Mapping[str, str]) -> str:
    """The prior and the posterior, unless they are the usual ones."""
    prior, posterior = choices.get("prior", "standard"), choices.get("posterior", "diagonal")
    return "" if (prior, posterior) == ("standard", "diagonal") else f"prior {prior}, posterior {posterior}"


def _as_mean_error(experiment: Experiment, beta: float) -> str:
    """The loss in the form of code that averages the error over pixels, if its weights are known before training."""
    model, likelihood = experiment.model, experiment.model.likelihood
    if likelihood.depends_on_x or not likelihood.mean_error:
        return ""
    with torch.no_grad():
        weight = likelihood.mean_error_weight(likelihood(model.offset.unsqueeze(0)))
    if weight is None:
        return ""
    at_first = " at first" if likelihood.scale is not None and likelihood.scale.learned else ""
    return f", as mean {likelihood.mean_error.upper()} + {beta / weight.item():.3g} · KL{at_first}"


def summary(results: Mapping[str, Any]) -> dict[str, str]:
    """Title and text of the most important metrics, for the table of a sweep."""
    keys = ("test/elbo", "test/rate", "test/distortion", "test/mse")
    values = {metric: metric.value(results) for metric in HEADLINES if metric.key in keys}
    return {metric.title: metric.text(value) for metric, value in values.items() if value is not None}


def end_message(experiment: Experiment, results: Mapping[str, Any], path: Path, longer: str) -> str:
    """The test metrics, the paths of the run's files, and commands to run next.

    Args:
        results: the content of results.json.
        path: the run folder.
        longer: the override that makes the run twice as long.
    """
    lines = [("test", "(whole split, per image; ± is the standard error over images)")]
    for metric in HEADLINES:
        if (value := metric.value(results)) is not None:
            total = f"of {experiment.model.latent_dim}" if metric.key == "test/active_units" else ""
            stderr = metric.stderr(results)
            error = "" if stderr is None else f"± {metric.text(stderr)}"
            lines.append((metric.title, " ".join(filter(None, (metric.text(value), error, metric.unit, total)))))
    prefix, beta = "beta/effective_", experiment.objective.beta
    for key, value in results.items():
        if beta is not None and key.startswith(prefix):
            error = key.removeprefix(prefix).upper()
            lines.append(("beta", f"{float(beta):g} here is {value:.3g} × KL beside a mean {error}"))
    lines += [(name, f"{value:.4g} at the end") for name, value in experiment.objective.results().items()]
    if results.get("train/floor_bits", 0) >= WORTH_SAYING:
        share, bits = results["train/floor_share"], results["train/floor_bits"]
        limit = " and ".join(experiment.model.likelihood.bounds()).replace("_", " ")
        lines.append(
            ("floor", f"{share:.0%} of training pixels are at the {limit}, which costs up to {bits:.2f} bits/dim")
        )
    seconds, rate = results["train/seconds"], results["train/images_per_second"]
    quoted = shlex.quote(str(path))
    # The outputs folder, if the run is inside one, so that TensorBoard shows all runs together.
    root = next((parent for parent in path.parents if parent.name == "outputs"), path)
    lines += [
        ("trained", f"{results['train/steps']:,} steps in {seconds:.0f} s, {rate:,.0f} images/s in steps"),
        ("pictures", str(path / "figures")),
        ("run folder", str(path)),
        ("full evaluation", f"vaex eval {quoted}"),
        ("train longer", f"vaex train resume={quoted} {longer}"),
        ("TensorBoard", f"tensorboard --logdir {shlex.quote(str(root))} --host 127.0.0.1"),
    ]
    return "\n".join(["", *(f"{title:>15}  {text}" for title, text in lines)])
