"""Likelihood × scale × beta on MNIST with three seeds: the runs and tables behind docs/which-likelihood.md.

    python scripts/which_likelihood.py                          # 159 runs of 5 epochs: about an hour on two CPU cores
    python scripts/which_likelihood.py --epochs 0.1 --seeds 0   # a quick trial

All runs have the same network, optimizer, length and test split. Runs that are already in the folder are continued or
skipped. The script writes docs/which_likelihood_table.md and four plots, docs/figures/which_likelihood_*.png, and needs
matplotlib: `pip install -e '.[plots]'`. `vaex report outputs/which_likelihood` puts all runs on one page.
"""

import argparse
import io
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likelihood_table import NETWORK, ROOT, UNIFORM, evaluate

from vaex.report.statistics import student_t_quantile

TWO, FEW, MANY = "beta=1,4", "beta=0.25,1,4", "beta=0.25,1,2,4,8"
COMMON = [
    NETWORK,
    "trainer.threads=1",
    "trainer.validate_every=1000",
    "trainer.checkpoint_every=1000",
    "figures.every=1000",
]
SWEEPS = {
    "learned": [
        "likelihood=gaussian,laplace",
        "likelihood/scale=shared,per_image,per_pixel,optimal",
        UNIFORM,
        FEW,
    ],
    "fixed": ["likelihood=gaussian", "likelihood/scale=fixed", "likelihood.scale.value=1.0,0.1", UNIFORM, FEW],
    "fixed_laplace": ["likelihood=laplace", "likelihood/scale=fixed", "likelihood.scale.value=1.0", UNIFORM, FEW],
    "continuous_bernoulli": ["likelihood=continuous_bernoulli", UNIFORM, MANY],
    "cross_entropy": ["likelihood=cross_entropy", MANY],
    "discretized": ["likelihood=discretized_logistic", "likelihood/scale=shared,per_pixel", TWO],
    "bounded": ["likelihood=beta,truncated_normal", UNIFORM, TWO],
    # The parameter is clipped to [1e-4, 1 - 1e-4], as in the code of the continuous Bernoulli's authors.
    "clipped": ["likelihood=continuous_bernoulli", "likelihood.bound=9.21", UNIFORM, TWO],
}


def train(folder: Path, overrides: Sequence[str]) -> None:
    target = f"sweep={folder}" if (folder / "sweep.json").exists() else f"hydra.sweep.dir={folder}"
    command = [sys.executable, "-m", "vaex", "train", "-m", target, *overrides]
    print("$", *command[1:], flush=True)
    subprocess.run(command, check=True)


@dataclass(frozen=True)
class Cell:
    """The runs of one setting, which differ only in the seed."""

    name: str
    beta: float
    folders: Sequence[Path]
    results: Sequence[dict[str, Any]]

    def interval(self, key: str) -> tuple[float, float] | None:
        """Mean over the seeds and half the width of its 95 % confidence interval (Student's t); None without values."""
        values = [float(result[key]) for result in self.results if result.get(key) is not None]
        if not values:
            return None
        if len(values) < 2:
            return values[0], math.nan
        t = student_t_quantile(len(values) - 1)
        return statistics.mean(values), t * statistics.stdev(values) / math.sqrt(len(values))


def cells(folder: Path) -> list[Cell]:
    """Every setting, in the order of SWEEPS, their options and beta."""
    runs: dict[tuple[str, float], list[Path]] = {}  # (setting, beta): run folders
    for sweep in SWEEPS:
        plan = json.loads((folder / sweep / "sweep.json").read_text())
        constant = {key.rpartition("/")[2].rpartition(".")[2]: value for key, value in plan["constant"].items()}
        for job in plan["jobs"]:
            values = constant | dict(part.split("=") for part in job.split(","))
            runs.setdefault((setting(values), float(values["beta"])), []).append(folder / sweep / job)
    positions = {key: n for n, key in enumerate(runs)}
    return [
        Cell(name, beta, runs[name, beta], [json.loads((run / "results.json").read_text()) for run in runs[name, beta]])
        for name, beta in sorted(runs, key=lambda key: (positions[key[0], 1.0], key[1]))
    ]


def setting(values: dict[str, str]) -> str:
    """The name of a setting in tables and plots, such as "gaussian, fixed 0.1"."""
    parts = [values["likelihood"]]
    if "scale" in values:
        parts.append(values["scale"] + (f" {float(values['value']):g}" if "value" in values else ""))
    return ", ".join(parts + ["clipped"] * ("bound" in values))


