"""Cross-entropy against the continuous Bernoulli over beta, by FID: docs/beta_fid.png and docs/beta_fid.md.

    python scripts/beta_fid.py                 # 18 runs of 2,000 steps, about a quarter of an hour on two CPU cores

One network, one seed, grey MNIST for all. FID is by vaex's own classifier, of 10,000 samples from the prior, drawn as
means, which for a continuous Bernoulli are not its parameters. Runs already in the folder are not trained again.
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
from likelihood_table import NETWORK, ROOT, train

BETAS = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
CURVES = {
    "cross-entropy": ["likelihood=cross_entropy"],
    "continuous Bernoulli, logit within ±100": ["likelihood=continuous_bernoulli"],
    "continuous Bernoulli, parameter in [1e-4, 1 - 1e-4]": [
        "likelihood=continuous_bernoulli",
        "likelihood.bound=9.21034",
    ],
}


def name_of(curve: int, beta: float) -> str:
    return f"{curve}-{beta:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("outputs/beta_fid"))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    with ThreadPoolExecutor(arguments.workers) as pool:
        jobs = [
            pool.submit(train, name_of(n, beta), [NETWORK, *overrides, f"beta={beta}"], folder, arguments.steps)
            for n, overrides in enumerate(CURVES.values())
            for beta in BETAS
        ]
        for n, job in enumerate(jobs, 1):
            print(f"{n}/{len(jobs)}  {job.result()}", flush=True)
    command = [sys.executable, "-m", "vaex", "eval", str(folder), "--samples", "0"]
    subprocess.run(command, check=True)

    lines = ["| beta | " + " | ".join(f"{name}: FID | reconstruction FID | MSE" for name in CURVES) + " |"]
    lines.append("|---" * (1 + 3 * len(CURVES)) + "|")
    table = {
        (n, beta): json.loads((folder / name_of(n, beta) / "results.json").read_text())
        for n in range(len(CURVES))
        for beta in BETAS
    }
    for beta in BETAS:
        cells = [f"{beta:g}"]
        for n in range(len(CURVES)):
            results = table[n, beta]
            cells += [
                f"{results['test/fid']:.1f}",
                f"{results['test/fid_reconstruction']:.1f}",
                f"{results['test/mse']:.4f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    (arguments.docs / "beta_fid.md").write_text(
        f"`python scripts/beta_fid.py`, {arguments.steps:,} steps, seed 0.\n\n" + "\n".join(lines) + "\n"
    )

    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    for n, name in enumerate(CURVES):
        axes.plot(BETAS, [table[n, beta]["test/fid"] for beta in BETAS], "o-", label=name)
    axes.set(xscale="log", xlabel="beta", ylabel="FID of samples (own classifier)")
    axes.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_title("MNIST: samples' FID against beta")
    axes.legend()
    figure.savefig(arguments.docs / "beta_fid.png", dpi=110)


if __name__ == "__main__":
    main()
