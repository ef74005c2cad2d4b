"""Run a recipe from conf/experiment, evaluate it, and compare its numbers with those expected from its source.

    python scripts/reproduce.py aevb_bernoulli        # as in its source
    python scripts/reproduce.py iwae_burda --small    # shortened to a few minutes on two CPU cores
    python scripts/reproduce.py --all-small           # every recipe, 17 minutes on two CPU cores
    python scripts/reproduce.py sigma_vae dataset.source.root=/data/svhn    # with overrides for vaex train

Each run adds its lines to docs/results.md. The exit code is 1 if a number is outside its expected range. A shortened
recipe has ranges of its own, which docs/results.md explains.
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
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results.md"
HEAD = """# Results of the recipes

Each line was written by the command in its first column, and compares one number with its expected range, in nats per
image unless stated otherwise. Where the source of a recipe publishes a number, the range surrounds it. For other
recipes, and for those shortened by `--small` to a few minutes on two CPU cores, the range follows from a formula, or
from an earlier run of this code and the differences between seeds. A recipe without a line has not been run in its
present form.

| command | quantity | expected | result | within | minutes | machine |
|---|---|---|---|---|---|---|
"""
PIXELS = 784
CONSTANT = PIXELS / 2 * math.log(2 * math.pi)  # of a unit Gaussian; the AEVB notebook drops it

Read = Callable[[Path], float]  # reads a number from the folder of a run or a sweep


@dataclass(frozen=True)
class Check:
    """A number and the range in which it is expected."""

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
    """How a recipe is run and checked.

    Args:
        checks: the numbers to compare after the run.
        runs: for each run, the name of its folder and its overrides of `vaex train experiment=NAME`.
        sweep: whether the recipe is a sweep.
        evaluation: arguments of `vaex eval`; empty if the metrics of training suffice.
        small: overrides that shorten the recipe; None if it takes a minute or two anyway.
        small_checks: the numbers to compare after a shortened run; None if they are the same.
        small_evaluation: arguments of `vaex eval` after a shortened run; None if they are the same.
    """

    checks: Sequence[Check]
    runs: Sequence[tuple[str, Sequence[str]]] = (("", ()),)
    sweep: bool = False
    evaluation: Sequence[str] = ()
    small: Sequence[str] | None = None
    small_checks: Sequence[Check] | None = None
    small_evaluation: Sequence[str] | None = None

    def shortened(self) -> "Recipe":
        """This recipe with --small: itself if it is short anyway."""
        if self.small is None:
            return self
        checks = self.checks if self.small_checks is None else self.small_checks
        evaluation = self.evaluation if self.small_evaluation is None else self.small_evaluation
        runs = [(name, (*overrides, *self.small)) for name, overrides in self.runs]
        return replace(self, checks=checks, evaluation=evaluation, runs=runs)


def result(key: str, run: str = "") -> Read:
    """Reads a key of results.json; `run` names the run's folder if the recipe has several."""
    return lambda folder: float(json.loads((folder / run / "results.json").read_text())[key])


def epoch(number: int, key: str = "train_epoch/loss") -> Read:
    """Reads a key of metrics.jsonl at an epoch, counted from 1; -1 is the last."""

    def read(folder: Path) -> float:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        values = [float(line[key]) for line in lines if key in line]
        return values[number if number < 0 else number - 1]

    return read


def difference(one: Read, other: Read) -> Read:
    return lambda folder: one(folder) - other(folder)


def ratio(one: Read, other: Read) -> Read:
    return lambda folder: one(folder) / other(folder)


def about(title: str, read: Read, value: float, within: float) -> Check:
    return Check(title, read, value - within, value + within)


def above(title: str, read: Read, low: float) -> Check:
    return Check(title, read, low, math.inf)


def below(title: str, read: Read, high: float) -> Check:
    return Check(title, read, -math.inf, high)


def epochs(values: Sequence[float], within: Sequence[float], add: float = 0.0) -> list[Check]:
    return [
        about(f"training loss of epoch {n}", epoch(n), value + add, tolerance)
        for n, (value, tolerance) in enumerate(zip(values, within, strict=True), 1)
    ]


