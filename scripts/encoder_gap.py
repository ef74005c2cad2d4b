"""How much of a run's score is its encoder's: the bits/dim from the encoder's posterior and from a fitted one.

    python scripts/encoder_gap.py           # runs of scripts/which_likelihood.py, some ten minutes on two CPU cores
    python scripts/encoder_gap.py RUN RUN   # other runs

Runs without bits/dim are left out. The script writes docs/encoder_gap.md.
"""

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from fairness import table
from likelihood_table import ROOT

from vaex.build import load_model
from vaex.config.create import create
from vaex.config.schema import restore_config
from vaex.evaluation.bits import SAMPLES, scored_pixels, scored_to_float
from vaex.evaluation.importance import importance_nll
from vaex.evaluation.measure import Evaluation
from vaex.evaluation.split import evenly_spaced
from vaex.runs.folder import RunFolder

ESTIMATES = [("encoder", 10), ("encoder", SAMPLES["encoder"]), ("fitted", SAMPLES["fitted"])]


def measure(run: Path, images: int) -> list[float] | None:
    """bits/dim by each of ESTIMATES, and how much higher the last is with half the samples; None without a bound."""
    torch.set_num_threads(1)
    config, recorded = RunFolder(run).read_config()
    config, model = restore_config(config), load_model(run, "cpu")
    dataset = create("dataset", config.dataset)
    if not model.stochastic or not scored_pixels(model.likelihood, dataset):
        return None
    evaluation = Evaluation(model, create("objective", config.objective), dataset)
    vars(evaluation)["images"] = dataset.test[evenly_spaced(dataset.test, images)]  # instead of the whole split
    nats_per_bit = math.prod(dataset.image_shape) * math.log(2)
    level = 8 if model.likelihood.kind == "density" else 0
    estimates = [
        importance_nll(evaluation, scored_to_float(evaluation), samples, fitted=posterior == "fitted")
        for posterior, samples in ESTIMATES
    ]
    return [estimate.nll / nats_per_bit + level for estimate in estimates] + [estimates[-1].halving / nats_per_bit]


def name_of(run: Path) -> str:
    """The likelihood, its scale rule, and the end of the path."""
    choices = RunFolder(run).read_config()[1]["choices"]
    name = "/".join(filter(None, [choices["likelihood"], choices.get("likelihood/scale")]))
    return f"{name} ({run.parent.name}/{run.name})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="*", type=Path, help="default: those of which_likelihood.py with beta 1 and seed 0"
    )
    parser.add_argument("--images", type=int, default=1000, help="of the test split")
    parser.add_argument("--jobs", type=int, default=2, help="runs that are measured at once, with one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "encoder_gap.md")
    arguments = parser.parse_args()
    runs = arguments.runs or sorted((ROOT / "outputs" / "which_likelihood").glob("*/*beta=1,*seed=0"))
    if not runs:
        parser.error("there are no runs in outputs/which_likelihood; make them by scripts/which_likelihood.py")
    rows = []
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        measured = pool.map(measure, runs, [arguments.images] * len(runs))
        for run, numbers in zip(runs, measured, strict=True):
            if numbers is not None:
                rows.append((name_of(run), numbers))
                print(rows[-1][0], *(f"{number:.4f}" for number in numbers), sep="  ", flush=True)
    rows.sort(key=lambda row: row[1][1])
    headings = [f"{samples} samples, {posterior}" for posterior, samples in ESTIMATES]
    lines = [
        [name, *(f"{number:.3f}" for number in numbers[:-1]), f"{numbers[1] - numbers[2]:.3f}", f"{numbers[-1]:.4f}"]
        for name, numbers in rows
    ]
    page = f"""# How much of a score is the encoder's

`python scripts/encoder_gap.py` computes bits/dim of {arguments.images:,} test images from samples of the encoder's
posterior and of a posterior that is [fitted to each
image](numbers.md#the-proposal-distribution-of-the-nll). The difference is that of the two
columns before it: at least so much of the score comes from the encoder and from having few samples. The last column
says how much higher the fitted score is with half of its samples, which shows how much more samples could change.

{table(["run", *headings, "difference", "halving"], lines)}
"""
    arguments.out.write_text(page)


if __name__ == "__main__":
    main()
