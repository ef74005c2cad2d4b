"""What Slurm says about the jobs of a sweep, through its own commands."""

import getpass
import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SUBMISSIONS = ".submitit"  # in the folder of a sweep: one folder for each submission, with its logs
NAMES = "names.json"  # in the folder of a submission: the names of its jobs, in the order of the job array
ENDED = (
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED"),
    *("OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"),
)

# What an error of sbatch, or the reason why a job is pending, says -> what to set. The first match counts.
REMEDIES = {
    r"generic resource|gres|gpu": "hydra.launcher.gpus_per_node=0 is for a cluster without GPUs",
    r"memory": "set hydra.launcher.mem_gb",
    r"time.?limit": "set hydra.launcher.timeout_min",
    r"node configuration|partitionconfig|nodelimit|cpu count": "no node of the partition has as many cores or GPUs, or "
    "as much memory; set hydra.launcher.cpus_per_task, gpus_per_node or mem_gb",
    r"qos": "set hydra.launcher.qos",
    r"account|assoc": "set hydra.launcher.account",
    r"partition": "set hydra.launcher.partition; `sinfo` lists the partitions",
    r"feature|constraint": "set hydra.launcher.constraint",
    r"job array": "the cluster limits the size of a job array; give fewer values at once",
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
    for number, index, state, reason, script in sorted(rows, key=lambda row: int(row[0])):
        folder = Path(script).parent
        if folder.parent.resolve() != submissions or not (folder / NAMES).exists():
            continue
        names = json.loads((folder / NAMES).read_text())
        name = names[int(index) if index.isdigit() else 0]  # a single job is no job array
        number = f"{number}_{index}" if index.isdigit() else number
        jobs[name] = QueuedJob(number, state, reason, folder / f"{number}_0_log.err")  # the latest with this name
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


def remedy(message: str) -> str:
    """`; ` and what to set after this message of Slurm; empty if it is unknown."""
    texts = (text for pattern, text in REMEDIES.items() if re.search(pattern, message, re.IGNORECASE))
    return "".join(f"; {text}" for text in list(texts)[:1])
