"""Kill training runs at random moments, resume each, and compare with a run that was never killed: nothing may differ.

    python scripts/kill_test.py                # 50 kills, about two minutes on two CPU cores
    python scripts/kill_test.py --kills 500 --seed 7

Each run is killed by SIGKILL, which a process can't handle, at moments spread over its whole duration: while it builds,
trains, validates, draws, saves and tests. Weights, results and metrics.jsonl are compared byte for byte. The runs are
forks of this process, so that they need not import PyTorch again.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import hydra  # noqa: F401  imported once, before the forks
import torch
import torch._dynamo
from tqdm import tqdm

import vaex.train  # noqa: F401
from vaex import cli
from vaex.data.mnist import mnist

OVERRIDES = [
    "architecture.hidden=[32]",
    "dataset.validation=55000",
    "epochs=3",
    "batch_size=128",
    "trainer.log_every=7",
    "figures.images=16",
    "figures.every=1",
    "device=cpu",
]
TIMED = ("train/seconds", "train/images_per_second")


def start(arguments: list[str]) -> int:
    """Start a training run; return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        cli.run("train", arguments)
        code = 0
    finally:
        os._exit(code)


def outcome(run: Path) -> tuple[bytes, dict[str, object], str]:
    """What must be equal: weights, results and metrics.jsonl."""
    results = json.loads((run / "results.json").read_text())
    numbers = {name: value for name, value in results.items() if name not in TIMED}
    return (run / "model.safetensors").read_bytes(), numbers, (run / "metrics.jsonl").read_text()


def killed_and_resumed(run: Path, overrides: list[str], seconds: float, most: int, generator: random.Random) -> int:
    """Kill a run up to `most` times, then let it end. Returns how often it was killed before it ended by itself."""
    kills = 0
    while True:
        if run.exists() and not (run / "config.yaml").exists():
            shutil.rmtree(run)  # killed before it wrote its config
        arguments = [f"resume={run}"] if run.exists() else [*overrides, f"hydra.run.dir={run}"]
        child = start(arguments)
        if kills < most:
            time.sleep(generator.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        elif os.WEXITSTATUS(status):
            raise RuntimeError(f"{run}: a resumed run failed; {' '.join(arguments)}")
        else:
            return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="for the runs, in addition to those of the script")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    mnist()  # decompressed once
    generator = random.Random(arguments.seed)
    overrides = [*OVERRIDES, *arguments.overrides]
    lost, kills, runs = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder, tqdm(total=arguments.kills, unit=" kills", disable=None) as bar:
        whole = Path(folder) / "whole"
        begun = time.perf_counter()
        if os.waitpid(start([*overrides, f"hydra.run.dir={whole}"]), 0)[1]:
            sys.exit("the run that is never killed failed")
        seconds = time.perf_counter() - begun
        expected = outcome(whole)
        while kills < arguments.kills:
            run = Path(folder) / f"run-{runs}"
            again = killed_and_resumed(run, overrides, seconds, min(10, arguments.kills - kills), generator)
            same = outcome(run) == expected
            lost += not same
            kills, runs = kills + again, runs + 1
            bar.update(again)
            if same:
                shutil.rmtree(run)
    print(f"{kills} kills over {runs} runs of {seconds:.1f} s: {lost} runs differ from the one that was never killed")
    sys.exit(lost > 0)


if __name__ == "__main__":
    main()
