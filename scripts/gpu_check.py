"""Check on a GPU what no CPU can tell: the tests for GPUs, a whole run, speed, kernels, waits and memory.

    python scripts/gpu_check.py                          # all sections, at most eight minutes
    python scripts/gpu_check.py speed kernels --out DIR  # some of them

Each section is a process of its own with a time limit, so a failure costs no other result; the most important sections
come first. What they print is also in DIR/gpu_check.log, and their tables are in DIR/gpu_check.md.
"""

import argparse
import gc
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Timer

import torch
from bench import CASES, Run, ours, products, together, tutorial

ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.device("cuda")
WAITS = {  # what the host must not wait for in a captured step
    "gaussian": ["likelihood=gaussian"],
    "clipped gradients": ["likelihood=gaussian", "trainer.clip_norm=1"],
    "bf16": ["likelihood=gaussian", "precision=bf16"],
    "per pixel": ["likelihood=laplace", "likelihood/scale=per_pixel"],
    "optimal scale": ["likelihood=gaussian", "likelihood/scale=optimal_per_image"],
    "IWAE": ["likelihood=gaussian", "objective=iwae"],
    "beta-TCVAE": ["likelihood=gaussian", "objective=beta_tc"],
    "MMD": ["likelihood=gaussian", "objective=mmd"],
    "RAE, penalty of derivatives": ["likelihood=gaussian", "objective=rae", "objective.gradient=0.1"],
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
        self.path, self.failures = path, 0
        self.lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]

    def add(self, *cells: object) -> None:
        self.lines.append(f"| {' | '.join(map(str, cells))} |")
        print(*cells, sep="  ", flush=True)
        self.path.write_text("\n".join(self.lines) + "\n")

    def fail(self, error: Exception, *cells: object) -> None:
        """Add a row about a case that failed, which must not cost the others."""
        self.failures += 1
        self.add(*cells, f"failed: {' '.join(str(error).split())[:200]}")


