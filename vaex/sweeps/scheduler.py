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
class Task:
    """What one process does: one job, or several that are trained together; and what became of them."""

    folders: Sequence[Path]  # of the jobs
    start: Callable[[int | None], Worker]  # its argument is the GPU; None: the default device
    outcomes: Sequence[Outcome] = ()  # of the jobs, once they have ended
    paused: bool = False  # asked to stop, because memory is short; it is resumed later


class Scheduler:
    """Starts tasks while there is room, and collects the outcomes of their jobs.

    Args:
        most: tasks that may run at once.
        gpus: among which the tasks are divided.
        stop: set when a signal asks the sweep to stop.
    """

    def __init__(self, tasks: Sequence[Task], most: int, gpus: int, stop: StopFlag) -> None:
        self.waiting = deque(tasks)
        self.running: list[tuple[Task, Worker]] = []  # in the order in which they started
        self.most, self.gpus, self.stop = most, gpus, stop
        self.memory = MemoryWatch()

    def run(self) -> None:
        """Run all tasks, even if some fail.

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

    def _start(self, task: Task) -> None:
        busy = [worker.gpu for _, worker in self.running]
        gpu = min(range(self.gpus), key=busy.count) if self.gpus > 1 else None
        task.paused = False
        self.running.append((task, task.start(gpu)))

    def _collect(self) -> None:
        """Wait until a task ends, or for INTERVAL, and record the outcomes of the jobs of those that ended."""
        wait([handle for _, worker in self.running for handle in worker.handles()], timeout=INTERVAL)
        for task, worker in list(self.running):
            if not worker.poll():
                continue
            self.running.remove((task, worker))
            completed = worker.outcomes is not None and all(outcome.error is None for outcome in worker.outcomes)
            if task.paused and not completed and not self.stop.number:
                self.waiting.appendleft(task)
            else:
                received: list[Outcome] | list[None] = worker.outcomes or [None] * len(task.folders)
                pairs = zip(task.folders, received, strict=True)
                task.outcomes = [_outcome(folder, outcome, worker) for folder, outcome in pairs]

    def _make_room(self) -> None:
        """If memory is short, pause the run that started last: it saves a checkpoint, and is resumed later."""
        self.memory.observe([worker.memory() for _, worker in self.running])
        if len(self.running) > 1 and self.memory.is_short():
            task, worker = self.running[-1]
            if not task.paused:
                task.paused = True
                self.most = len(self.running) - 1
                log.warning(f"{task.folders[0].name}: paused, because memory is short; from now on {self.most} at once")
                worker.stop()

    def _stop_all(self) -> None:
        """Ask all running jobs to save a checkpoint, and wait until they end."""
        for _, worker in self.running:
            worker.stop()
        while self.running:
            self._collect()


def _outcome(folder: Path, received: Outcome | None, worker: Worker) -> Outcome:
    """What became of a job whose process ended. Its status.json is corrected if the process could not write it."""
    run = RunFolder(folder)
    status_exists = (folder / STATUS).exists()
    code = worker.process.exitcode or 0
    status = run.read_status() if status_exists else {}
    if received is None and status.get("status") == "completed":  # before the process, which had others, ended
        return Outcome(value=status.get("monitored"))
    if code < 0:
        reason = f"its process was ended by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            reason += ", as the system does when memory runs out"
        if status.get("status") == "running":
            run.set_status("interrupted", reason=reason)
        return Outcome(error=reason)
    outcome = received or Outcome(error=f"its process ended with code {code}, as the traceback above says")
    if outcome.error and not status_exists:  # it failed before the run began
        folder.mkdir(parents=True, exist_ok=True)
        run.set_status("failed", error=outcome.error)
    return outcome
