"""Train every likelihood × scale rule on MNIST with one network, test them all, and write docs/likelihoods.md.

    python scripts/likelihood_table.py                 # 2,000 steps each, about half an hour on two CPU cores
    python scripts/likelihood_table.py --steps 100     # to see it work

Runs that are already in the folder and completed are not trained again.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RULES = [
    "fixed",
    "shared",
    "per_dimension",
    "per_image",
    "per_pixel",
    "optimal",
    "optimal_per_image",
    "optimal_per_pixel",
]
NETWORK = "architecture.hidden=[400]"
UNIFORM = "dataset.dequantize=uniform"  # under which densities are comparable with masses


def settings() -> dict[str, list[str]]:
    """Name of a run -> its overrides."""
    chosen = {
        f"{family}-{rule}": [f"likelihood={family}", f"likelihood/scale={rule}", UNIFORM]
        for family in ("gaussian", "laplace", "logistic", "student_t")
        for rule in RULES
    }
    for name in [name for name in chosen if name.endswith("-fixed")]:
        chosen[name].append("likelihood.scale.value=0.1")
    chosen |= {
        "truncated_normal-shared": ["likelihood=truncated_normal", UNIFORM],
        "truncated_normal-per_pixel": ["likelihood=truncated_normal", "likelihood/scale=per_pixel", UNIFORM],
        "continuous_bernoulli": ["likelihood=continuous_bernoulli", UNIFORM],
        "beta": ["likelihood=beta", UNIFORM],
        "gaussian-shared-bins": ["likelihood=gaussian", "likelihood.discretize=true"],
        "gaussian-per_pixel-bins": ["likelihood=gaussian", "likelihood/scale=per_pixel", "likelihood.discretize=true"],
        "laplace-shared-bins": ["likelihood=laplace", "likelihood.discretize=true"],
        "laplace-per_pixel-bins": ["likelihood=laplace", "likelihood/scale=per_pixel", "likelihood.discretize=true"],
        "discretized_logistic-shared": ["likelihood=discretized_logistic"],
        "discretized_logistic-per_pixel": ["likelihood=discretized_logistic", "likelihood/scale=per_pixel"],
        "discretized_logistic_mixture": ["likelihood=discretized_logistic_mixture"],
        "categorical": ["likelihood=categorical"],
        "bernoulli": ["likelihood=bernoulli", "dataset.binarize=static"],
        "cross_entropy": ["likelihood=cross_entropy"],
    }
    return chosen


def train(name: str, overrides: list[str], folder: Path, steps: int) -> str:
    """Returns a line on how it went."""
    run = folder / name
    status = run / "status.json"
    if status.exists() and json.loads(status.read_text())["status"] == "completed":
        return f"{name}: there already"
    subprocess.run(["rm", "-rf", str(run)], check=True)
    extra = [f"steps={steps}", f"hydra.run.dir={run}", "trainer.validate_every=1000", "trainer.checkpoint_every=1000"]
    done = subprocess.run(
        [sys.executable, "-m", "vaex", "train", NETWORK, *overrides, *extra, "figures.every=1000"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return f"{name}: " + ("done" if done.returncode == 0 else done.stderr.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("outputs/likelihoods"))
    arguments = parser.parse_args()
    chosen = settings()
    with ThreadPoolExecutor(arguments.workers) as pool:
        jobs = [pool.submit(train, name, o, arguments.folder, arguments.steps) for name, o in chosen.items()]
        for n, job in enumerate(jobs, 1):
            print(f"{n}/{len(jobs)}  {job.result()}", flush=True)


if __name__ == "__main__":
    main()
