"""Check on a GPU what no CPU can tell: the tests for GPUs, a run and its resumption, speed, kernels, waits and memory.

    python scripts/gpu_check.py                          # all sections, at most eight minutes
    python scripts/gpu_check.py speed kernels --out DIR  # some of them

Each section is a process of its own with a time limit, so a failure costs no other result; the most important sections
come first. What they print is also in DIR/gpu_check.log, and their tables are in DIR/gpu_check.md.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Timer

import torch
from bench import CASES, Case, Run, products, training_step, tutorial

from vaex.training.capture import CapturedStep

ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.device("cuda")
LOG_EVERY = 50  # steps between two readings of the sums, as in a run
WAITS = {  # what the host must not wait for in a captured step
    "gaussian": ["likelihood=gaussian"],
    "clipped gradients": ["likelihood=gaussian", "trainer.clip_norm=1"],
    "bf16": ["likelihood=gaussian", "precision=bf16"],
    "per pixel": ["likelihood=laplace", "likelihood/scale=per_pixel"],
    "optimal scale": ["likelihood=gaussian", "likelihood/scale=optimal_per_image"],
    "IWAE": ["likelihood=gaussian", "objective=iwae"],
    "mixture": ["likelihood=discretized_logistic_mixture"],
}
WAITS_IN_COLOR = {
    "color": ["likelihood=gaussian"],
    "mixture, channels depend on each other": [
        "likelihood=discretized_logistic_mixture",
        "likelihood.conditional_channels=true",
    ],
}


class Table:
    """A Markdown table that is written again after each row, so that a section that is stopped leaves its rows."""

    def __init__(self, path: Path, *headings: str) -> None:
        self.path = path
        self.lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]

    def add(self, *cells: object) -> None:
        self.lines.append(f"| {' | '.join(map(str, cells))} |")
        print(*cells, sep="  ", flush=True)
        self.path.write_text("\n".join(self.lines) + "\n")


def microseconds(run: Run, steps: int) -> float:
    """Time of a step: the median of three stretches, each of which ends when the GPU has finished."""
    run(20)
    torch.cuda.synchronize()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        run(steps)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) / steps * 1e6)
    return statistics.median(times)


def step_of(case: Case, *settings: str, captured: bool) -> Run:
    step, stream = training_step(case, CUDA, *settings)
    take = CapturedStep(step, case.batch_size) if captured else step
    numbers = iter(range(sys.maxsize))

    def run(steps: int) -> None:
        for _, number in zip(range(steps), numbers, strict=False):
            take(stream.batch(number))
            if number % LOG_EVERY == LOG_EVERY - 1:
                step.sums.take()

    return run


def resident(case: str) -> Run:
    """The loop of a tutorial, with the data on the GPU, so that loading images never limits it."""
    chosen = CASES[case]
    pixels = torch.randint(256, (64 * chosen.batch_size, 1, 28, 28), device=CUDA, dtype=torch.uint8)
    model = chosen.network().to(CUDA)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    total = 0.0

    def run(steps: int) -> None:
        nonlocal total
        for number in range(steps):
            first = number % 64 * chosen.batch_size
            x = pixels[first : first + chosen.batch_size].float() / 255
            optimizer.zero_grad()
            out, mean, log_var = model(x)
            distance = torch.nn.functional.mse_loss(out, x, reduction="sum")
            loss = distance - 0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
            loss.backward()
            total += loss.item()
            optimizer.step()

    return run


def speed(out: Path) -> None:
    table = Table(out, "case", "step", "µs a step", "images/s", "peak memory, MB")

    def add(case: str, name: str, make: Callable[[], Run], steps: int) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            time_of_step = microseconds(make(), steps)
        except Exception as error:  # one step that fails must not cost the others
            table.add(case, name, f"failed: {' '.join(str(error).split())[:200]}", "–", "–")
            return
        rate, memory = CASES[case].batch_size / time_of_step * 1e6, torch.cuda.max_memory_allocated() / 1e6
        table.add(case, name, f"{time_of_step:.1f}", f"{rate:,.0f}", f"{memory:.0f}")

    for case in CASES:
        for precision in ("float32", "bf16"):
            setting = f"precision={precision}"
            for captured in (True, False):
                name = f"{precision}, captured" if captured else precision
                add(case, name, lambda: step_of(CASES[case], setting, captured=captured), 300 if captured else 60)  # noqa: B023
            add(case, f"{precision}, products alone", lambda: products(CASES[case], CUDA, setting), 200)  # noqa: B023
    for case in ("mlp", "conv28"):
        add(case, "tutorial loop, data on the GPU", lambda: resident(case), 200)  # noqa: B023
        add(case, f"tutorial loop, {os.cpu_count()} workers", lambda: tutorial(CASES[case], CUDA), 150)  # noqa: B023


def kernels(out: Path) -> None:
    from torch.profiler import ProfilerActivity, profile

    table = Table(out, "case", "kernels a step", "µs of kernels a step", "the longest")
    for case, precision in (("mlp", "float32"), ("mlp", "bf16"), ("conv28", "float32"), ("vit64", "bf16")):
        run = step_of(CASES[case], f"precision={precision}", captured=True)
        run(8)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            run(10)
            torch.cuda.synchronize()
        times: dict[str, float] = defaultdict(float)
        events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        for event in events:
            times[event.name] += event.device_time / 10
        longest = sorted(times, key=lambda name: -times[name])[:3]
        names = ", ".join(f"{times[name]:.1f} {name.partition('(')[0][:50]}" for name in longest)
        table.add(f"{case}, {precision}", len(events) / 10, f"{sum(times.values()):.1f}", names)


def waits(out: Path) -> None:
    table = Table(out, "settings", "the host waits")
    chosen = [("mlp", *item) for item in WAITS.items()] + [("conv64", *item) for item in WAITS_IN_COLOR.items()]
    for key, name, settings in chosen:
        own = [override for override in CASES[key].overrides if not override.startswith("likelihood")]
        try:
            run = step_of(replace(CASES[key], overrides=own), *settings, captured=True)
            run(8)
            torch.cuda.set_sync_debug_mode("error")
            run(LOG_EVERY - 10)  # up to the next reading of the sums
            table.add(name, "never")
        except Exception as error:
            table.add(name, f"failed: {' '.join(str(error).split())[:200]}")
        finally:
            torch.cuda.set_sync_debug_mode("default")


def compiled(out: Path) -> None:
    table = Table(out, "case", "s to compile", "µs a step, compiled and captured")
    for case, precision in (("mlp", "float32"), ("mlp", "bf16"), ("conv28", "float32")):
        started = time.perf_counter()
        run = step_of(CASES[case], f"precision={precision}", "trainer.compile=true", captured=True)
        run(4)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        table.add(f"{case}, {precision}", f"{seconds:.1f}", f"{microseconds(run, 300):.1f}")


TABLES = {"speed": speed, "kernels": kernels, "waits": waits, "compiled": compiled}
LIMITS = {"tests": 120, "run": 75, "speed": 120, "kernels": 45, "waits": 45, "compiled": 75}  # seconds, in this order


def commands(section: str, out: Path) -> Iterator[list[str]]:
    if section == "tests":
        tests = [f"tests/test_{name}.py" for name in ("step", "feed", "resume")]
        yield ["pytest", "-q", "-m", "gpu", "--maxfail=8", "-p", "no:xdist", "-o", "addopts=--strict-markers", *tests]
    elif section == "run":
        run = str(out / "run")
        yield ["vaex", "train", "epochs=2", f"hydra.run.dir={run}"]
        yield ["vaex", "train", f"resume={run}", "epochs=3"]
    else:
        yield [str(Path(__file__).resolve()), section, "--out", str(out), "--in-this-process"]


def run_section(section: str, out: Path) -> str:
    """Run a section in processes of its own. Returns what became of it."""
    deadline = time.monotonic() + LIMITS[section]
    for command in commands(section, out):
        start = command if command[0].endswith(".py") else ["-m", *command]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with (
            (out / "gpu_check.log").open("a") as log,
            subprocess.Popen(
                [sys.executable, *start],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            timer = Timer(max(1.0, deadline - time.monotonic()), process.kill)
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                log.write(line)
            timer.cancel()
        if process.returncode:
            return "stopped at its time limit" if time.monotonic() >= deadline else f"failed, exit {process.returncode}"
    return "completed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(LIMITS))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "outputs/gpu_check")))
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sections = arguments.sections or list(LIMITS)
    if unknown := [section for section in sections if section not in LIMITS]:
        parser.error(f"unknown section {unknown[0]}; there are {', '.join(LIMITS)}")
    if not torch.cuda.is_available():
        sys.exit("gpu_check: PyTorch finds no GPU")
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if arguments.in_this_process:
        torch.set_float32_matmul_precision("high")  # TF32, as in `vaex train`
        (section,) = sections
        TABLES[section](out / f"{section}.md")
        return

    device = torch.cuda.get_device_properties(0)
    title = f"{device.name}, {device.total_memory / 2**30:.0f} GiB; PyTorch {torch.__version__}, cuDNN "
    title += str(torch.backends.cudnn.version())
    parts, failed = [f"## {title}\n"], False
    print(title)
    for section in sections:
        started = time.monotonic()
        print(f"\n== {section}, at most {LIMITS[section]} s", flush=True)
        outcome = run_section(section, out)
        failed |= outcome != "completed"
        print(f"== {section}: {outcome}, {time.monotonic() - started:.0f} s", flush=True)
        part = out / f"{section}.md"
        parts.append(f"**{section}**: {outcome}\n" + (f"\n{part.read_text()}" if part.exists() else ""))
        (out / "gpu_check.md").write_text("\n".join(parts))
    print(f"\n{out / 'gpu_check.md'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
