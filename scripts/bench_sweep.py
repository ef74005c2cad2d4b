"""How much faster a sweep's runs are side by side than one after another, with start-up, as `vaex train -m` does both.

    python scripts/bench_sweep.py --batch 128 --steps 15000

One after another is sweep.workers=1: each run has all cores. The default shares them out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BETAS = "0.25,0.5,1,1.5,2,3,4,8"


def seconds(folder: Path, arguments: list[str]) -> float:
    """Of the whole command. Raises CalledProcessError when a run fails."""
    command = [sys.executable, "-m", "vaex", "train", "-m", f"beta={BETAS}", *arguments, f"hydra.sweep.dir={folder}"]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def elbos(folder: Path) -> dict[str, float]:
    return {path.parent.name: json.loads(path.read_text())["test/elbo"] for path in folder.glob("*/results.json")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--steps", type=int, nargs="+", default=[7000, 16000], help="of each run, for each batch size")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    print(f"{len(BETAS.split(','))} runs of the MLP, {len(os.sched_getaffinity(0))} cores")
    for batch, steps in zip(options.batch, options.steps, strict=True):
        common = [f"batch_size={batch}", f"steps={steps}", "figures.every=100", "trainer.checkpoint_every=5"]
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as temporary:
                one, beside = Path(temporary) / "one", Path(temporary) / "beside"
                slow, fast = seconds(one, [*common, "sweep.workers=1"]), seconds(beside, common)
                before, now = elbos(one), elbos(beside)
            difference = max(abs(before[name] - now[name]) for name in before)
            print(
                f"batch {batch}, {steps:,} steps: one after another {slow:.0f} s ({slow / 8:.0f} s a run), beside each "
                f"other {fast:.0f} s, {slow / fast:.2f}x; test ELBOs differ by at most {difference:.2f} nats",
                flush=True,
            )


if __name__ == "__main__":
    main()