def free_memory() -> None:
    """Free what earlier cases allocated. A TrainingStep is part of a reference cycle, which only gc collects."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


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


def speed(table: Table) -> None:
    def add(case: str, name: str, make: Callable[[], Run], steps: int) -> None:
        free_memory()
        try:
            run = make()
            torch.cuda.reset_peak_memory_stats()
            time_of_step = microseconds(run, steps)
        except Exception as error:
            table.fail(error, case, name)
            return
        rate, memory = CASES[case].batch_size / time_of_step * 1e6, torch.cuda.max_memory_allocated() / 1e6
        table.add(case, name, f"{time_of_step:.1f}", f"{rate:,.0f}", f"{memory:.0f}")

    for case in ("mlp", "conv28"):
        add(case, "tutorial loop, data on the GPU", lambda: resident(case), 200)  # noqa: B023
        add(case, "tutorial loop", lambda: tutorial(CASES[case], CUDA), 100)  # noqa: B023
    for case in CASES:
        for precision in ("float32", "bf16"):
            setting = f"precision={precision}"
            for captured in (True, False):
                name = f"{precision}, captured" if captured else precision
                add(case, name, lambda: ours(CASES[case], CUDA, setting, captured=captured), 300 if captured else 60)  # noqa: B023
            add(case, f"{precision}, products alone", lambda: products(CASES[case], CUDA, setting), 200)  # noqa: B023


def kernels(table: Table) -> None:
    from torch.profiler import ProfilerActivity, profile

    for case, precision in (("mlp", "float32"), ("mlp", "bf16"), ("conv28", "float32"), ("vit64", "bf16")):
        free_memory()
        try:
            run = ours(CASES[case], CUDA, f"precision={precision}", captured=True)
            run(8)
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                run(10)
                torch.cuda.synchronize()
        except Exception as error:
            table.fail(error, f"{case}, {precision}")
            continue
        times: dict[str, float] = defaultdict(float)
        events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        for event in events:
            times[event.name.replace("(anonymous namespace)::", "")] += event.device_time / 10
        longest = sorted(times, key=lambda name: -times[name])[:3]
        names = ", ".join(f"{times[name]:.1f} {name.partition('(')[0][:50]}" for name in longest)
        for name in sorted(times, key=lambda name: -times[name])[:30]:
            print(f"{times[name]:9.2f} µs  {name[:160]}")
        table.add(f"{case}, {precision}", len(events) / 10, f"{sum(times.values()):.1f}", names)


def waits(table: Table) -> None:
    chosen = [("mlp", *item) for item in WAITS.items()] + [("conv64", *item) for item in WAITS_IN_COLOR.items()]
    for key, name, settings in chosen:
        free_memory()
        own = [override for override in CASES[key].overrides if not override.startswith("likelihood")]
        try:
            run = ours(replace(CASES[key], overrides=own), CUDA, *settings, captured=True)
            run(8)
            torch.cuda.set_sync_debug_mode("error")
            run(40)  # fewer than 50 steps in all: after these the sums are read, for which the host waits
            table.add(name, "never")
        except Exception as error:
            table.fail(error, name)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def compiled(table: Table) -> None:
    for case, precision in (("mlp", "float32"), ("mlp", "bf16"), ("conv28", "float32")):
        free_memory()
        try:
            run = ours(CASES[case], CUDA, f"precision={precision}", "trainer.compile=true", captured=True)
            started = time.perf_counter()
            run(4)  # compiles in the first step, and captures after the warm-up
            torch.cuda.synchronize()
            seconds = time.perf_counter() - started
            table.add(f"{case}, {precision}", f"{seconds:.1f}", f"{microseconds(run, 300):.1f}")
        except Exception as error:
            table.fail(error, f"{case}, {precision}")


def runs_together(table: Table) -> None:
    plans = [("mlp", runs, "") for runs in (1, 4, 16)] + [("conv28", 4, ""), ("vit64", 4, "")]
    for case, runs, setting in [*plans, ("mlp", 16, "trainer.compile=true")]:
        free_memory()
        name = f"{case}, compiled" if setting else case
        try:
            run = together(CASES[case], CUDA, runs, *([setting] if setting else []), captured=True)
            time_of_step = microseconds(run, 200)
        except Exception as error:
            table.fail(error, name, str(runs))
            continue
        rate = runs * CASES[case].batch_size / time_of_step * 1e6
        table.add(name, str(runs), f"{time_of_step:.1f}", f"{rate:,.0f}")


TABLES: dict[str, tuple[Callable[[Table], None], list[str]]] = {  # what fills them, and their headings
    "speed": (speed, ["case", "step", "µs a step", "images/s", "peak memory, MB"]),
    "kernels": (kernels, ["case", "kernels a step", "µs of kernels a step", "the longest, µs"]),
    "waits": (waits, ["settings", "the host waits"]),
    "together": (runs_together, ["case", "runs in a step", "µs a step, captured", "images/s of all runs"]),
    "compiled": (compiled, ["case", "s of the first steps, which compile", "µs a step, compiled and captured"]),
}
LIMITS = {  # seconds, in this order
    "tests": 75,
    "run": 100,
    "speed": 110,
    "kernels": 40,
    "waits": 40,
    "together": 60,
    "compiled": 55,
}


def commands(section: str, out: Path) -> Iterator[list[str]]:
    if section == "tests":
        tests = [f"tests/test_{name}.py" for name in ("step", "together", "feed", "noise", "resume")]
        yield ["pytest", "-q", "-m", "gpu", "--maxfail=8", "-p", "no:xdist", "-o", "addopts=--strict-markers", *tests]
    elif section == "run":
        run = str(out / "run")
        yield ["vaex", "train", "epochs=2", f"hydra.run.dir={run}"]
        yield ["vaex", "train", f"resume={run}", "epochs=3"]
        yield ["vaex", "eval", run]
    else:
        yield [str(Path(__file__).resolve()), section, "--out", str(out), "--in-this-process"]


def run_section(section: str, out: Path) -> str:
    """Run a section in processes of its own. Returns what became of it."""
    deadline = time.monotonic() + LIMITS[section]
    (out / f"{section}.md").unlink(missing_ok=True)
    shutil.rmtree(out / "run", ignore_errors=True)
    for command in commands(section, out):
        started = time.monotonic()
        start = command if command[0].endswith(".py") else ["-m", *command]
        # An empty cache, so that the time to compile is that of a first run.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_CACHE_DIR": str(out / "inductor")}
        with (
            (out / "gpu_check.log").open("a") as log,
            subprocess.Popen(
                [sys.executable, *start],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that the workers of a loader end with it
            ) as process,
        ):
            timer = Timer(max(1.0, deadline - time.monotonic()), os.killpg, (process.pid, signal.SIGKILL))
            timer.start()
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    log.write(line)
            finally:
                timer.cancel()
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if process.returncode:
            return "stopped at its time limit" if time.monotonic() >= deadline else f"failed, exit {process.returncode}"
        print(f"-- {' '.join(command[:3])}: {time.monotonic() - started:.1f} s", flush=True)
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
        fill, headings = TABLES[section]
        table = Table(out / f"{section}.md", *headings)
        fill(table)
        sys.exit(table.failures > 0)

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
