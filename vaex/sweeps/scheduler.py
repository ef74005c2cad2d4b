"""Runs the jobs of a sweep side by side, as many at once as the machine has room for."""

import logging
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from vaex.errors import Interrupted
from vaex.runs.folder import STATUS, RunFolder
from vaex.sweeps.resources import MemoryWatch
from vaex.sweeps.worker import Outcome, Worker
from vaex.training.signals import StopFlag

log = logging.getLogger("vaex")

INTERVAL = 0.25  # seconds between two checks of signals and memory


@dataclass
class Job:
    """A job and what became of it."""

    folder: Path
    start: Callable[[int | None], Worker]  # its argument is the GPU; None: the default device
    outcome: Outcome = Outcome(error="not run")
    paused: bool = False  # asked to stop, because memory is short; it is resumed later


class Scheduler:
    """Starts jobs while there is room, and collects their outcomes.

    Args:
        most: jobs that may run at once.
        gpus: among which the jobs are divided.
        stop: set when a signal asks the sweep to stop.
    """

    def __init__(self, jobs: Sequence[Job], most: int, gpus: int, stop: StopFlag) -> None:
        self.waiting = deque(jobs)
        self.running: list[tuple[Job, Worker]] = []  # in the order in which they started
        self.most, self.gpus, self.stop = most, gpus, stop
        self.memory = MemoryWatch()

    def run(self) -> None:
        """Run all jobs, even if some fail.

        Raises:
            Interrupted: a signal asked the sweep to stop, and the running jobs saved a checkpoint.
        """
        try:
            while self.waiting or self.running:
                if self.stop.number:
                    self._stop_all()
                    raise Interrupted(self.stop.number, "the sweep was stopped, and its runs saved a checkpoint")
                while self.waiting and self._has_room():
                    self._start(self.waiting.popleft())
                self._collect()
                self._make_room()
        finally:
            self._stop_all()

    def _has_room(self) -> bool:
        used = [worker.memory() for _, worker in self.running]
        return not used or (len(used) < self.most and self.memory.another_fits(used))

    def _start(self, job: Job) -> None:
        busy = [worker.gpu for _, worker in self.running]
        gpu = min(range(self.gpus), key=busy.count) if self.gpus > 1 else None
        job.paused = False
        self.running.append((job, job.start(gpu)))

    def _collect(self) -> None:
        """Wait until a job ends, or for INTERVAL, and record the outcomes of jobs that ended."""
        wait([handle for _, worker in self.running for handle in worker.handles()], timeout=INTERVAL)
        for job, worker in list(self.running):
            if not worker.poll():
                continue
            self.running.remove((job, worker))
            completed = worker.outcome is not None and worker.outcome.error is None
            if job.paused and not completed and not self.stop.number:
                self.waiting.appendleft(job)
            else:
                job.outcome = _outcome(job.folder, worker)

    def _make_room(self) -> None:
        """If memory is short, pause the run that started last: it saves a checkpoint, and is resumed later."""
        self.memory.observe([worker.memory() for _, worker in self.running])
        if len(self.running) > 1 and self.memory.is_short():
            job, worker = self.running[-1]
            if not job.paused:
                job.paused = True
                self.most = len(self.running) - 1
                log.warning(f"{job.folder.name}: paused, because memory is short; from now on {self.most} at once")
                worker.stop()

    def _stop_all(self) -> None:
        """Ask all running jobs to save a checkpoint, and wait until they end."""
        for _, worker in self.running:
            worker.stop()
        while self.running:
            self._collect()


def _outcome(folder: Path, worker: Worker) -> Outcome:
    """What became of a job whose process ended. Its status.json is corrected if the process could not write it."""
    run = RunFolder(folder)
    status_exists = (folder / STATUS).exists()
    code = worker.process.exitcode or 0
    if code < 0:
        reason = f"its process was ended by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            reason += ", as the system does when memory runs out"
        if status_exists and run.read_status().get("status") == "running":
            run.set_status("interrupted", reason=reason)
        return Outcome(error=reason)
    outcome = worker.outcome or Outcome(error=f"its process ended with code {code}, as the traceback above says")
    if outcome.error and not status_exists:  # it failed before the run began
        folder.mkdir(parents=True, exist_ok=True)
        run.set_status("failed", error=outcome.error)
    return outcome
