"""beta_tc beside vae on sprites, with the same weight of the total correlation: docs/tc_table.md.

    python scripts/tc_table.py            # 9 runs of 2,000 steps: a quarter of an hour on one CPU core

The beta-TCVAE (Chen et al. 2018) gives a larger weight to the total correlation alone, a VAE with beta to the whole
rate. Completed runs in the folder are not trained again.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from likelihood_table import ROOT, train
from sprites_beta import SETTING
from which_likelihood import Cell, interval_table

OBJECTIVES = {
    "vae, beta = 1": [],
    "vae, beta = 6": ["beta=6"],
    "beta_tc, tc = 6": ["objective=beta_tc", "objective.tc=6"],
}
COLUMNS = {  # heading: (key of results.json, digits)
    "ELBO": ("test/elbo", 1),
    "rate": ("test/rate", 1),
    "total correlation": ("test/total_correlation", 2),
    "active units": ("test/active_units", 1),
    "MIG, means in bins": ("test/mig", 3),
    "MIG, samples": ("test/mig_samples", 3),
    "DCI disentanglement": ("test/dci_disentanglement", 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="number of runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("outputs/tc"))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    names = {
        (title, seed): f"{title.replace(', ', '-').replace(' = ', '-')}-{seed}"
        for title in OBJECTIVES
        for seed in arguments.seeds
    }
    with ThreadPoolExecutor(arguments.workers) as pool:
        jobs = [
            pool.submit(train, name, [*SETTING, *OBJECTIVES[title], f"seed={seed}"], folder, arguments.steps)
            for (title, seed), name in names.items()
        ]
        for n, job in enumerate(jobs, 1):
            print(f"{n}/{len(jobs)}  {job.result()}", flush=True)
    options = ["--samples", "0", "--fid", "none", "--disentanglement"]
    subprocess.run(
        [sys.executable, "-m", "vaex", "eval", *(str(folder / name) for name in names.values()), *options], check=True
    )
    lines = [
        f"Written by `python scripts/tc_table.py`: binary sprites of 32 × 32 pixels, {arguments.steps:,} steps, seeds "
        f"{', '.join(map(str, arguments.seeds))}. ± is half the width of a 95 % confidence interval over the seeds.",
        "",
    ]
    rows = []
    for title in OBJECTIVES:
        runs = [folder / names[title, seed] for seed in arguments.seeds]
        cell = Cell(title, 1.0, runs, [json.loads((run / "results.json").read_text()) for run in runs])
        rows.append(([title], cell))
    lines += interval_table(["objective"], COLUMNS, rows)
    (arguments.docs / "tc_table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
