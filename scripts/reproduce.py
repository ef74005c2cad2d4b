"""Run a recipe of conf/experiment, evaluate it, and compare what it gives with what its source leads to expect.

    python scripts/reproduce.py aevb_bernoulli        # as its source has it
    python scripts/reproduce.py iwae_burda --small    # cut down to what two CPU cores do in minutes
    python scripts/reproduce.py --all-small           # all of them

Each run adds its line to docs/results.md. The exit code is 1 if a figure is out of its range. A cut-down recipe has a
range of its own, which says what this code gave, and no more.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results.md"
HEAD = """# What the recipes gave

Each line was written by the command in it. *small* is a recipe cut down to minutes on two CPU cores; its range is what
this code gave before, not its source's. Nats per image, unless said otherwise.

| command | figure | expected | got | within | minutes | on |
|---|---|---|---|---|---|---|
"""
CONSTANT = 784 / 2 * math.log(2 * math.pi)  # which the AEVB notebook drops


@dataclass(frozen=True)
class Figure:
    """A number to compare. `key` of results.json, or of metrics.jsonl with the how-manieth value of it from 0."""

    title: str
    key: str
    low: float
    high: float
    at: int | None = None

    @property
    def expected(self) -> str:
        if math.isinf(self.low):
            return f"< {self.high:g}"
        return f"{(self.low + self.high) / 2:.6g} ± {(self.high - self.low) / 2:.3g}"


def about(title: str, key: str, value: float, within: float, at: int | None = None) -> Figure:
    return Figure(title, key, value - within, value + within, at)


@dataclass(frozen=True)
class Recipe:
    """`evaluation`: arguments of `vaex eval`; None for no evaluation. `small`: overrides that cut it down."""

    figures: Sequence[Figure]
    evaluation: Sequence[str] | None = None
    overrides: Sequence[str] = ()
    small: Sequence[str] | None = None
    small_figures: Sequence[Figure] = ()


def epochs(values: Sequence[float], within: Sequence[float], add: float = 0.0) -> list[Figure]:
    return [
        about(f"training loss of epoch {n + 1}", "train_epoch/loss", value + add, tolerance, at=n)
        for n, (value, tolerance) in enumerate(zip(values, within, strict=True))
    ]


RECIPES = {
    "aevb_bernoulli": Recipe(epochs((148.437, 122.225, 119.317), (5, 3.5, 3.5))),
    "aevb_unit_gaussian": Recipe(epochs((27.051, 21.879, 21.301), (2, 1, 0.7), CONSTANT)),
    "aevb_gaussian": Recipe(
        [Figure(f"training loss of epoch {n + 1}", "train_epoch/loss", -math.inf, -80, n) for n in range(3)]
    ),
    "pytorch_example": Recipe([about("test ELBO", "test/elbo", -105.4, 0.7)]),
    "pythae_binary_mnist": Recipe(
        [about("test NLL, 200 draws", "test/nll", 89.78, 0.5)], evaluation=["--samples", "200", "--fid", "none"]
    ),
}


def run(name: str, recipe: Recipe, small: bool) -> bool:
    """Train, evaluate, compare, write. Whether all figures are in their ranges."""
    if small and recipe.small is not None:
        recipe = replace(recipe, overrides=recipe.small, figures=recipe.small_figures)
    else:
        small = False
    folder = Path("outputs") / "reproduce" / f"{name}{'_small' * small}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    started = time.monotonic()
    vaex("train", f"experiment={name}", *recipe.overrides, f"hydra.run.dir={folder}")
    if recipe.evaluation is not None:
        vaex("eval", str(folder), *recipe.evaluation)
    minutes = (time.monotonic() - started) / 60
    command = f"`python scripts/reproduce.py {name}{' --small' * small}`"
    good = True
    for figure in recipe.figures:
        got = read(folder, figure)
        within = figure.low <= got <= figure.high
        good &= within
        print(f"{'pass' if within else 'FAIL'}  {name}: {figure.title}: {got:.2f}, expected {figure.expected}")
        row = f"| {command} | {figure.title} | {figure.expected} | {got:.2f} | {'yes' if within else '**no**'} "
        add_row(row + f"| {minutes:.1f} | {machine()} |")
    return good


def vaex(*arguments: str) -> None:
    print(f"$ vaex {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "vaex", *arguments], check=True)


def read(folder: Path, figure: Figure) -> float:
    if figure.at is None:
        return float(json.loads((folder / "results.json").read_text())[figure.key])
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return float([line[figure.key] for line in lines if figure.key in line][figure.at])


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
    parser.add_argument("name", nargs="?", choices=sorted(RECIPES))
    parser.add_argument("--small", action="store_true", help="cut down, where the recipe is long")
    parser.add_argument("--all-small", action="store_true")
    options = parser.parse_args()
    if bool(options.name) == options.all_small:
        parser.error("give the name of a recipe, or --all-small")
    names = sorted(RECIPES) if options.all_small else [options.name]
    good = [run(name, RECIPES[name], options.small or options.all_small) for name in names]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
