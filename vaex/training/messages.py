"""What a run prints at its start and at its end."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vaex.evaluation.metrics import HEADLINES
from vaex.experiment import Experiment
from vaex.training.distributed import Processes
from vaex.training.run import Settings

SUMMARY = ("test/elbo", "test/rate", "test/distortion", "test/mse")  # what the table of a sweep shows


def start_message(
    experiment: Experiment, settings: Settings, processes: Processes, choices: Mapping[str, str], path: Path
) -> str:
    """The data, the model, the formula that is minimized, and how it is trained.

    Args:
        choices: the option chosen in each config group.
        path: the run folder.
    """
    dataset, model, likelihood = experiment.dataset, experiment.model, experiment.model.likelihood
    channels, height, width = dataset.image_shape
    splits = " / ".join(f"{len(split):,}" for split in (dataset.train, dataset.validation, dataset.test))
    conditional = f", given the label of {model.classes} classes" if model.classes else ""
    kind: str = likelihood.kind
    if kind == "pseudo":
        kind = "pseudo-likelihood: not a probability of grey images, and comparable only with itself"
    scale = f", {choices['likelihood/scale']} scale" if "likelihood/scale" in choices else ""
    bounds = "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in likelihood.bounds().items())
    training = [
        f"{experiment.steps:,} steps of {settings.batch_size} on {processes.describe(experiment.device)}",
        "bf16" if model.bf16 else "float32",
        *["compiled"] * (settings.trainer.compile == "true"),
        *["captured"] * (settings.trainer.capture == "true"),
    ]
    lines = {
        "data": f"{choices['dataset']}, {splits} images of {channels} × {height} × {width}",
        "model": f"{choices['architecture']}, {model.latent_dim} latents, {experiment.parameters:,} parameters"
        + conditional,
        "likelihood": f"{choices['likelihood']}{scale}, a {kind}{bounds}",
        "distortion": f"{likelihood.formula}, summed over pixels" if likelihood.formula else "",
        "objective": _objective(experiment, choices),
        "training": ", ".join(training),
        "folder": str(path),
        "warning": f"likelihood/scale={choices.get('likelihood/scale')}: {likelihood.warning}"
        if likelihood.warning
        else "",
    }
    return "\n".join(f"{name:>10}  {text}" for name, text in lines.items() if text)


def _objective(experiment: Experiment, choices: Mapping[str, str]) -> str:
    objective, text = experiment.objective, choices["objective"]
    if objective.beta is not None:
        beta = float(objective.beta)
        text += f", beta {beta:g}: distortion + {beta:g} · KL(q(z|x) ‖ p(z)){_as_mean_error(experiment, beta)}"
    if objective.samples > 1:
        text += f", {objective.samples} samples of z"
    if choices.get("corruption", "none") != "none":
        text += f", the encoder's input under {choices['corruption']} noise"
    return text


def _as_mean_error(experiment: Experiment, beta: float) -> str:
    """The same loss as code that takes a mean over pixels has it, if that is known before training."""
    likelihood, (channels, height, width) = experiment.model.likelihood, experiment.dataset.image_shape
    if likelihood.depends_on_x or not likelihood.mean_error:
        return ""
    with torch.no_grad():
        h = torch.zeros(1, likelihood.out_channels(channels), height, width, device=experiment.device)
        weight = likelihood.mean_error_weight(likelihood(h))
    if weight is None:
        return ""
    changes = likelihood.scale is not None and likelihood.scale.learned
    at_first = " at first" if changes else ""
    return f", as mean {likelihood.mean_error.upper()} + {beta / weight.item():.3g} · KL{at_first}"


def summary(results: Mapping[str, Any]) -> dict[str, str]:
    """Title and text of the most important metrics, for the table of a sweep."""
    values = {metric: metric.value(results) for metric in HEADLINES if metric.key in SUMMARY}
    return {metric.title: metric.text(value) for metric, value in values.items() if value is not None}


def end_message(experiment: Experiment, results: Mapping[str, Any], path: Path, longer: str) -> str:
    """The test metrics, where everything is, and what to run next.

    Args:
        results: the content of results.json.
        path: the run folder.
        longer: the override that makes the run twice as long.
    """
    lines = [("test", "(whole split, per image)")]
    for metric in HEADLINES:
        if (value := metric.value(results)) is not None:
            of_all = f"of {experiment.model.latent_dim}" if metric.key == "test/active_units" else ""
            lines.append((metric.title, " ".join(filter(None, (metric.text(value), metric.unit, of_all)))))
    if experiment.objective.beta is not None:
        for key in results:
            if key.startswith("beta/effective_"):
                error, beta = key.removeprefix("beta/effective_").upper(), float(experiment.objective.beta)
                lines.append(("beta", f"{beta:g} here is {results[key]:.3g} × KL beside a mean {error}"))
    seconds, rate = results["train/seconds"], results["train/images_per_second"]
    quoted = shlex.quote(str(path))
    # The outputs folder, if the run is inside one, so that TensorBoard shows all runs together.
    root = next((parent for parent in path.parents if parent.name == "outputs"), path)
    lines += [
        ("trained", f"{results['train/steps']:,} steps in {seconds:.0f} s, {rate:,.0f} images/s in steps"),
        ("pictures", f"{path / 'figures'}"),
        ("run folder", f"{path}"),
        ("full evaluation", f"vaex eval {quoted}"),
        ("train longer", f"vaex train resume={quoted} {longer}"),
        ("TensorBoard", f"tensorboard --logdir {shlex.quote(str(root))} --host 127.0.0.1"),
    ]
    return "\n".join(["", *(f"{title:>15}  {text}" for title, text in lines)])
