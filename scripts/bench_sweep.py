"""Compare the time of a sweep whose runs are trained side by side with that of one run after another.

    python scripts/bench_sweep.py
    python scripts/bench_sweep.py --batch 128 --steps 2000     # shorter runs, in which start-up counts for more

Both are `vaex train -m`, timed with its start-up. With sweep.workers=1 the runs are trained one after another on all
cores; by default they are trained side by side, and share the cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BETAS = "0.25,0.5,1,1.5,2,3,4,8"


def seconds(folder: Path, arguments: list[str]) -> float:
    """The time of the whole command. Raises CalledProcessError if a run fails."""
    command = [sys.executable, "-m", "vaex", "train", "-m", f"beta={BETAS}", *arguments, f"hydra.sweep.dir={folder}"]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def elbos(folder: Path) -> dict[str, float]:
    return {path.parent.name: json.loads(path.read_text())["test/elbo"] for path in folder.glob("*/results.json")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--steps", type=int, nargs="+", default=[7000, 12000], help="steps of each run")
    parser.add_argument("--hidden", default="[400]", help="hidden layers of the MLP")
    parser.add_argument("--rounds", type=int, default=2, help="repetitions, alternating between both")
    options = parser.parse_args()
    print(f"8 runs of the MLP 784-{options.hidden}-20, {len(os.sched_getaffinity(0))} cores")
    for batch, steps in zip(options.batch, options.steps, strict=True):
        common = [f"architecture.hidden={options.hidden}", f"batch_size={batch}", f"steps={steps}"]
        ratios = []
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as temporary:
                ways = {"one": ["sweep.workers=1"], "beside": []}
                order = list(ways) if number % 2 == 0 else list(ways)[::-1]
                took = {way: seconds(Path(temporary) / way, [*common, *ways[way]]) for way in order}
                one, beside = elbos(Path(temporary) / "one"), elbos(Path(temporary) / "beside")
            ratios.append(took["one"] / took["beside"])
            difference = max(abs(one[name] - beside[name]) for name in one)
            print(
                f"batch {batch}, {steps:,} steps: one after another {took['one']:.0f} s "
                f"({took['one'] / 8:.0f} s a run), "
                f"beside each other {took['beside']:.0f} s: {ratios[-1]:.2f}x;"
                f" test ELBOs differ by at most {difference:.3f} nats",
                flush=True,
            )
        print(f"batch {batch}: {statistics.median(ratios):.2f}x", flush=True)


if __name__ == "__main__":
    main()