COLUMNS = {  # heading: (key of results.json, digits)
    "bits/dim": ("test/bits_per_dim", 3),
    "FID": ("test/fid", 0),
    "reconstruction FID": ("test/fid_reconstruction", 1),
    "MSE": ("test/mse", 4),
    "rate": ("test/rate", 1),
    "active units": ("test/active_units", 1),
    "coverage of 90 % intervals": ("test/coverage_90", 3),
}


def table(rows: Sequence[Cell]) -> str:
    lines = ["| setting | beta | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for cell in rows:
        numbers = [interval_text(cell.interval(key), digits) for key, digits in COLUMNS.values()]
        lines.append(f"| {cell.name} | {cell.beta:g} | " + " | ".join(numbers) + " |")
    return "\n".join(lines) + "\n"


def interval_text(interval: tuple[float, float] | None, digits: int) -> str:
    if interval is None:
        return "–"
    mean, half = interval
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")


def interval_table(
    headings: Sequence[str], columns: dict[str, tuple[str, int]], rows: Sequence[tuple[Sequence[str], Cell]]
) -> list[str]:
    """The lines of a Markdown table with the interval of each column's key, to so many digits.

    Args:
        headings: of the first columns.
        columns: heading: (key of results.json, digits).
        rows: the texts of the first columns, and the runs.
    """
    lines = [f"| {' | '.join([*headings, *columns])} |", "|---" * (len(headings) + len(columns)) + "|"]
    for texts, cell in rows:
        numbers = [interval_text(cell.interval(key), digits) for key, digits in columns.values()]
        lines.append(f"| {' | '.join([*texts, *numbers])} |")
    return lines


def plots(rows: Sequence[Cell], docs: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5), constrained_layout=True)
    ranked = sorted(
        ((cell, interval) for cell in rows if cell.beta == 1 and (interval := cell.interval("test/bits_per_dim"))),
        key=lambda pair: -pair[1][0],
    )
    axes.errorbar(
        [mean for _, (mean, _) in ranked],
        range(len(ranked)),
        xerr=[half for _, (_, half) in ranked],
        fmt="o",
        capsize=3,
    )
    axes.set_yticks(range(len(ranked)), [cell.name for cell, _ in ranked])
    axes.set(xlabel="bits/dim, lower is better", title="MNIST, beta 1, three seeds", xlim=(0, 10))
    axes.axvline(8, color="gray", linestyle=":")
    axes.text(8.05, len(ranked) / 2, "all levels alike", color="gray", fontsize="small", va="center")
    axes.grid(alpha=0.3)
    figure.savefig(docs / "figures" / "which_likelihood_bits.png", dpi=110)

    against_beta(plt, rows, docs)
    against_rate(plt, rows, docs)
    pictures(plt, [cell for cell in rows if cell.beta == 1], docs)


PANELS: dict[str, Callable[[str], bool]] = {
    "Gaussian: sigma fixed, learned, optimal": lambda name: name.startswith("gaussian") and "per_" not in name,
    "Laplace: scale fixed, learned, optimal": lambda name: name.startswith("laplace") and "per_" not in name,
    "predicted scales": lambda name: "per_" in name and "logistic" not in name,
    "likelihoods on [0, 1]": lambda name: name in ("cross_entropy", "continuous_bernoulli", "beta"),
}
DISTANCES = {"test/fid": "FID of samples", "test/fid_reconstruction": "FID of reconstructions"}
AGAINST_BETA = {"test/fid": "FID of samples (own classifier)", "test/mse": "MSE of reconstructions"}


