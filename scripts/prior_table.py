"""Prior × beta × likelihood on MNIST: is a larger beta still better for samples when the prior is learned?

    python scripts/prior_table.py                                   # 144 runs of 5 epochs: hours on two CPU cores
    python scripts/prior_table.py --likelihoods gaussian --seeds 0  # 16 of them

All runs have the same network, optimizer, length and test split. Runs that are already in the folder are continued or
skipped. The script writes docs/prior_table.md and a plot of the FID against the rate, docs/figures/prior_fid.png, and
needs matplotlib: `pip install -e '.[plots]'`.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from likelihood_table import NETWORK, ROOT, UNIFORM, evaluate
from which_likelihood import COMMON, Cell, interval_table, train

OVERRIDES = {  # of each likelihood
    "gaussian": [UNIFORM],
    "discretized_logistic": [],
    "cross_entropy": [],
}
PRIORS = ["standard", "mixture", "vamp", "flow"]
BETAS = ["0.5", "1", "2", "4"]
COLUMNS = {  # heading: (key of results.json, digits)
    "bits/dim": ("test/bits_per_dim", 3),
    "distortion": ("test/distortion", 1),
    "rate": ("test/rate", 1),
    "FID": ("test/fid", 0),
    "FID from N(0, I)": ("test/fid_normal", 0),
    "reconstruction FID": ("test/fid_reconstruction", 1),
    "active units": ("test/active_units", 1),
}


def cells(folder: Path) -> list[Cell]:
    """The runs of a likelihood's sweep, a cell for each prior and beta."""
    runs: dict[tuple[str, float], list[Path]] = {}
    for path in folder.glob("*/results.json"):
        values = dict(part.split("=") for part in path.parent.name.split(","))
        runs.setdefault((values["prior"], float(values["beta"])), []).append(path.parent)
    order = sorted(runs, key=lambda key: (PRIORS.index(key[0]), key[1]))
    return [Cell(*key, runs[key], [results(run) for run in runs[key]]) for key in order]


def results(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "results.json").read_text())
    return content


def table(likelihood: str, rows: Sequence[Cell]) -> str:
    columns = {
        heading: column for heading, column in COLUMNS.items() if any(column[0] in cell.results[0] for cell in rows)
    }
    lines = interval_table(["prior", "beta"], columns, [((cell.name, f"{cell.beta:g}"), cell) for cell in rows])
    return f"## {likelihood}\n\n" + "\n".join(lines) + "\n"


def plot(tables: dict[str, list[Cell]], path: Path) -> None:
    """The FID of samples against the rate: a panel for each likelihood, a line for each prior."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(tables), figsize=(4.6 * len(tables), 4.2), squeeze=False, constrained_layout=True
    )
    for axes, (likelihood, rows) in zip(panels[0], tables.items(), strict=True):
        for n, prior in enumerate(PRIORS):
            own = [cell for cell in rows if cell.name == prior and cell.interval("test/fid")]
            rates, distances = ([(cell.interval(key) or (math.nan,))[0] for cell in own] for key in KEYS)
            axes.plot(rates, distances, marker="osD^"[n], label=prior)
            for cell, x, y in zip(own, rates, distances, strict=True):
                axes.annotate(f"{cell.beta:g}", (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.set(title=likelihood, xlabel="rate, nats", ylabel="FID of samples" if axes is panels[0][0] else "")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    panels[0][0].legend(title="prior; points: beta")
    figure.savefig(path, dpi=110)


KEYS = ("test/rate", "test/fid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--likelihoods", nargs="+", choices=list(OVERRIDES), default=list(OVERRIDES))
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samples", type=int, default=10, help="samples of z for the importance-weighted NLL")
    parser.add_argument("--workers", type=int, default=2, help="number of runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("outputs/priors"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "prior_table.md")
    arguments = parser.parse_args()
    steps = math.ceil(arguments.epochs * 55_000 / 128)
    tables = {}
    for likelihood in arguments.likelihoods:
        folder = arguments.folder / likelihood
        swept = [f"prior={','.join(PRIORS)}", f"beta={','.join(BETAS)}", f"seed={arguments.seeds}"]
        own = [f"likelihood={likelihood}", *OVERRIDES[likelihood], f"steps={steps}"]
        train(folder, [*swept, *own, *COMMON, f"sweep.workers={arguments.workers}"])
        evaluate(folder, arguments.samples, arguments.workers)
        tables[likelihood] = cells(folder)
    seeds = arguments.seeds.replace(",", ", ")
    text = (
        f"Written by `python scripts/prior_table.py`: MNIST, an MLP {NETWORK.rpartition('=')[2]} with 20 latents, "
        f"{arguments.epochs:g} epochs with a batch size of 128, seeds {seeds}. Samples come from the model's own "
        f"prior, and bits/dim from {arguments.samples} importance-weighted samples of z. ± is half the width of a 95 % "
        "confidence interval over the seeds.\n\n"
    )
    arguments.out.write_text(text + "\n".join(table(name, rows) for name, rows in tables.items()))
    plot(tables, arguments.out.parent / "figures" / "prior_fid.png")
    print(arguments.out)


if __name__ == "__main__":
    main()
