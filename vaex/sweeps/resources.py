"""What this machine, or the container that is all a process sees of it, has for several runs at once."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
LEAST = GIB  # bytes that are left to others
FIRST_GUESS = 3 * GIB // 4  # bytes that a run takes, until one has shown it


def cores() -> int:
    """Cores that this process may use."""
    available = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return available if quota == "max" else max(1, min(available, math.floor(int(quota) / int(period))))
    except (OSError, ValueError):
        return available


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    available = values["MemAvailable"]
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            available = min(available, int(limit) - used + _reclaimable())
    except (OSError, ValueError):
        pass
    return available


def _reclaimable() -> int:
    """Bytes of the container's that are only a cache of files."""
    lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def own_memory(process: int) -> int:
    """Bytes that a process has for itself, without what it shares with others; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


@dataclass(frozen=True)
class Plan:
    """`workers` runs at once, each with so many `threads`, on these GPUs in turn; `why` in words."""

    workers: int
    threads: int
    gpus: int
    why: str


def plan(setting: str, jobs: int, cores: int, gpus: int) -> Plan:
    """How to share a machine among runs.

    Args:
        setting: auto, or the number of workers as text.
        jobs: how many runs there are.
        gpus: that the runs will be on; 0 on a CPU.
    """
    kind = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{cores} core{'s' * (cores > 1)}"
    if setting != "auto":
        most, why = int(setting), f"sweep.workers={setting}, {kind}"
    elif gpus:  # while one run tests, draws or starts on the CPU, another has the GPU
        most, why = 2 * gpus, f"{kind}; sweep.workers=N sets it"
    else:  # runs side by side wait for nothing, threads of one run for each other
        most, why = cores, f"{kind}; sweep.workers=N sets it"
    workers = max(1, min(most, jobs))
    return Plan(workers, max(1, cores // workers), gpus, why)


def fits_another(running: list[int], peak: int, available: int) -> bool:
    """Whether one more run would fit into the memory when all have grown to the largest seen.

    Args:
        running: bytes that each run has now.
        peak: the most that one has had.
        available: bytes to be had now.
    """
    need = max(peak, FIRST_GUESS)
    still_to_come = sum(max(0, need - has) for has in running)
    return available - still_to_come >= need + LEAST