def against_beta(plt: Any, rows: Sequence[Cell], docs: Path) -> None:
    panels = {title: includes for title, includes in PANELS.items() if any(includes(cell.name) for cell in rows)}
    figure, grid = plt.subplots(
        2, len(panels), squeeze=False, figsize=(14, 6.5), sharex=True, sharey="row", constrained_layout=True
    )
    for column, (title, includes) in enumerate(panels.items()):
        for name in dict.fromkeys(cell.name for cell in rows if includes(cell.name)):
            line = [cell for cell in rows if cell.name == name]
            for axes, key in zip(grid[:, column], AGAINST_BETA, strict=True):
                points = [(cell.beta, *interval) for cell in line if (interval := cell.interval(key))]
                betas, means, halves = zip(*points, strict=True)
                # The optimal scale is dashed, so that a learned one shows below it.
                style = "o--" if "optimal" in name else "o-"
                axes.errorbar(betas, means, yerr=halves, fmt=style, capsize=3, label=name, markersize=4)
        grid[0, column].set(xscale="log")
        grid[0, column].set_title(title, fontsize="medium")
        grid[0, column].legend(fontsize="small")
        grid[1, column].set(xlabel="beta")
    ticks = sorted({cell.beta for cell in rows})
    for axes in grid.flat:
        axes.set_xticks(ticks, [f"{beta:g}" for beta in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    for axes, label in zip(grid[:, 0], AGAINST_BETA.values(), strict=True):
        axes.set(ylabel=label)
    figure.savefig(docs / "figures" / "which_likelihood_beta.png", dpi=100)


def against_rate(plt: Any, rows: Sequence[Cell], docs: Path) -> None:
    """FID of samples and reconstructions against the rate, for every setting and beta."""
    figure, grid = plt.subplots(1, 2, figsize=(12, 4.8), constrained_layout=True)
    families = list(dict.fromkeys(cell.name.partition(",")[0] for cell in rows))
    for axes, (key, label) in zip(grid, DISTANCES.items(), strict=True):
        for cell in rows:
            rate, distance = cell.interval("test/rate"), cell.interval(key)
            if rate and distance:
                n = families.index(cell.name.partition(",")[0])
                hollow = {"markerfacecolor": "none"} if "per_pixel" in cell.name else {}
                axes.plot(rate[0], distance[0], "os^Dv*P"[n % 7], color=f"C{n}", **hollow)
        axes.set(xlabel="rate, nats", ylabel=label, yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[0] in "235" else "")
        axes.grid(alpha=0.3, which="both")
    for n, family in enumerate(families):
        grid[0].plot([], [], "os^Dv*P"[n % 7], color=f"C{n}", label=family)
    grid[0].plot([], [], "o", color="gray", markerfacecolor="none", label="hollow: a scale for each pixel")
    grid[0].legend(fontsize="small")
    figure.savefig(docs / "figures" / "which_likelihood_rate.png", dpi=90)


def pictures(plt: Any, settings: Sequence[Cell], docs: Path) -> None:
    """A row for the first seed of each setting: the same ten test images and the same ten samples of z in all rows."""
    import torch
    from PIL import Image

    import vaex
    from vaex.build import load_config, load_dataset

    dataset = load_dataset(load_config(settings[0].folders[0])[0].dataset)
    x = dataset.test.pixels[:10].float() / 255
    rows = [("test images", x, torch.ones_like(x))]
    z = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    for cell in settings:
        model = vaex.load(cell.folders[0])
        with torch.no_grad():
            rows.append((cell.name, model.reconstruct(x), model.decode(z).mean))
    figure, grid = plt.subplots(len(rows), 2, figsize=(11, 0.56 * len(rows) + 0.4), constrained_layout=True)
    for (name, *both), line in zip(rows, grid, strict=True):
        for axes, images in zip(line, both, strict=True):
            axes.imshow(torch.cat(list(images[:, 0]), dim=1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
        line[0].text(-6, 14, name, ha="right", va="center", fontsize=9)
    grid[0, 0].set_title("reconstructions", fontsize=10)
    grid[0, 1].set_title("samples from the prior", fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, dpi=90)
    Image.open(content).convert("L").save(docs / "figures" / "which_likelihood_pictures.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--workers", type=int, default=2, help="number of runs and evaluations at a time, one thread each"
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/which_likelihood"))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    length = [f"epochs={options.epochs:g}", f"seed={options.seeds}", f"sweep.workers={options.workers}"]
    for name, overrides in SWEEPS.items():
        train(options.folder / name, [*overrides, *COMMON, *length])
        evaluate(options.folder / name, samples=10, workers=options.workers)
    rows = cells(options.folder)
    head = (
        f"Written by `python scripts/which_likelihood.py`: MNIST, an MLP 784-400-20, {options.epochs:g} epochs with a "
        f"batch size of 128, {len(rows[0].results)} seeds. The NLL\n"
        "uses 10 samples of z. The FID uses vaex's classifier and 10,000 means. "
        "± is half the width of a 95 % confidence interval\n(Student's t).\n\n"
    )
    (options.docs / "which_likelihood_table.md").write_text(head + table(rows))
    plots(rows, options.docs)


if __name__ == "__main__":
    main()
