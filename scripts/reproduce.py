"""Run a recipe of conf/experiment, evaluate it, and compare what it gives with what its source leads to expect.

    python scripts/reproduce.py aevb_bernoulli        # as its source has it
    python scripts/reproduce.py iwae_burda --small    # cut down to what two CPU cores do in minutes
    python scripts/reproduce.py --all-small           # all of them, 17 minutes on two CPU cores
    python scripts/reproduce.py sigma_vae dataset.source.root=/data/svhn    # with overrides of vaex train

Each run adds its lines to docs/results.md. The exit code is 1 if a figure is out of its range. A cut-down recipe has a
range of its own, which docs/results.md explains.
"""

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results.md"
HEAD = """# What the recipes gave

Each line was written by the command in it. `--small` is a recipe cut down to minutes on two CPU cores. Its range, and
that of a recipe whose source gives no figure, is what follows from a formula, or what this code gave before, give or
take what seeds differ by. Nats per image, or as said. A recipe without a line wasn't run in its present form.

| command | figure | expected | got | within | minutes | on |
|---|---|---|---|---|---|---|
"""
PIXELS = 784
CONSTANT = PIXELS / 2 * math.log(2 * math.pi)  # which the AEVB notebook drops

Read = Callable[[Path], float]  # of a run's folder, or of a sweep's


@dataclass(frozen=True)
class Figure:
    """A number to compare with a range."""

    title: str
    read: Read
    low: float
    high: float

    @property
    def expected(self) -> str:
        if math.isinf(self.low):
            return f"< {self.high:g}"
        if math.isinf(self.high):
            return f"> {self.low:g}"
        return f"{(self.low + self.high) / 2:.6g} ± {(self.high - self.low) / 2:.3g}"


@dataclass(frozen=True)
class Recipe:
    """`runs`: a folder's name -> overrides, of each `vaex train experiment=…`; a sweep where `sweep` is true.

    `evaluation`: arguments of `vaex eval`, None for none. `small` and `small_figures` cut it down; None where the whole
    takes a minute or two. `small_evaluation`: None for the same, empty for none.
    """

    figures: Sequence[Figure]
    runs: Sequence[tuple[str, Sequence[str]]] = (("", ()),)
    sweep: bool = False
    evaluation: Sequence[str] | None = None
    small: Sequence[str] | None = None
    small_figures: Sequence[Figure] | None = None
    small_evaluation: Sequence[str] | None = None


def result(key: str, run: str = "") -> Read:
    """Of results.json; of the run with this name, where there are several."""
    return lambda folder: float(json.loads((folder / run / "results.json").read_text())[key])


def epoch(number: int, key: str = "train_epoch/loss") -> Read:
    """Of metrics.jsonl, of the epoch with this number from 1; -1 is the last."""

    def read(folder: Path) -> float:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        values = [float(line[key]) for line in lines if key in line]
        return values[number if number < 0 else number - 1]

    return read


def less(one: Read, other: Read) -> Read:
    return lambda folder: one(folder) - other(folder)


def ratio(one: Read, other: Read) -> Read:
    return lambda folder: one(folder) / other(folder)


def about(title: str, read: Read, value: float, within: float) -> Figure:
    return Figure(title, read, value - within, value + within)


def above(title: str, read: Read, low: float) -> Figure:
    return Figure(title, read, low, math.inf)


def below(title: str, read: Read, high: float) -> Figure:
    return Figure(title, read, -math.inf, high)


def epochs(values: Sequence[float], within: Sequence[float], add: float = 0.0) -> list[Figure]:
    return [
        about(f"training loss of epoch {n}", epoch(n), value + add, tolerance)
        for n, (value, tolerance) in enumerate(zip(values, within, strict=True), 1)
    ]


def optimum(likelihood: str, scale: str) -> Read:
    """The distortion that follows from the scale alone if that is the best: D · (½ log 2π·s² + ½), D · (log 2s + 1)."""

    def read(folder: Path) -> float:
        s = result("test/likelihood_scale", cell(likelihood, scale))(folder)
        if likelihood == "gaussian":
            return PIXELS * (0.5 * math.log(2 * math.pi * s**2) + 0.5)
        return PIXELS * (math.log(2 * s) + 1)

    return read


