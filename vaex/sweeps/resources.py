"""The cores and the memory that a sweep may use, on this machine or in the container that limits it."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
RESERVE = GIB  # bytes of memory reserved for other programs
FIRST_ESTIMATE = 3 * GIB // 4  # bytes that a run is assumed to need, until one has used more


def cores() -> int:
    """Cores that this process may use."""
    available = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return available if quota == "max" else max(1, min(available, math.floor(int(quota) / int(period))))
    except (OSError, ValueError):
        return available


def available_memory() -> int:
    """Bytes that can be allocated without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    available = values["MemAvailable"]
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            statistics = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
            cache = int(statistics.get("inactive_file", 0))  # the system frees it when a process needs memory
            available = min(available, int(limit) - used + cache)
    except (OSError, ValueError):
        pass
    return available


def private_memory(process: int) -> int:
    """Bytes that a process does not share with others; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


@dataclass(frozen=True)
class Share:
    """How many runs are trained at once, the threads of each, and the reason in words."""

    workers: int
    threads: int
    reason: str


def share(setting: str, jobs: int, cores: int, gpus: int) -> Share:
    """Divide a machine among the runs of a sweep.

    Args:
        setting: auto, or the number of runs at once.
        jobs: the number of runs in all.
        gpus: how many the runs use; 0 on a CPU.
    """
    machine = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{cores} core{'s' * (cores > 1)}"
    if setting != "auto":
        most, reason = int(setting), f"sweep.workers={setting}, {machine}"
    else:
        # Two runs on a GPU: one computes while the other tests, draws or starts. On a CPU one thread each: the threads
        # of one run wait for each other, runs do not.
        most, reason = 2 * gpus or cores, f"{machine}; sweep.workers=N sets it"
    workers = max(1, min(most, jobs))
    return Share(workers, max(1, cores // workers), reason)


class MemoryWatch:
    """Decides from the memory of the runs whether another may start, and whether one has to pause."""

    def __init__(self) -> None:
        self.peak = 0  # bytes, the most that any run has used

    def observe(self, used: Sequence[int]) -> None:
        """Args: used: bytes of each run."""
        self.peak = max(self.peak, *used, 0)

    def another_fits(self, used: Sequence[int]) -> bool:
        """Whether a new run and all that are running could reach the peak memory seen so far."""
        need = max(self.peak, FIRST_ESTIMATE)
        growth = sum(max(0, need - size) for size in used)
        return available_memory() - growth >= need + RESERVE

    def is_short(self) -> bool:
        return available_memory() < RESERVE // 2
