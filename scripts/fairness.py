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
from vaex.evaluation.split import batches, evenly_spaced
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
MOST_AWAY = 0.02  # bits/dim by which a shared scale may miss the best one


def shifted_decoder(
    *, in_features: int, image_shape: tuple[int, int, int], out_channels: int, hidden: list[int], activation: str
) -> mlp.Decoder:
    """The decoder of architecture=mlp, with 1 added to the initial bias of every location."""
    decoder = mlp.Decoder(
        in_features=in_features,
        image_shape=image_shape,
        out_channels=out_channels,
        hidden=hidden,
        activation=activation,
    )
    with torch.no_grad():
        decoder.output.bias[: math.prod(image_shape)] += 1
    return decoder


def inverting_encoder(
    *, image_shape: tuple[int, int, int], out_features: int, hidden: list[int], activation: str
) -> mlp.Encoder:
    """The encoder of architecture=mlp, which gets 1 - x."""
    encoder = mlp.Encoder(image_shape=image_shape, out_features=out_features, hidden=hidden, activation=activation)
    encoder.register_forward_pre_hook(lambda module, arguments: (1 - arguments[0],))
    return encoder


def digits(*, inverted: bool = False, colored: bool = False, reversed_channels: bool = False) -> Source:
    """MNIST's digits, or its digits of 14 × 14 pixels in colors that are mostly red and hardly ever blue."""
    source = mnist()

    def changed(images: Images) -> Images:
        pixels = images.pixels
        if colored:
            number = torch.arange(len(pixels)).view(-1, 1, 1, 1)
            red, green, blue = 255 - number % 4 * 20, 40 + number % 5 * 40, number % 7 * 12
            small = pixels[:, :, ::2, ::2].int()
            pixels = torch.cat([small * color // 255 for color in (red, green, blue)], dim=1).byte()
        if reversed_channels:
            pixels = pixels.flip(1)
        return Images(255 - pixels if inverted else pixels, images.labels)

    return Source(train=changed(source.train), test=changed(source.test), classes=source.classes)


@dataclass(frozen=True)
class Outcome:
    """Bits/dim of the test images, and the distance of a shared scale from its best value in bits/dim."""

    bits: float
    away: float | None


def train(overrides: list[str], steps: int, seed: int = 0) -> Experiment:
    """The experiment after `steps` training steps, on the batches that `vaex train` uses."""
    fixed = ["architecture.hidden=[400]", "device=cpu", f"steps={steps}", f"seed={seed}"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = check(compose("train", [*fixed, *overrides]))
    with patch.dict(os.environ, VAEX_TRUST="fairness"):  # the functions above
        experiment = build(config)
    torch.manual_seed(seed)  # so that training has the same noise, whatever `build` has drawn
    step = TrainingStep(experiment, experiment.dataset.train)
    stream = IndexStream(len(experiment.dataset.train), config.batch_size, seed, experiment.device)
    for number in range(steps):
        for group, rate in zip(experiment.optimizer.param_groups, experiment.learning_rates, strict=True):
            group["lr"].fill_(rate * experiment.schedule(number))
        step(stream.batch(number))
    return experiment


def nats_per_bit(experiment: Experiment) -> float:
    """Nats of an image for one bit/dim."""
    return math.prod(experiment.dataset.image_shape) * math.log(2)


def outcome(experiment: Experiment) -> Outcome:
    model, data = experiment.model, experiment.dataset
    evaluation = Evaluation(model=model, objective=experiment.objective, dataset=data)
    elbo: Any = evaluate(evaluation, data.test[evenly_spaced(data.test, 2000)])["elbo"]
    density = model.likelihood.kind == "density"
    away = distance_from_best(experiment) if isinstance(model.likelihood.scale, Shared) else None
    return Outcome(-elbo / nats_per_bit(experiment) + (8 if density else 0), away)


def distance_from_best(experiment: Experiment) -> float:
    """Bits/dim that training images would gain from the best scale for the model's own locations, by a grid search."""
    model, train = experiment.model, experiment.dataset.train
    rows = evenly_spaced(train, 500)
    shifts = torch.linspace(-1, 1, 41).tolist()  # of the log scale; the 21st is 0
    (nats,) = [
        [-type(p)(p.loc, p.log_scale + shift, p.standard).log_prob(batch.x).mean().item() for shift in shifts]
        for batch in batches(model, train, experiment.dataset.to_float, subset=rows, batch_size=len(rows))
        for p in [model.decode(model.encode(batch.x).rsample(1)[0])]
    ]
    return (nats[20] - min(nats)) / nats_per_bit(experiment)


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    broken: list[str] = []

    def measure(name: str, variant: str, overrides: list[str], seed: int = 0, steps: int = arguments.steps) -> Outcome:
        began = time.monotonic()
        experiment = train(overrides, steps, seed)
        result = outcome(experiment)
        away = "" if result.away is None else f", scale {result.away:.4f} bits/dim away from its best value"
        if result.away is not None and result.away > MOST_AWAY:
            broken.append(f"{name}, {variant}: the scale is {result.away:.4f} bits/dim away from its best value")
        nats = result.bits * nats_per_bit(experiment)
        seconds = time.monotonic() - began
        print(
            f"{name}, {variant}: {result.bits:.4f} bits/dim, {nats:.1f} nats{away} ({seconds:.0f} s)", file=sys.stderr
        )
        return result

    def difference(name: str, variant: str, outcomes: dict[str, Outcome], seeds: list[float]) -> str:
        """A cell of a table: by how much a variant differs from the first seed, in bold beyond the bound."""
        if variant not in outcomes:
            return "–"
        moved, bound = outcomes[variant].bits - seeds[0], max(MOST, 2 * (max(seeds) - min(seeds)))
        if variant in NOT_BOUNDED or abs(moved) <= bound:
            return f"{moved:+.4f}"
        broken.append(f"{name}, {variant}: moves by {moved:+.4f} bits/dim, and {bound:.4f} is allowed")
        return f"**{moved:+.4f}**"

    def compare(perturbations: dict[str, list[str]], data: list[str]) -> tuple[str, dict[str, dict[str, Outcome]]]:
        """The table of all settings and perturbations, and its outcomes."""
        rows, everything = [], {}
        for name, overrides in SETTINGS.items():
            base = [*overrides, *data]
            seeds = [measure(name, f"seed {seed}", base, seed) for seed in range(arguments.seeds)]
            outcomes = {
                variant: measure(name, variant, [*overrides, *changes])
                for variant, changes in perturbations.items()
                if name != "continuous Bernoulli" or not variant.startswith("scale")  # which has no scale
            }
            bits = [seed.bits for seed in seeds]
            cells = [f"{sum(bits) / len(bits):.3f}", f"{max(bits) - min(bits):.4f}"]
            rows.append([name, *cells, *(difference(name, variant, outcomes, bits) for variant in perturbations)])
            everything[name] = outcomes | {"none": seeds[0]}
        return table(["setting", "bits/dim", "range over seeds", *perturbations], rows), everything

    gray, outcomes = compare(PERTURBATIONS, [])
    color, _ = compare({"channels reversed": REVERSED}, COLORED)
    orders = {
        variant: sorted(SETTINGS, key=lambda name: outcomes[name][variant].bits)
        for variant in ("none", "rate × 2", "rate / 2")
    }
    for variant, order in orders.items():
        if order != orders["none"]:
            broken.append(f"{variant}: the order of the settings is {'; '.join(order)}")
    rows = [
        [name, *(f"{away:.4f}" for away in aways)]
        for name, overrides in LEARNED_SCALES.items()
        for aways in [
            [
                measure(name, f"rate {rate:g}", [*overrides, f"optimizer.lr={rate}"], steps=LEARNED_SCALE_STEPS).away
                for rate in LEARNING_RATES
            ]
        ]
    ]
    scales = table(["setting", *(f"optimizer.lr={rate:g}" for rate in LEARNING_RATES)], rows)
    print(gray, color, scales, *(f"Bound exceeded: {line}" for line in broken), sep="\n")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