def cell(likelihood: str, scale: str) -> str:
    return f"scale={scale},likelihood={likelihood}"


def beckham(*scales: str) -> list[Figure]:
    figures = []
    for likelihood in ("gaussian", "laplace"):
        for scale in scales:
            gap = less(result("test/distortion", cell(likelihood, scale)), optimum(likelihood, scale))
            # A scale is learned, or computed, on other images than it is tested on.
            figures.append(about(f"{likelihood}, {scale}: distortion less its closed form at that scale", gap, 0, 30))
    return figures


def mean_error() -> Figure:
    """Of an autoencoder: where z isn't drawn, the distortion follows from the MSE of results.json."""

    def closed_form(folder: Path) -> float:
        return CONSTANT + PIXELS / 2 * result("test/mse", cell("gaussian", "fixed"))(folder)

    gap = less(result("test/distortion", cell("gaussian", "fixed")), closed_form)
    return about("gaussian, fixed: distortion less D(½ log 2π + ½ MSE)", gap, 0, 0.02)


def rescored(mapped: bool) -> Read:
    """ELBO under the continuous Bernoulli, its parameter in [1e-4, 1 - 1e-4], of the run trained by cross-entropy.

    Its decoder's output is taken for the parameter; or, if `mapped`, for the mean, of which the parameter is sought.
    """

    def read(folder: Path) -> float:
        import torch

        import vaex
        from vaex.build import load_config, load_dataset
        from vaex.evaluation.split import evaluating, fixed_noise
        from vaex.likelihoods.continuous_bernoulli import ContinuousBernoulliDistribution

        run = folder / "cross_entropy"
        model, dataset = vaex.load(run), load_dataset(load_config(run)[0].dataset)
        bound = math.log(1e4 - 1)
        grid = torch.linspace(-bound, bound, 200_001)
        means = ContinuousBernoulliDistribution(grid).mean
        total = 0.0
        with evaluating(model), fixed_noise(torch.device("cpu")):
            for start in range(0, len(dataset.test), 500):
                x = dataset.to_float(dataset.test.pixels[start : start + 500])
                posterior = model.encode(x)
                eta = torch.logit(model.decode(posterior.rsample(1)).mean[0].clamp(1e-7, 1 - 1e-7))
                if mapped:
                    eta = grid[torch.searchsorted(means, torch.sigmoid(eta)).clamp(max=len(grid) - 1)]
                log_prob = ContinuousBernoulliDistribution(eta.clamp(-bound, bound)).log_prob_of_pixels(x)
                total += float(log_prob.sum() - posterior.rate().sum())
        return total / len(dataset.test)

    return read


def three_ways(within: float, with_constant: float, without: float, mapped: float) -> list[Figure]:
    return [
        about(
            "test ELBO, trained with the constant", result("test/elbo", "continuous_bernoulli"), with_constant, within
        ),
        about("test ELBO, trained without it", rescored(mapped=False), without, within),
        about("test ELBO, trained without it, output taken for the mean", rescored(mapped=True), mapped, within),
    ]


def bits_per_dim(likelihood: str, value: float, within: float) -> Figure:
    return about(f"{likelihood}: bits/dim", result("test/bits_per_dim", f"likelihood={likelihood}"), value, within)


def elbo(scale: str) -> Read:
    return result("test/elbo", f"scale={scale}")


def sigma_over_error(folder: Path) -> float:
    """Above 1, since sigma is that of drawn z and the error that of its mean."""
    return result("test/likelihood_scale")(folder) / math.sqrt(result("test/mse")(folder))