def distortion_at_optimum(likelihood: str, scale: str) -> Read:
    """The distortion if the scale s is optimal: D(½ log 2πs² + ½) for a Gaussian, D(log 2s + 1) for a Laplace."""

    def read(folder: Path) -> float:
        s = result("test/likelihood_scale", cell(likelihood, scale))(folder)
        if likelihood == "gaussian":
            return PIXELS * (0.5 * math.log(2 * math.pi * s**2) + 0.5)
        return PIXELS * (math.log(2 * s) + 1)

    return read


def cell(likelihood: str, scale: str) -> str:
    return f"scale={scale},likelihood={likelihood}"


def beckham(*scales: str) -> list[Check]:
    checks = []
    for likelihood in ("gaussian", "laplace"):
        for scale in scales:
            distortion = result("test/distortion", cell(likelihood, scale))
            gap = difference(distortion, distortion_at_optimum(likelihood, scale))
            # Not 0, because the scale was learned or computed on training images.
            checks.append(about(f"{likelihood}, {scale}: distortion minus its closed form at that scale", gap, 0, 30))
    return checks


def mean_error() -> Check:
    """The distortion of an autoencoder follows from the MSE in results.json, because its z is not sampled."""

    def closed_form(folder: Path) -> float:
        return CONSTANT + PIXELS / 2 * result("test/mse", cell("gaussian", "fixed"))(folder)

    gap = difference(result("test/distortion", cell("gaussian", "fixed")), closed_form)
    return about("gaussian, fixed: distortion minus D(½ log 2π + ½ MSE)", gap, 0, 0.02)


def rescored(mapped: bool) -> Read:
    """ELBO of the run trained with cross-entropy, scored with the continuous Bernoulli, parameter in [1e-4, 1 - 1e-4].

    The decoder's output is used as the parameter, or, if `mapped`, as the mean, from which the parameter follows.
    """

    def read(folder: Path) -> float:
        import torch

        import vaex
        from vaex.build import load_config, load_dataset
        from vaex.evaluation.split import batches
        from vaex.likelihoods.continuous_bernoulli import ContinuousBernoulliDistribution

        run = folder / "cross_entropy"
        model, dataset = vaex.load(run), load_dataset(load_config(run)[0].dataset)
        bound = math.log(1e4 - 1)
        grid = torch.linspace(-bound, bound, 200_001)
        means = ContinuousBernoulliDistribution(grid).mean
        total = 0.0
        for batch in batches(model, dataset.test, dataset.to_float):
            posterior = model.encode(batch.x)
            eta = torch.logit(model.decode(posterior.rsample(1)).mean[0].clamp(1e-7, 1 - 1e-7))
            if mapped:
                eta = grid[torch.searchsorted(means, torch.sigmoid(eta)).clamp(max=len(grid) - 1)]
            log_prob = ContinuousBernoulliDistribution(eta.clamp(-bound, bound)).log_prob_of_pixels(batch.x)
            rate = model.latent_prior().rate(posterior)
            assert rate is not None
            total += float(log_prob.sum() - rate.sum())
        return total / len(dataset.test)

    return read


def three_ways(within: float, with_constant: float, without: float, mapped: float) -> list[Check]:
    return [
        about(
            "test ELBO, trained with the constant", result("test/elbo", "continuous_bernoulli"), with_constant, within
        ),
        about("test ELBO, trained without the constant", rescored(mapped=False), without, within),
        about(
            "test ELBO, trained without the constant, output used as the mean", rescored(mapped=True), mapped, within
        ),
    ]


def bits_per_dim(likelihood: str, value: float, within: float) -> Check:
    return about(f"{likelihood}: bits/dim", result("test/bits_per_dim", f"likelihood={likelihood}"), value, within)


def elbo(scale: str) -> Read:
    return result("test/elbo", f"scale={scale}")


def sigma_over_error(folder: Path) -> float:
    """Above 1, because sigma covers the errors of sampled z, and the MSE is the error at the mean of z."""
    return result("test/likelihood_scale")(folder) / math.sqrt(result("test/mse")(folder))


