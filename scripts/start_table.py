"""Every likelihood × scale rule from two starts, after several lengths of training; writes docs/start_table.md.

    python scripts/start_table.py                            # about two hours on two CPU cores
    python scripts/start_table.py --lengths 50 --sprites 50  # a quick trial

The first two tables are of MNIST: bits/dim as vaex trained before it fitted the start, gave learned scales a learning
rate of their own and derived the floors, and bits/dim as it trains now. The third is of another kind of images, sprites
of 32 × 32 pixels with gray edges: 9 settings × 2 seeds, from start=data and from start=zero. It says whether the start
changes the order of the settings. Runs that are already in the folder are not repeated, so use another folder after a
change of the code.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from fairness import SETTINGS, UNIFORM, table, train
from likelihood_table import ROOT, settings

from vaex.evaluation.bound import evaluate, freeze_scales
from vaex.evaluation.measure import Evaluation
from vaex.evaluation.split import evenly_spaced

SEEDS = (0, 1)  # of sprites
LENGTHS = (300, 1000, 5000)  # training steps
SLOW = {"discretized_logistic_mixture": 300, "categorical": 300}  # their longest run: a step takes 0.3 s or more
FAMILIES = ("gaussian", "laplace", "logistic", "student_t")
FLOORS = {  # of the version before, where they are not 1/255
    "beta": "likelihood.cap=1000",
    "continuous_bernoulli": "likelihood.bound=100",
    "discretized_logistic_mixture": "likelihood.floor=0.0005",
}
WITHOUT_SCALE = {"categorical", "bernoulli", *FLOORS}
SPRITES = [
    "dataset=sprites",
    "dataset.source.size=32",
    "dataset.source.positions=16",
    "dataset.source.antialias=true",
]
HELD_OUT = SETTINGS | {
    "truncated normal, shared": ["likelihood=truncated_normal", UNIFORM],
    "discretized logistic, per pixel": ["likelihood=discretized_logistic", "likelihood/scale=per_pixel"],
}


@dataclass(frozen=True)
class Run:
    """One run of a table; `key` identifies it in the file of results."""

    key: str
    overrides: Sequence[str]
    steps: int
    seed: int = 0


def before(name: str) -> list[str]:
    """The overrides that restore the start, the learning rate of the scale and the floor of the version before."""
    restored = ["start=zero"]
    if name in FLOORS:
        restored.append(FLOORS[name])
    if name not in WITHOUT_SCALE and not name.endswith("-fixed"):
        restored.append(f"likelihood.scale.floor={1 / 255}")
    if name.endswith(("-shared", "-per_dimension", "-shared-bins")):
        restored.append("likelihood.scale.lr=null")
    return restored


def mnist_runs(lengths: Sequence[int]) -> list[Run]:
    """The shortest runs first, and of each length the slow ones, so that no process is left with one at the end."""
    return [
        Run(f"mnist {name} {version} {steps}", [*overrides, *restored], steps)
        for steps in sorted(lengths)
        for name, overrides in sorted(settings().items(), key=lambda item: item[0] not in SLOW)
        for version, restored in (("before", before(name)), ("now", []))
        if name != "cross_entropy" and steps <= SLOW.get(name, steps)  # cross-entropy has no bits/dim
    ]


def sprites_runs(steps: int) -> list[Run]:
    return [
        Run(f"sprites {name} {start} {seed} {steps}", [*SPRITES, *overrides, f"start={start}"], steps, seed)
        for name, overrides in HELD_OUT.items()
        for start in ("data", "zero")
        for seed in SEEDS
    ]


def measure(run: Run) -> float:
    """Train and test one run: bits/dim of the ELBO of 2,000 test images."""
    torch.set_num_threads(1)
    experiment = train([*run.overrides], run.steps, run.seed)
    model, data = experiment.model, experiment.dataset
    freeze_scales(model, data.train, data.to_float)
    evaluation = Evaluation(model=model, objective=experiment.objective, dataset=data)
    elbo: Any = evaluate(evaluation, data.test[evenly_spaced(data.test, 2000)])["elbo"]
    return float(-elbo / math.prod(data.image_shape) / math.log(2) + (8 if model.likelihood.kind == "density" else 0))


def measure_all(runs: Sequence[Run], results: Path, workers: int) -> dict[str, float]:
    """bits/dim of every run by its key, from the file of results or measured and added to it."""
    bits = dict(json.loads(line) for line in results.read_text().splitlines()) if results.exists() else {}
    results.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(measure, run): run.key for run in runs if run.key not in bits}
        try:
            for number, job in enumerate(as_completed(jobs), 1):
                key = jobs[job]
                bits[key] = job.result()
                with results.open("a") as file:
                    file.write(json.dumps([key, bits[key]]) + "\n")
                print(f"{number}/{len(jobs)}  {key}: {bits[key]:.4f} bits/dim", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # otherwise every other run would still be made, and be lost
            raise
    return bits


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def mnist_tables(bits: dict[str, float], lengths: Sequence[int]) -> list[str]:
    """bits/dim of every setting before and now, and how far a shared scale is behind the optimal one."""

    def value(name: str, version: str, steps: int) -> float | None:
        return bits.get(f"mnist {name} {version} {steps}")

    rows, distances = [], []
    for name in settings():
        pairs = [(value(name, "before", steps), value(name, "now", steps)) for steps in lengths]
        if any(now is not None for _, now in pairs):
            rows.append([name, *(number(bits) for pair in pairs for bits in pair)])
    for family in FAMILIES:
        row = [family]
        for steps in lengths:
            for version in ("before", "now"):
                shared, optimal = (value(f"{family}-{rule}", version, steps) for rule in ("shared", "optimal"))
                row.append("–" if shared is None or optimal is None else f"{shared - optimal:+.3f}")
        distances.append(row)
    headings = [f"{steps:,} steps, {version}" for steps in lengths for version in ("before", "now")]
    return [table(["setting", *headings], rows), table(["family", *headings], distances)]


def sprites_table(bits: dict[str, float], steps: int) -> tuple[str, list[str]]:
    """The table of sprites, and the pairs of settings that change places with the start.

    Two settings have an order only where the ranges over their seeds do not overlap.
    """
    starts = ("data", "zero")
    values = {
        (name, start): [bits[f"sprites {name} {start} {seed} {steps}"] for seed in SEEDS]
        for name in HELD_OUT
        for start in starts
    }
    rows: dict[str, list[str]] = {name: [name] for name in HELD_OUT}
    for start in starts:
        order = sorted(HELD_OUT, key=lambda name: statistics.mean(values[name, start]))  # noqa: B023
        for name in HELD_OUT:
            seeds = values[name, start]
            place, spread = str(order.index(name) + 1), max(seeds) - min(seeds)
            rows[name] += [place, f"{statistics.mean(seeds):.3f}", f"{spread:.3f}"]
    swapped = [
        f"{one} and {other}"
        for one, other in permutations(HELD_OUT, 2)
        if max(values[one, "data"]) < min(values[other, "data"])
        and min(values[one, "zero"]) > max(values[other, "zero"])
    ]
    headings = [f"{heading}, start={start}" for start in starts for heading in ("place", "bits/dim", "range")]
    in_order = sorted(rows.values(), key=lambda row: int(row[1]))
    return table(["setting", *headings], in_order), swapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="training steps of the runs on MNIST")
    parser.add_argument("--sprites", type=int, default=2000, help="training steps of the runs on sprites")
    parser.add_argument("--workers", type=int, default=2, help="number of runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("outputs/starts"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "start_table.md")
    arguments = parser.parse_args()
    lengths = sorted(arguments.lengths)

    runs = [*sprites_runs(arguments.sprites), *mnist_runs(lengths)]
    bits = measure_all(runs, arguments.folder / "bits.jsonl", arguments.workers)
    changes, distances = mnist_tables(bits, lengths)
    sprites, swapped = sprites_table(bits, arguments.sprites)
    text = f"""# Where a model starts, and what it changes

Written by `python scripts/start_table.py`. All runs train an MLP with 400 hidden units and 20 latents at beta 1, with a
batch size of 128 and the default optimizer and schedule. bits/dim follow from the ELBO of 2,000 test images. `before`
is `start=zero likelihood.scale.lr=null likelihood.scale.floor=0.00392156862745098`, or the old bound of a likelihood
without a scale: a scale starts at 0.3, a location at gray or black, a learned scale moves at the learning rate of the
network, and every floor is 1/255. `now` is the default.

## MNIST

bits/dim, seed 0. A dash stands for a run that was not made.

{changes}
## A learned scale against the optimal one

bits/dim of `shared` minus bits/dim of `optimal`.

{distances}
## Another kind of images

Sprites of 32 × 32 pixels with gray edges, {arguments.sprites:,} steps, means of two seeds and the range over them.
Two settings have an order only where the ranges of their seeds do not overlap. Settings that change places with the
start: {"; ".join(swapped) or "none"}.

{sprites}"""
    arguments.out.write_text(text)
    print(arguments.out)
    sys.exit(bool(swapped))


if __name__ == "__main__":
    main()