NO_FID = ("--fid", "none")
QUICK = ["figures.kinds=[]"]
FEW_SPRITES = [
    "dataset.source.positions=4",
    "dataset.source.rotations=4",
    "dataset.source.test=500",
    "dataset.validation=500",
]
SIGMA_RULES = [
    above("ELBO, per image less shared", less(elbo("per_image"), elbo("shared")), 0),
    above("ELBO, per pixel less per image", less(elbo("per_pixel"), elbo("per_image")), 0),
    below("active units, optimal per pixel", result("test/active_units", "scale=optimal_per_pixel"), 5),
]

RECIPES = {
    "aevb_bernoulli": Recipe(epochs((148.437, 122.225, 119.317), (5, 3.5, 3.5))),
    "aevb_unit_gaussian": Recipe(epochs((27.051, 21.879, 21.301), (2, 1, 0.7), CONSTANT)),
    "aevb_gaussian": Recipe([below(f"training loss of epoch {n}", epoch(n), -800 + CONSTANT) for n in (1, 2, 3)]),
    "beckham_ae": Recipe(
        [mean_error(), *beckham("shared", "optimal")],
        sweep=True,
        small=["epochs=2"],  # in which a learned scale hasn't arrived
        small_figures=[mean_error(), *beckham("optimal")],
    ),
    "beckham_vae": Recipe(
        beckham("shared", "optimal"), sweep=True, small=["epochs=2"], small_figures=beckham("optimal")
    ),
    "bounded_likelihoods": Recipe(
        [
            about("cross-entropy: test ELBO", result("test/elbo", "likelihood=cross_entropy"), -113.6, 3),
            bits_per_dim("continuous_bernoulli", 3.1, 0.2),
            bits_per_dim("beta", 1.9, 0.2),
        ],
        sweep=True,
        evaluation=["--samples", "10", *NO_FID],
        small=["epochs=2"],
        small_figures=[
            about("cross-entropy: test ELBO", result("test/elbo", "likelihood=cross_entropy"), -125.9, 4),
            bits_per_dim("continuous_bernoulli", 3.5, 0.15),
            bits_per_dim("beta", 2.12, 0.15),
        ],
    ),
    "burgess_mnist": Recipe(
        # The source's distortion is of 32 × 32 pixels.
        [about("training loss of the last epoch", epoch(-1), 118.79 * 784 / 1024 + 19.69, 8)],
        small=["epochs=4", *QUICK],
        small_figures=[about("training loss of the last epoch, the fourth", epoch(-1), 110.2, 3)],
    ),
    "celeba_vit": Recipe(
        [below("test MSE", result("test/mse"), 0.026)],
        small=["dataset=sprites_rgb", *FEW_SPRITES, "steps=30", *QUICK],
        small_figures=[below("test MSE, sprites, 30 steps", result("test/mse"), 0.05)],
    ),
    "continuous_bernoulli_paper": Recipe(
        three_ways(60, 1470, 1139, 1416),
        runs=[("continuous_bernoulli", ()), ("cross_entropy", ("likelihood=cross_entropy", "~likelihood.bound"))],
        small=["epochs=3", *QUICK],
        small_figures=three_ways(40, 1440, 1148, 1430),
    ),
    "discretized_logistic_cifar10": Recipe(
        [Figure("bits/dim", result("test/bits_per_dim"), 2.8, 5.5)],
        evaluation=["--samples", "10", *NO_FID],
        small=["dataset=mnist", "architecture.widths=[8,16]", "architecture.groups=4", "steps=300", *QUICK],
        small_figures=[about("test ELBO, MNIST, 300 steps", result("test/elbo"), -820, 40)],
        small_evaluation=[],
    ),
    "family_ae": Recipe([about("test MSE", result("test/mse"), 0.058, 0.006)]),
    "family_cvae": Recipe(
        [above("share of samples that are of the class asked for", result("test/class_agreement"), 0.9)],
        evaluation=["--samples", "1", "--fid", "means"],
    ),
    "family_dae": Recipe(
        [below("MSE restored / MSE corrupted", ratio(result("test/mse_restored"), result("test/mse_corrupted")), 0.4)]
    ),
    "family_vae": Recipe([about("test ELBO", result("test/elbo"), -150.6, 4)]),
    "iwae_burda": Recipe(
        [about("test NLL, 5,000 draws", result("test/nll"), 84.78, 0.5)],
        evaluation=["--samples", "5000", *NO_FID],
        small=["objective.samples=5", "epochs=4", "schedule=constant", *QUICK],
        small_figures=[about("test NLL, 50 draws, 4 epochs", result("test/nll"), 104.5, 2)],
        small_evaluation=["--samples", "50", *NO_FID],
    ),
    "pythae_binary_mnist": Recipe(
        [about("test NLL, 200 draws", result("test/nll"), 89.78, 0.5)],
        evaluation=["--samples", "200", *NO_FID],
        small=["epochs=5", *QUICK],
        small_figures=[about("test NLL, 200 draws, 5 epochs", result("test/nll"), 105, 2)],
    ),
    "pytorch_example": Recipe([about("test ELBO", result("test/elbo"), -105.4, 0.7)]),
    "sigma_rules": Recipe(
        [about("ELBO, optimal less shared", less(elbo("optimal"), elbo("shared")), 0, 30), *SIGMA_RULES],
        sweep=True,
        small=["epochs=2"],  # in which a learned scale hasn't arrived
        small_figures=SIGMA_RULES,
    ),
    "sigma_vae": Recipe(
        [Figure("sigma / √(test MSE)", sigma_over_error, 0.95, 1.3)],
        small=["dataset=mnist", "epochs=1", *QUICK],
    ),
}


