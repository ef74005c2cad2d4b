"""Measure the time and peak memory of `vaex report` on a sweep of many runs.

    python scripts/bench_report.py                 # 250 runs: 5 likelihoods × 5 betas × 5 sizes of z × 2 seeds
    python scripts/bench_report.py --keep FOLDER   # keep the runs and their report

The script trains one model for 20 steps for each likelihood and size of z. It copies each run with other values of beta
and seed in the config, and with random test numbers. Each metrics.jsonl is as long as that of 15 epochs of MNIST.
"""

import argparse
import itertools
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIKELIHOODS = ["gaussian", "laplace", "cross_entropy", "continuous_bernoulli", "logistic"]
BETAS = [0.5, 1.0, 2.0, 4.0, 8.0]
LATENTS = [2, 5, 10, 20, 40]
SEEDS = [1, 2]
FILES = ["config.yaml", "status.json", "results.json", "model.safetensors"]


def make_runs(sweep: Path, models: Path) -> int:
    count = 0
    for likelihood, size in itertools.product(LIKELIHOODS, LATENTS):
        folder = models / f"{likelihood}-{size}"
        options = [f"likelihood={likelihood}", f"latent_dim={size}", "steps=20", f"hydra.run.dir={folder}"]
        _run("train", *options, "trainer.compile=false", "device=cpu")
        for beta, seed in itertools.product(BETAS, SEEDS):
            copy(folder, sweep / f"{likelihood},{size},{beta:g},{seed}", beta, seed)
            count += 1
    return count


def copy(model: Path, run: Path, beta: float, seed: int) -> None:
    run.mkdir(parents=True)
    for name in FILES:
        shutil.copy(model / name, run / name)
    config = (model / "config.yaml").read_text()
    for key, value in (("beta", beta), ("seed", seed)):
        config = re.sub(rf"^( *{key}:) .*$", rf"\1 {value}", config, flags=re.MULTILINE)
    (run / "config.yaml").write_text(config)
    draw = random.Random(f"{model.name} {beta} {seed}")
    results = json.loads((model / "results.json").read_text())
    results |= {"test/psnr": 17.0, "test/fid": draw.gauss(300, 20), "test/fid_images": 10_000, "test/fid_floor": 1.6}
    results |= {"test/fid_draws": "means", "test/fid_latent": "prior", "about/beta": beta}
    if "cross_entropy" not in model.name:
        bits = draw.gauss(4, 0.1) + 0.1 * beta
        score = {"scored_pixels": "(k+u)/256", "bits_per_dim": bits, "bits_per_dim_from": "importance"}
        score |= {"nll": 543.4 * (bits - 8), "nll_bound": 543.4 * bits, "nll_stderr": 3.0, "nll_samples": 100}
        score |= {"image_elbo": -543.4 * bits, "image_rate": 40 / beta, "image_distortion": 543.4 * bits - 40 / beta}
        results |= {f"test/{name}": value for name, value in score.items()}
    (run / "results.json").write_text(json.dumps(results, indent=2))
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(50, 6916, 50):
            file.write(json.dumps(_numbers("train", step, draw)) + "\n")
            if step % 450 == 0:
                file.write(json.dumps(_numbers("validation", step, draw)) + "\n")


def _numbers(split: str, step: int, draw: random.Random) -> dict[str, Any]:
    names = ("loss", "distortion", "rate", "elbo", "posterior_std", "likelihood_scale", "grad_norm", "learning_rate")
    numbers: dict[str, Any] = {f"{split}/{name}": -100 - 9000 / step + draw.random() for name in names}
    return {"step": step, "epoch": step / 461} | numbers | {f"{split}/rate_per_latent": [draw.random()] * 20}


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "vaex", *arguments], check=True, capture_output=True)


def measure(sweep: Path) -> tuple[float, float]:
    """Wall-clock seconds and peak resident memory in MB of the command."""
    probe = (
        f"import resource, sys; sys.argv = ['vaex', 'report', {str(sweep)!r}]\n"
        "from vaex.cli import main; main()\n"
        "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    return seconds, int(done.stdout.split("PEAK ")[1]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sweep = arguments.keep or Path(scratch) / "sweep"
        count = make_runs(sweep, Path(scratch) / "models")
        for _ in range(arguments.repeats):
            seconds, megabytes = measure(sweep)
            print(f"{count} runs: {seconds:.1f} s, {megabytes:.0f} MB peak memory")


if __name__ == "__main__":
    main()
