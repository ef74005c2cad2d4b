"""Train every likelihood × scale rule on MNIST with one network, evaluate them, and write docs/likelihood_table.md.

    python scripts/likelihood_table.py                 # 2,000 steps each, about half an hour on two CPU cores
    python scripts/likelihood_table.py --steps 100     # a quick trial

Completed runs in the folder are not trained again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
UNIFORM = "dataset.dequantize=uniform"  # makes densities comparable with masses


def settings() -> dict[str, list[str]]:
    """The overrides of every run, by the name of its folder."""
    overrides = {
        f"{family}-{rule}": [f"likelihood={family}", f"likelihood/scale={rule}", UNIFORM]
        for family in ("gaussian", "laplace", "logistic", "student_t")
        for rule in RULES
    }
    for name in [name for name in overrides if name.endswith("-fixed")]:
        overrides[name].append("likelihood.scale.value=0.1")
    overrides |= {
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
    return overrides


def train(name: str, overrides: list[str], folder: Path, steps: int) -> str:
    """Train the run unless it is complete. Returns a line that reports the outcome."""
    run = folder / name
    status = run / "status.json"
    if status.exists() and json.loads(status.read_text())["status"] == "completed":
        return f"{name}: already trained"
    shutil.rmtree(run, ignore_errors=True)
    extra = [f"steps={steps}", f"hydra.run.dir={run}", "trainer.validate_every=1000", "trainer.checkpoint_every=1000"]
    done = subprocess.run(
        [sys.executable, "-m", "vaex", "train", *overrides, *extra, "figures.every=1000"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return f"{name}: " + ("trained" if done.returncode == 0 else done.stderr.strip().splitlines()[-1])


COLUMNS = {  # heading: (key of results.json, digits)
    "bits/dim": ("test/bits_per_dim", 3),
    "NLL": ("test/nll", 2),
    "rate": ("test/rate", 1),
    "MSE": ("test/mse", 5),
    "FID": ("test/fid", 1),
    "reconstruction FID": ("test/fid_reconstruction", 1),
    "active units": ("test/active_units", 0),
    "coverage of 90 % intervals": ("test/coverage_90", 3),
    "seconds": ("train/seconds", 0),
}


def evaluate(folder: Path, samples: int, workers: int) -> list[dict[str, Any]]:
    """Evaluate the runs in `workers` processes. Returns the results of each run, and its name under "run"."""
    runs = sorted(path.parent for path in folder.glob("*/model.safetensors"))
    options = ["--samples", str(samples), "--batch-size", "500"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def evaluate_share(n: int) -> None:
        todo = [run for run in runs[n::workers] if "test/fid" not in json.loads((run / "results.json").read_text())]
        if todo:
            command = [sys.executable, "-m", "vaex", "eval", *map(str, todo), *options]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(evaluate_share, range(workers)))
    return [json.loads((run / "results.json").read_text()) | {"run": run.name} for run in runs]


def group(record: dict[str, Any]) -> str:
    """The heading of the table that the run belongs to; only the runs of one table are comparable."""
    pixels = record.get("test/scored_pixels")
    if pixels is None:
        return "Pseudo-likelihood, not ranked"
    return "Binary images (static), by NLL" if pixels == "binary" else "8-bit images, by bits/dim"


def tables(records: list[dict[str, Any]]) -> str:
    """One Markdown table for each group, its runs sorted by bits/dim."""
    parts = []
    for name in dict.fromkeys(group(record) for record in sorted(records, key=group)):
        members = [record for record in records if group(record) == name]
        members.sort(key=lambda record: record.get("test/bits_per_dim", 0.0))
        columns = {heading: key for heading, (key, _) in COLUMNS.items() if any(key in record for record in members)}
        lines = [f"### {name}", "", "| run | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
        for record in members:
            cells = [
                "–" if record.get(key) is None else f"{record[key]:.{COLUMNS[heading][1]}f}"
                for heading, key in columns.items()
            ]
            lines.append(f"| {record['run']} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=10, help="samples of z for the importance-weighted NLL")
    parser.add_argument("--workers", type=int, default=2, help="number of runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("outputs/likelihoods"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "likelihood_table.md")
    arguments = parser.parse_args()
    runs = settings()
    with ThreadPoolExecutor(arguments.workers) as pool:
        jobs = [pool.submit(train, name, [NETWORK, *o], arguments.folder, arguments.steps) for name, o in runs.items()]
        for n, job in enumerate(jobs, 1):
            print(f"{n}/{len(jobs)}  {job.result()}", flush=True)
    records = evaluate(arguments.folder, arguments.samples, arguments.workers)
    failed = sorted(set(runs) - {record["run"] for record in records})
    head = (
        "Written by `python scripts/likelihood_table.py`: MNIST, an MLP 784-400-20, beta 1, seed 0, "
        f"{arguments.steps:,} steps with a batch size of 128. The NLL uses {arguments.samples} samples of z. "
        "Two runs at a time, with one thread each, shared two CPU cores with other work."
    )
    text = f"{head}\n\n{tables(records)}\n"
    if failed:
        text += f"\nThese runs did not complete: {', '.join(failed)}.\n"
    arguments.out.write_text(text)
    print(arguments.out)


if __name__ == "__main__":
    main()