def total_correlation(run: str) -> Read:
    return result("test/total_correlation", run)


def nll(run: str) -> Read:
    return result("test/nll", run)


def fid_ratio(one: str, other: str) -> Read:
    return ratio(result("test/fid", one), result("test/fid", other))


def negative_elbo(folder: Path) -> float:
    return -result("test/elbo")(folder)


NO_FID = ("--fid", "none")
QUICK = ["figures.kinds=[]"]
HELD_OUT = ["dataset.source.test=500", "dataset.validation=500"]
FEW_SPRITES = [
    "dataset.source.positions=4",
    "dataset.source.rotations=4",
    *HELD_OUT,
]
SOME_SPRITES = ["dataset.source.positions=8", "dataset.source.rotations=8", *HELD_OUT]
SMALL_LADDER = [
    "dataset=mnist",
    "architecture.widths=[16,32]",
    "architecture.groups=[1,1]",
    "architecture.depth=1",
    "likelihood.components=2",
    "objective.warmup=0",
    "precision=float32",
    "trainer.ema=0.98",
]
RECIPES = {
    "aevb_bernoulli": Recipe(epochs((148.437, 122.225, 119.317), (5, 3.5, 3.5))),
    "aevb_unit_gaussian": Recipe(epochs((27.051, 21.879, 21.301), (2, 1, 0.7), CONSTANT)),
    "aevb_gaussian": Recipe([below(f"training loss of epoch {n}", epoch(n), -800 + CONSTANT) for n in (1, 2, 3)]),
    "beckham_ae": Recipe(
        [mean_error(), *beckham("shared", "optimal")],
        sweep=True,
        small=["epochs=2"],  # too few for a learned scale to converge
        small_checks=[mean_error(), *beckham("optimal")],
    ),
    "beckham_vae": Recipe(
        beckham("shared", "optimal"), sweep=True, small=["epochs=2"], small_checks=beckham("optimal")
    ),
    "beta_tc_sprites": Recipe(
        [
            below(
                "total correlation, beta_tc / vae with beta 6",
                ratio(total_correlation("tc"), total_correlation("vae")),
                1,
            ),
            above(
                "ELBO, beta_tc minus vae with beta 6",
                difference(result("test/elbo", "tc"), result("test/elbo", "vae")),
                0,
            ),
        ],
        runs=[("tc", ()), ("vae", ("objective=vae", "~objective.tc", "beta=6"))],
        evaluation=["--samples", "0", *NO_FID],
        small=[*SOME_SPRITES, "steps=600", *QUICK],
    ),
    "bounded_likelihoods": Recipe(
        [
            about("cross-entropy: test ELBO", result("test/elbo", "likelihood=cross_entropy"), -113.6, 3),
            bits_per_dim("continuous_bernoulli", 2.4, 0.2),
            bits_per_dim("beta", 1.9, 0.2),
        ],
        sweep=True,
        evaluation=["--samples", "10", *NO_FID],
        small=["epochs=2"],
        small_checks=[
            about("cross-entropy: test ELBO", result("test/elbo", "likelihood=cross_entropy"), -125.9, 4),
            bits_per_dim("continuous_bernoulli", 3.03, 0.15),
            bits_per_dim("beta", 2.17, 0.15),
        ],
    ),
    "burgess_mnist": Recipe(
        # The source sums the distortion over 32 × 32 pixels.
        [about("training loss of the last epoch", epoch(-1), 118.79 * 784 / 1024 + 19.69, 8)],
        small=["epochs=4", *QUICK],
        small_checks=[about("training loss of the last epoch, the fourth", epoch(-1), 110.2, 3)],
    ),
    "celeba_vit": Recipe(
        [below("test MSE", result("test/mse"), 0.026)],
        small=["dataset=sprites_rgb", *FEW_SPRITES, "steps=30", *QUICK],
        small_checks=[below("test MSE, sprites, 30 steps", result("test/mse"), 0.05)],
    ),
    "continuous_bernoulli_paper": Recipe(
        three_ways(60, 1470, 1139, 1416),
        runs=[("continuous_bernoulli", ()), ("cross_entropy", ("likelihood=cross_entropy", "~likelihood.bound"))],
        small=["epochs=3", *QUICK],
        small_checks=three_ways(40, 1440, 1148, 1430),
    ),
    "discretized_logistic_cifar10": Recipe(
        [Check("bits/dim", result("test/bits_per_dim"), 2.8, 5.5)],
        evaluation=["--samples", "10", *NO_FID],
        small=["dataset=mnist", "architecture.widths=[8,16]", "architecture.groups=4", "steps=300", *QUICK],
        small_checks=[about("test ELBO, MNIST, 300 steps", result("test/elbo"), -820, 40)],
        small_evaluation=[],
    ),
    "family_ae": Recipe([about("test MSE", result("test/mse"), 0.058, 0.006)]),
    "family_cvae": Recipe(
        [above("share of samples of the requested class", result("test/class_agreement"), 0.9)],
        evaluation=["--samples", "1", "--fid", "means"],
    ),
    "family_dae": Recipe(
        [below("MSE restored / MSE corrupted", ratio(result("test/mse_restored"), result("test/mse_corrupted")), 0.4)]
    ),
    "family_vae": Recipe([about("test ELBO", result("test/elbo"), -150.6, 4)]),
    "iaf": Recipe(
        [
            about("test NLL, iaf, 1,000 samples", nll("iaf"), 95.33, 1),
            about("test NLL, diagonal, 1,000 samples", nll("diagonal"), 97.1, 1),
        ],
        runs=[("iaf", ()), ("diagonal", ("posterior=diagonal",))],
        evaluation=["--samples", "1000", *NO_FID],
        small=["epochs=5", *QUICK],
        small_checks=[about("test NLL, iaf minus diagonal, 5 epochs", difference(nll("iaf"), nll("diagonal")), 0.3, 1)],
        small_evaluation=["--samples", "200", *NO_FID],
    ),
    "iwae_burda": Recipe(
        [about("test NLL, 5,000 samples", result("test/nll"), 84.78, 0.5)],
        evaluation=["--samples", "5000", *NO_FID],
        small=["objective.samples=5", "epochs=4", "schedule=constant", *QUICK],
        small_checks=[about("test NLL, 50 samples, 4 epochs", result("test/nll"), 104.5, 2)],
        small_evaluation=["--samples", "50", *NO_FID],
    ),
    "ladder_cifar10": Recipe(
        [Check("bits/dim", result("test/bits_per_dim"), 2.8, 3.7)],
        evaluation=["--samples", "10", *NO_FID],
        small=[*SMALL_LADDER, "steps=200", *QUICK],
        small_checks=[about("test ELBO, MNIST, 200 steps", result("test/elbo"), -990, 40)],
        small_evaluation=[],
    ),
    "ladder_mnist": Recipe(
        [about("negative test ELBO", negative_elbo, 83.9, 0.7)],
        small=["steps=600", "objective.warmup=150", *QUICK],
        small_checks=[below("negative test ELBO, 600 steps", negative_elbo, 113)],
    ),
    "pythae_binary_mnist": Recipe(
        [about("test NLL, 200 samples", result("test/nll"), 89.78, 0.5)],
        evaluation=["--samples", "200", *NO_FID],
        small=["epochs=5", *QUICK],
        small_checks=[about("test NLL, 200 samples, 5 epochs", result("test/nll"), 105, 2)],
    ),
    "pytorch_example": Recipe([about("test ELBO", result("test/elbo"), -105.4, 0.7)]),
    "rae_l2": Recipe(
        [below("FID of samples, rae from a mixture / vae from its prior", fid_ratio("rae", "vae"), 1)],
        runs=[("rae", ()), ("vae", ("objective=vae", "~objective.code", "~objective.decoder"))],
        evaluation=["--samples", "0", "--fid", "means"],
        small=["epochs=3", *QUICK],
    ),
    "sigma_rules": Recipe(
        [
            about("ELBO, optimal minus shared", difference(elbo("optimal"), elbo("shared")), 0, 30),
            above("ELBO, per image minus shared", difference(elbo("per_image"), elbo("shared")), 0),
            above("ELBO, per pixel minus per image", difference(elbo("per_pixel"), elbo("per_image")), 0),
            # Worse than the mean image of the training split, which has an MSE of 0.0675.
            above("test MSE, optimal per pixel", result("test/mse", "scale=optimal_per_pixel"), 0.0675),
        ],
        sweep=True,
        small=["epochs=2"],
    ),
    "sigma_vae": Recipe(
        [Check("sigma / √(test MSE)", sigma_over_error, 0.95, 1.3)],
        small=["dataset=mnist", "epochs=1", *QUICK],
    ),
    "vamp_mnist": Recipe(
        [about("test NLL, vamp, 5,000 samples", result("test/nll", "vamp"), 85.79, 0.7)],
        runs=[("vamp", ()), ("standard", ("prior=standard", "~prior.components"))],
        evaluation=["--samples", "5000", *NO_FID],
        small=["epochs=5", "objective.warmup=1000", *QUICK],
        small_checks=[below("test NLL, vamp minus standard", difference(nll("vamp"), nll("standard")), 0)],
        small_evaluation=["--samples", "200", *NO_FID],
    ),
    "vdvae_small": Recipe(
        [Check("bits/dim", result("test/bits_per_dim"), 2.8, 3.5)],
        evaluation=["--samples", "10", *NO_FID],
        small=[*SMALL_LADDER, "steps=200", *QUICK],
        small_checks=[about("test ELBO, MNIST, 200 steps", result("test/elbo"), -1006, 40)],
        small_evaluation=[],
    ),
    "wae_mmd": Recipe(
        [below("FID of samples, mmd / vae", fid_ratio("mmd", "vae"), 1)],
        runs=[("mmd", ()), ("vae", ("objective=vae", "~objective.mmd", "~objective.kernel", "beta=1"))],
        evaluation=["--samples", "0", "--fid", "means"],
        small=["epochs=3", *QUICK],
        small_checks=[about("FID of samples, mmd / vae, 3 epochs", fid_ratio("mmd", "vae"), 1, 0.2)],
    ),
}


