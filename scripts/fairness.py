"""Perturb what should not decide a comparison of likelihoods, and bound how far the test bits/dim move.

    python scripts/fairness.py                        # 1,000 steps for each run, about half an hour on one CPU core
    python scripts/fairness.py --steps 100 --seeds 2  # a quick trial, whose bounds mean little

Every setting is trained with several seeds, and with the first seed under each perturbation: another initial scale, a
bias on every location, another learning rate, inverted images, and channels of color images in reverse. The bits/dim
are those of the ELBO of 2,000 test images. Another table has the distance of a learned scale from the best one for the
model's own locations. The tables are printed as Markdown; the exit status is 1 if a bound is exceeded.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from hydra import compose, initialize_config_dir

from vaex.architectures import mlp
from vaex.build import build
from vaex.config.schema import check, config_dir
from vaex.data.dataset import Images, Source
from vaex.data.mnist import mnist
from vaex.data.stream import IndexStream
from vaex.evaluation.bound import evaluate
from vaex.evaluation.measure import Evaluation
from vaex.evaluation.split import batches, evaluating, evenly_spaced
from vaex.experiment import Experiment
from vaex.likelihoods.scale import Shared
from vaex.training.step import TrainingStep

UNIFORM = "dataset.dequantize=uniform"
SETTINGS = {
    "gaussian, shared": ["likelihood=gaussian", UNIFORM],
    "laplace, shared": ["likelihood=laplace", UNIFORM],
    "logistic, shared": ["likelihood=logistic", UNIFORM],
    "gaussian, per pixel": ["likelihood=gaussian", "likelihood/scale=per_pixel", UNIFORM],
    "laplace, per pixel": ["likelihood=laplace", "likelihood/scale=per_pixel", UNIFORM],
    "discretized logistic, shared": ["likelihood=discretized_logistic"],
    "continuous Bernoulli": ["likelihood=continuous_bernoulli", UNIFORM],
}
LEARNED_SCALES = {name: overrides for name, overrides in SETTINGS.items() if name.endswith("shared")} | {
    "student_t, shared": ["likelihood=student_t", UNIFORM],
    "gaussian bins, shared": ["likelihood=gaussian", "likelihood.discretize=true"],
    "laplace bins, shared": ["likelihood=laplace", "likelihood.discretize=true"],
}
DIGITS = ["~dataset.source", "+dataset.source._target_=fairness.digits"]
# The defaults are an initial scale of 0.3 and a learning rate of 0.002.
PERTURBATIONS = {
    "scale × 3": ["likelihood.scale.init=0.9"],
    "scale / 3": ["likelihood.scale.init=0.1"],
    "location + 1": ["architecture.decoder._target_=fairness.shifted_decoder"],
    "rate × 2": ["optimizer.lr=0.004"],
    "rate / 2": ["optimizer.lr=0.001"],
    "inverted": [*DIGITS, "+dataset.source.inverted=true"],
    "inverted for the decoder": [
        *DIGITS,
        "+dataset.source.inverted=true",
        "architecture.encoder._target_=fairness.inverting_encoder",
    ],
}
COLORED = [*DIGITS, "+dataset.source.colored=true"]
REVERSED = [*COLORED, "+dataset.source.reversed_channels=true"]
NOT_BOUNDED = {"rate × 2", "rate / 2"}  # these change training, but may not change the order of the settings
LEARNING_RATES = (2e-4, 2e-3, 1e-2)  # of the networks, for learned scales
LEARNED_SCALE_STEPS = 300

MOST = 0.01  # bits/dim by which a run may move, unless twice the range over seeds is more
MOST_DISTANCE = 0.02  # bits/dim by which a shared scale may miss the best one


def shifted_decoder(*, image_shape: tuple[int, int, int], **arguments: Any) -> mlp.Decoder:
    """The decoder of architecture=mlp, with 1 added to the initial bias of every location."""
    decoder = mlp.Decoder(image_shape=image_shape, **arguments)
    with torch.no_grad():
        decoder.output.bias[: math.prod(image_shape)] += 1
    return decoder


def inverting_encoder(**arguments: Any) -> mlp.Encoder:
    """The encoder of architecture=mlp, its input negated: of inverted images, the original ones less their mean."""
    encoder = mlp.Encoder(**arguments)
    encoder.register_forward_pre_hook(lambda module, inputs: (-inputs[0], *inputs[1:]))
    return encoder


def digits(*, inverted: bool = False, colored: bool = False, reversed_channels: bool = False) -> Source:
    """MNIST's digits, or its digits of 14 × 14 pixels in colors that are mostly red and hardly ever blue."""
    source = mnist()

    def changed(images: Images) -> Images:
        pixels = images.pixels
        if colored:
            # Every 5th, 110th or 214th image, as an evaluation or the start takes them, has all of these colors.
            number = torch.arange(len(pixels)).view(-1, 1, 1, 1)
            red, green, blue = 255 - number % 3 * 30, 40 + number % 7 * 25, number % 13 * 6
            small = pixels[:, :, ::2, ::2].int()
            pixels = torch.cat([small * color // 255 for color in (red, green, blue)], dim=1).byte()
        if reversed_channels:
            pixels = pixels.flip(1)
        return Images(255 - pixels if inverted else pixels, images.labels)

    return Source(train=changed(source.train), test=changed(source.test), classes=source.classes)


@dataclass(frozen=True)
class Outcome:
    """Bits/dim and nats per image of the test images, and the distance of a shared scale from its best, in bits/dim."""

    bits: float
    nats: float
    distance: float | None


Outcomes = dict[str, dict[str, Outcome]]  # of each setting, by seed and perturbation


def train(overrides: list[str], steps: int, seed: int = 0) -> Experiment:
    """The experiment after `steps` training steps, on the batches that `vaex train` uses."""
    fixed = ["architecture.hidden=[400]", "device=cpu", f"steps={steps}", f"seed={seed}"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = check(compose("train", [*fixed, *overrides]))
    with patch.dict(os.environ, VAEX_TRUST="fairness"):  # the functions above
        experiment = build(config)
    torch.manual_seed(seed)  # so that training has the same noise, whatever `build` has drawn
    step = TrainingStep(experiment, experiment.dataset.train, unread_steps=steps)
    stream = IndexStream(len(experiment.dataset.train), config.batch_size, seed, experiment.device)
    for number in range(steps):
        for group, rate in zip(experiment.optimizer.param_groups, experiment.learning_rates, strict=True):
            group["lr"].fill_(rate * experiment.schedule(number))
        step(stream.batch(number))
    return experiment


def measure(name: str, overrides: list[str], steps: int, seed: int = 0) -> Outcome:
    """Train and test one run, and print a line about it."""
    began = time.monotonic()
    experiment = train(overrides, steps, seed)
    model, data = experiment.model, experiment.dataset
    evaluation = Evaluation(model=model, objective=experiment.objective, dataset=data)
    elbo: Any = evaluate(evaluation, data.test[evenly_spaced(data.test, 2000)])["elbo"]
    nats_per_bit = math.prod(data.image_shape) * math.log(2)
    bits = -elbo / nats_per_bit + (8 if model.likelihood.kind == "density" else 0)
    distance = excess_nats(experiment) / nats_per_bit if isinstance(model.likelihood.scale, Shared) else None
    scale = "" if distance is None else f", scale {distance:.4f} bits/dim from its best"
    line = f"{name}: {bits:.4f} bits/dim, {bits * nats_per_bit:.1f} nats{scale} ({time.monotonic() - began:.0f} s)"
    print(line, file=sys.stderr)
    return Outcome(bits, bits * nats_per_bit, distance)


def excess_nats(experiment: Experiment) -> float:
    """Nats that a training image would gain from the best scale for the model's own locations, by a grid search."""
    model, data = experiment.model, experiment.dataset
    rows = evenly_spaced(data.train, 500)
    (batch,) = batches(model, data.train, data.to_float, subset=rows, batch_size=len(rows))
    with evaluating(model):
        p: Any = model.decode(model.encode(batch.x).rsample(1)[0])
        nats = {
            shift: -type(p)(p.loc, p.log_scale + shift, p.standard).log_prob(batch.x).mean().item()
            for shift in (number / 20 for number in range(-20, 21))  # of the log scale
        }
    return nats[0] - min(nats.values())


def compare(perturbations: dict[str, list[str]], data: list[str], steps: int, seeds: int) -> Outcomes:
    """Train every setting with each seed, and with seed 0 under each perturbation that applies to it."""
    return {
        name: {f"seed {n}": measure(f"{name}, seed {n}", [*setting, *data], steps, n) for n in range(seeds)}
        | {
            perturbation: measure(f"{name}, {perturbation}", [*setting, *changes], steps)
            for perturbation, changes in perturbations.items()
            if name != "continuous Bernoulli" or not perturbation.startswith("scale")  # which has no scale
        }
        for name, setting in SETTINGS.items()
    }


def differences(outcomes: Outcomes, perturbations: Iterable[str]) -> tuple[str, list[str]]:
    """The table of how far each perturbation moves each setting, and a line for each bound that is exceeded."""
    rows, exceeded = [], []
    for name, variants in outcomes.items():
        seeds = [outcome.bits for variant, outcome in variants.items() if variant.startswith("seed")]
        spread = max(seeds) - min(seeds)
        bound = max(MOST, 2 * spread)
        row = [name, f"{sum(seeds) / len(seeds):.3f}", f"{spread:.4f}"]
        for perturbation in perturbations:
            if perturbation not in variants:
                row.append("–")
                continue
            difference = variants[perturbation].bits - seeds[0]
            too_far = perturbation not in NOT_BOUNDED and abs(difference) > bound
            row.append(f"**{difference:+.4f}**" if too_far else f"{difference:+.4f}")
            if too_far:
                exceeded.append(f"{name}, {perturbation}: moves by {difference:+.4f} bits/dim; {bound:.4f} is allowed")
        rows.append(row)
    return table(["setting", "bits/dim", "range over seeds", *perturbations], rows), exceeded


def table(headings: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in [headings, ["---"] * len(headings), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    gray = compare(PERTURBATIONS, [], arguments.steps, arguments.seeds)
    color = compare({"channels reversed": REVERSED}, COLORED, arguments.steps, arguments.seeds)
    scales = {
        name: {
            f"lr={lr:g}": measure(f"{name}, lr={lr:g}", [*setting, f"optimizer.lr={lr}"], LEARNED_SCALE_STEPS)
            for lr in LEARNING_RATES
        }
        for name, setting in LEARNED_SCALES.items()
    }
    gray_table, exceeded = differences(gray, PERTURBATIONS)
    color_table, more = differences(color, ["channels reversed"])
    distances = [[name, *(f"{run.distance:.4f}" for run in runs.values())] for name, runs in scales.items()]
    exceeded += more + [
        f"{name}, {variant}: the scale is {run.distance:.4f} bits/dim from its best"
        for outcomes in (gray, color, scales)
        for name, runs in outcomes.items()
        for variant, run in runs.items()
        if run.distance is not None and run.distance > MOST_DISTANCE
    ]
    for rate in NOT_BOUNDED:
        order, before = (sorted(gray, key=lambda name: gray[name][key].bits) for key in (rate, "seed 0"))
        if order != before:
            exceeded.append(f"{rate}: the order of the settings is {'; '.join(order)}")
    print(gray_table, color_table, table(["setting", *(f"lr={lr:g}" for lr in LEARNING_RATES)], distances), sep="\n")
    print(*(f"Bound exceeded: {line}" for line in exceeded), sep="\n")
    sys.exit(bool(exceeded))


if __name__ == "__main__":
    main()
