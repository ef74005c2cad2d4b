"""The effect of beta on sprites, whose factors are known: docs/sprites_beta.md and docs/sprites_beta.png.

    python scripts/sprites_beta.py             # 5 runs of 8,000 steps, about twenty minutes on two CPU cores

This is the trade-off of Higgins et al. 2017: a larger beta spends fewer nats on an image, so that reconstructions get
worse and each latent represents fewer factors. There is one seed only, and Locatello et al. 2019 find that seeds matter
as much as beta. Completed runs in the folder are not trained again.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from likelihood_table import ROOT, train

BETAS = [0.5, 1.0, 4.0, 8.0, 16.0]
SETTING = [
    "dataset=sprites",
    "dataset.source.size=32",
    "dataset.source.positions=16",
    "likelihood=bernoulli",
    "architecture=conv",
    "architecture.widths=[32,32,64]",
    "latent_dim=10",
    "batch_size=64",
    "optimizer.lr=0.001",
]
COLUMNS = {
    "rate, nats": ("rate", ".1f"),
    "distortion, nats": ("distortion", ".1f"),
    "MSE": ("mse", ".4f"),
    "active units": ("active_units", "d"),
    "MIG": ("mig", ".3f"),
    "DCI disentanglement": ("dci_disentanglement", ".3f"),
    "completeness": ("dci_completeness", ".3f"),
    "informativeness": ("dci_informativeness", ".3f"),
    "SAP": ("sap", ".3f"),
    "FactorVAE": ("factor_vae", ".3f"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=2, help="number of runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("outputs/sprites_beta"))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    with ThreadPoolExecutor(arguments.workers) as pool:
        jobs = [
            pool.submit(train, f"beta-{beta:g}", [*SETTING, f"beta={beta}"], folder, arguments.steps) for beta in BETAS
        ]
        for n, job in enumerate(jobs, 1):
            print(f"{n}/{len(jobs)}  {job.result()}", flush=True)
    runs = [str(folder / f"beta-{beta:g}") for beta in BETAS]
    options = ["--samples", "0", "--fid", "none", "--disentanglement"]
    subprocess.run([sys.executable, "-m", "vaex", "eval", *runs, *options], check=True)

    results = [json.loads((Path(run) / "results.json").read_text()) for run in runs]
    lines = [
        "Written by `python scripts/sprites_beta.py`: binary sprites of 32 × 32 pixels, "
        f"{arguments.steps:,} steps, seed 0.",
        "",
        "| beta | " + " | ".join(COLUMNS) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for beta, numbers in zip(BETAS, results, strict=True):
        cells = [format(numbers[f"test/{name}"], digits) for name, digits in COLUMNS.values()]
        lines.append(f"| {beta:g} | " + " | ".join(cells) + " |")
    lines += ["", "![Scores and error against beta](sprites_beta.png)"]
    (arguments.docs / "sprites_beta.md").write_text("\n".join(lines) + "\n")

    figure, axes = plt.subplots(figsize=(8, 5), constrained_layout=True)
    for label in ("MIG", "DCI disentanglement", "SAP", "FactorVAE"):
        axes.plot(BETAS, [numbers[f"test/{COLUMNS[label][0]}"] for numbers in results], "o-", label=label)
    axes.set(xscale="log", xlabel="beta", ylabel="score, higher is better", ylim=(0, 1))
    axes.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title("Sprites: disentanglement and error against beta")
    errors = axes.twinx()
    errors.plot(BETAS, [numbers["test/mse"] for numbers in results], "k--", label="MSE (right)")
    errors.set(ylabel="MSE of reconstructions, lower is better")
    errors.set_ylim(bottom=0)
    handles = [*axes.get_lines(), *errors.get_lines()]
    figure.legend(handles, [str(handle.get_label()) for handle in handles], loc="outside lower center", ncols=5)
    figure.savefig(arguments.docs / "sprites_beta.png", dpi=110)


if __name__ == "__main__":
    main()