def run(name: str, small: bool, overrides: Sequence[str]) -> bool:
    """Train, evaluate, compare and record. Returns whether every number is within its range."""
    recipe = RECIPES[name].shortened() if small else RECIPES[name]
    small = small and recipe.small is not None
    folder = Path("outputs") / "reproduce" / f"{name}{'_small' if small else ''}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    started = time.monotonic()
    for part, own in recipe.runs:
        target = f"hydra.sweep.dir={folder}" if recipe.sweep else f"hydra.run.dir={folder / part}"
        vaex("train", *["-m"] * recipe.sweep, f"experiment={name}", *own, *overrides, target)
    if recipe.evaluation:
        vaex("eval", str(folder), *recipe.evaluation)
    minutes = (time.monotonic() - started) / 60
    command = shlex.join(["python", "scripts/reproduce.py", name, *["--small"] * small, *overrides])
    passed = True
    for check in recipe.checks:
        value = check.read(folder)
        within = check.low <= value <= check.high
        passed &= within
        print(f"{'pass' if within else 'FAIL'}  {name}: {check.title}: {value:.4g}, expected {check.expected}")
        row = f"| `{command}` | {check.title} | {check.expected} | {value:.6g} | {'yes' if within else '**no**'} "
        add_row(row + f"| {minutes:.1f} | {machine()} |")
    return passed


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
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides for vaex train")
    parser.add_argument("--small", action="store_true", help="shorten the recipe if it is long")
    parser.add_argument("--all-small", action="store_true", help="run every recipe with --small")
    options = parser.parse_intermixed_args()
    if bool(options.name) == options.all_small:
        parser.error("give either the name of a recipe or --all-small")
    names = sorted(RECIPES) if options.all_small else [options.name]
    passed = [run(name, options.small or options.all_small, options.overrides) for name in names]
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