def run(name: str, small: bool, overrides: Sequence[str]) -> bool:
    """Train, evaluate, compare, write. Whether all figures are in their ranges."""
    recipe = RECIPES[name]
    cut = recipe.small if small else None
    figures, evaluation = recipe.figures, recipe.evaluation
    if cut is not None:
        figures = recipe.figures if recipe.small_figures is None else recipe.small_figures
        evaluation = evaluation if recipe.small_evaluation is None else recipe.small_evaluation
    suffix = "" if cut is None else "_small"
    folder = Path("outputs") / "reproduce" / f"{name}{suffix}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    started = time.monotonic()
    for part, own in recipe.runs:
        where = f"hydra.sweep.dir={folder}" if recipe.sweep else f"hydra.run.dir={folder / part}"
        vaex("train", *["-m"] * recipe.sweep, f"experiment={name}", *own, *(cut or ()), *overrides, where)
    if evaluation:
        vaex("eval", str(folder), *evaluation)
    minutes = (time.monotonic() - started) / 60
    command = shlex.join(["python", "scripts/reproduce.py", name, *["--small"] * (cut is not None), *overrides])
    good = True
    for figure in figures:
        got = figure.read(folder)
        within = figure.low <= got <= figure.high
        good &= within
        print(f"{'pass' if within else 'FAIL'}  {name}: {figure.title}: {got:.4g}, expected {figure.expected}")
        row = f"| `{command}` | {figure.title} | {figure.expected} | {got:.6g} | {'yes' if within else '**no**'} "
        add_row(row + f"| {minutes:.1f} | {machine()} |")
    return good


def vaex(*arguments: str) -> None:
    print(f"$ vaex {shlex.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "vaex", *arguments], check=True)


def add_row(row: str) -> None:
    text = RESULTS.read_text() if RESULTS.exists() else HEAD
    RESULTS.write_text(text + row + "\n")


def machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), PyTorch {torch.__version__.split('+')[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=sorted(RECIPES), metavar="NAME", help=", ".join(sorted(RECIPES)))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for vaex train")
    parser.add_argument("--small", action="store_true", help="cut down, where the recipe is long")
    parser.add_argument("--all-small", action="store_true")
    options = parser.parse_intermixed_args()
    if bool(options.name) == options.all_small:
        parser.error("give the name of a recipe, or --all-small")
    names = sorted(RECIPES) if options.all_small else [options.name]
    good = [run(name, options.small or options.all_small, options.overrides) for name in names]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
