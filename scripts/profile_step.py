"""Where the time of a training step goes, and of an epoch: products, optimizer, noise, other kernels, and what lies
between kernels (Python, autograd, dispatch).

    python scripts/profile_step.py                                    # the cases of bench.py, as they are and compiled
    python scripts/profile_step.py --cases mlp --modes precision=bf16 precision=bf16,trainer.compile=true
    python scripts/profile_step.py --ops 20                           # and the slowest operations
    python scripts/profile_step.py --epoch                            # training, validation, pictures and checkpoint

The shares of a step come from the profiler, which slows it down; the milliseconds are measured without it.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._inductor.config
from bench import CASES, PRODUCTS, machine, synchronize, training_step
from hydra import compose, initialize_config_dir
from torch.profiler import ProfilerActivity, profile

from vaex.build import build
from vaex.config.schema import check, config_dir
from vaex.runs.folder import RunFolder
from vaex.training.distributed import Processes
from vaex.training.loop import draw, evaluate_split
from vaex.training.memory import keep_freed_memory
from vaex.training.session import Session, Settings
from vaex.training.signals import StopFlag
from vaex.training.writer import RunWriter

KINDS = {
    "products": (*PRODUCTS, "mkldnn_convolution", "_convolution", "linear"),
    "optimizer": ("_fused_adam_", "_fused_adamw_"),
    "noise": ("normal_", "uniform_", "bernoulli_", "exponential_", "random_"),
}


def kind_of(name: str) -> str:
    if name.startswith("graph_"):  # compiled by torch.compile
        return "other kernels"
    if not name.startswith("aten::"):
        return "between kernels"
    operation = name.removeprefix("aten::")
    if "scaled_dot_product" in operation:
        return "products"
    return next((kind for kind, names in KINDS.items() if operation in names), "other kernels")


def profile_case(name: str, mode: list[str], device: torch.device, steps: int, operations: int) -> str:
    step, stream = training_step(CASES[name], device, *mode)
    for n in range(10):
        step(stream.batch(n))
    synchronize(device)
    started = time.perf_counter()
    for n in range(10, 10 + steps):
        step(stream.batch(n))
    synchronize(device)
    milliseconds = 1e3 * (time.perf_counter() - started) / steps
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        for n in range(10 + steps, 10 + 2 * steps):
            step(stream.batch(n))
        synchronize(device)
    events = profiler.key_averages()
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    totals = dict.fromkeys(("products", "optimizer", "noise", "other kernels", "between kernels"), 0.0)
    for event in events:
        totals[kind_of(event.key)] += getattr(event, own)
    whole = sum(totals.values())
    shares = " | ".join(f"{100 * total / whole:.0f} %" for total in totals.values())
    line = f"| {name} | {', '.join(mode) or 'float32'} | {milliseconds:.2f} | {shares} |"
    if operations:
        line += "\n\n" + events.table(sort_by=own, row_limit=operations, max_name_column_width=60)
    return line


def profile_epoch(overrides: list[str]) -> str:
    """Seconds that each part of the run's first epoch takes, with the device idle before and after it."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = check(compose("train", ["epochs=1", "trainer.capture=false", "trainer.compile=false", *overrides]))
    experiment = build(config)
    settings = Settings(config.batch_size, config.seed, config.trainer, config.figures)
    with tempfile.TemporaryDirectory() as folder:
        writer = RunWriter(RunFolder(Path(folder)), stop=True)
        with writer.open(from_step=0):
            session = Session(experiment, settings, writer, Processes(), StopFlag())
            experiment.model.train()
            parts = {}

            def timed(name: str, function: Callable[..., object], *arguments: object) -> None:
                synchronize(experiment.device)
                started = time.perf_counter()
                function(*arguments)
                synchronize(experiment.device)
                parts[name] = time.perf_counter() - started

            def train() -> None:
                for n in range(experiment.steps):
                    session.take_step(session.feed.index(n))
                    if (n + 1) % config.trainer.log_every == 0:
                        session.step.sums.take()

            session.take_step(session.feed.index(0))
            session.step.sums.take()
            timed("training", train)
            timed("validation", evaluate_split, session, session.validation)
            timed("pictures", draw, session)
            timed("checkpoint", session.save)
            timed("writing them, in the background", writer.wait)
    base = parts["training"]
    return "\n".join(f"| {name} | {value:.3f} | {100 * value / base:.1f} % |" for name, value in parts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument(
        "--modes", nargs="+", default=["", "trainer.compile=true"], help="overrides joined by commas, a mode each"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--ops", type=int, default=0)
    parser.add_argument("--epoch", nargs="*", metavar="OVERRIDE", help="instead: an epoch of such a run")
    arguments = parser.parse_args()
    keep_freed_memory()
    device = torch.device(arguments.device)
    print(machine(device) + "\n")
    if arguments.epoch is not None:
        print("| part of an epoch | seconds | of the training |\n|---|---|---|")
        print(profile_epoch([*arguments.epoch, f"device={arguments.device}"]))
        return
    # Only kernels that report themselves can be distinguished from the Python code around them.
    torch._inductor.config.cpp.enable_kernel_profile = True
    print("| case | mode | ms a step | products | optimizer | noise | other kernels | between kernels |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.cases:
        for mode in arguments.modes:
            settings = [setting for setting in mode.split(",") if setting]
            print(profile_case(name, settings, device, arguments.steps, arguments.ops), flush=True)


if __name__ == "__main__":
    main()
