"""Likelihood × scale × beta on MNIST, three seeds: the runs and the tables behind docs/which-likelihood.md.

    python scripts/which_likelihood.py                       # 162 runs of 5 epochs: about an hour on two CPU cores
    python scripts/which_likelihood.py --epochs 0.1 --seeds 0   # to see it work

Every run has the same network, optimizer, length and test split. What is there already, in part or in whole, is gone on
with. `vaex report outputs/which_likelihood` then makes one page of all of it.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

UNIFORM = "dataset.dequantize=uniform"  # under which densities are comparable with masses
FEW, MANY = "beta=0.25,1,4", "beta=0.25,1,2,4,8"
COMMON = [
    "architecture.hidden=[400]",
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
    "continuous_bernoulli": ["likelihood=continuous_bernoulli", UNIFORM, MANY],
    "cross_entropy": ["likelihood=cross_entropy", MANY],
    "discretized": ["likelihood=discretized_logistic", "likelihood/scale=shared,per_pixel", FEW],
    "bounded": ["likelihood=beta,truncated_normal", UNIFORM, FEW],
    # The clip of the continuous Bernoulli's authors, a parameter in [1e-4, 1 - 1e-4].
    "clipped": ["likelihood=continuous_bernoulli", "likelihood.bound=9.21", UNIFORM, "beta=1,4"],
}


def train(folder: Path, overrides: Sequence[str]) -> None:
    where = f"sweep={folder}" if (folder / "sweep.json").exists() else f"hydra.sweep.dir={folder}"
    command = [sys.executable, "-m", "vaex", "train", "-m", where, *overrides]
    print("$", *command[1:], flush=True)
    subprocess.run(command, check=True)


def evaluate(folder: Path, workers: int) -> None:
    """All runs tested with ten draws of z, a share of them in each of `workers` processes."""
    runs = sorted(path.parent for path in folder.glob("*/*/model.safetensors"))

    def share(n: int) -> None:
        todo = [run for run in runs[n::workers] if "test/fid" not in (run / "results.json").read_text()]
        if todo:
            command = [sys.executable, "-m", "vaex", "eval", *map(str, todo), "--samples", "10"]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(share, range(workers)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workers", type=int, default=2, help="runs and tests at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("outputs/which_likelihood"))
    options = parser.parse_args()
    length = [f"epochs={options.epochs:g}", f"seed={options.seeds}", f"sweep.workers={options.workers}"]
    for name, overrides in SWEEPS.items():
        train(options.folder / name, [*overrides, *COMMON, *length])
        evaluate(options.folder / name, options.workers)


if __name__ == "__main__":
    main()
