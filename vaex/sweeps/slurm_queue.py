"""What Slurm says about the jobs of a sweep, through its own commands."""

import getpass
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUBMISSIONS = ".submitit"  # in the folder of a sweep: one folder for each submission, with its logs
NAMES = "names.json"  # in the folder of a submission: the names of its jobs, in the order of the job array
ENDED = (
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED"),
    *("OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"),
)

# What an error of sbatch, or the reason why a job is pending, says -> the options to change. The first match counts.
REMEDIES = {
    r"generic resource|gres": ("gpus_per_node", "gres"),
    r"memory": ("mem_gb",),
    r"time.?limit": ("timeout_min",),
    r"node configuration|partitionconfig|nodelimit|cpu count": ("cpus_per_task", "mem_gb", "gpus_per_node"),
    r"qos": ("qos",),
    r"account|assoc": ("account",),
    r"partition": ("partition",),
    r"feature|constraint": ("constraint",),
}


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue of Slurm, which lists a job for some minutes after it has ended.

    Attributes:
        number: such as 12, or 12_0 in a job array.
        state: such as PENDING.
        reason: why it is pending.
        log: what it wrote to stderr.
    """

    number: str
    state: str
    reason: str
    log: Path

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def queued_jobs(sweep: Path) -> dict[str, QueuedJob] | None:
    """Name -> job, for the jobs that were submitted for the sweep. None if Slurm does not answer.

    A job is recognized by its script, which is in the folder of its submission. So no number of a job has to be stored,
    and a command that was killed right after its submission leaves no job that is unknown.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", "--user", getpass.getuser()]
    listing = subprocess.run([*command, "--format=%F|%K|%T|%r|%o"], capture_output=True, text=True)
    if listing.returncode:
        return None
    submissions = (sweep / SUBMISSIONS).resolve()
    jobs: dict[str, QueuedJob] = {}
    rows = [line.strip().split("|", 4) for line in listing.stdout.splitlines()]
    # The latest job of a name counts. A row without an index stands for the jobs of an array that never started, or for
    # a job that is no array.
    for number, index, state, reason, script in sorted(rows, key=lambda row: (int(row[0]), row[1].isdigit())):
        folder = Path(script).parent
        if folder.parent.resolve() != submissions or not (folder / NAMES).exists():
            continue
        names = json.loads((folder / NAMES).read_text())
        for position in [int(index)] if index.isdigit() else range(len(names)):
            task = f"{number}_{position}" if len(names) > 1 else number
            jobs[names[position]] = QueuedJob(task, state, reason, folder / f"{task}_0_log.err")
    return jobs


def cancel(jobs: Iterable[QueuedJob]) -> None:
    """Ask jobs to end. Slurm sends SIGTERM to those that run, and SIGKILL some time later."""
    if numbers := [job.number for job in jobs]:
        subprocess.run(["scancel", *numbers], check=False, capture_output=True)


def has_gpus(partition: str | None) -> bool:
    """Whether a node of the partition, which is the default one if it is None, has a GPU."""
    listing = subprocess.run(["sinfo", "--noheader", "--format=%P|%G"], capture_output=True, text=True)
    rows = [line.strip().split("|", 1) for line in listing.stdout.splitlines()]
    chosen = partition.split(",") if partition else [name for name, _ in rows if name.endswith("*")]
    return any("gpu" in resources for name, resources in rows if name in chosen or name.rstrip("*") in chosen)


def remedy(message: str, options: Mapping[str, Any]) -> str:
    """`; change …` with the options of the launcher that this message of Slurm is about; empty if it is unknown."""
    for pattern, keys in REMEDIES.items():
        if re.search(pattern, message, re.IGNORECASE):
            chosen = [f"hydra.launcher.{key}={options[key]}" for key in keys if options.get(key) is not None]
            return f"; change {', '.join(chosen or [f'hydra.launcher.{keys[0]}'])}"
    return ""
