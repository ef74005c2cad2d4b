"""What is shown while a sweep is on: a line for each job that ends and, on a terminal, a bar for each that runs.

It looks at the jobs' folders, so that it tells the same of every launcher, also one whose jobs are on other machines.
"""

import sys
import threading
from textwrap import shorten
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from vaex.runs.folder import STATUS
from vaex.sweeps.folder import Job, SweepFolder
from vaex.sweeps.table import numbers

SECONDS = 0.5  # between looks


class Watch:
    """While this context lasts, in a thread. What had ended before isn't told again."""

    def __init__(self, folder: SweepFolder) -> None:
        self.folder = folder
        self.seen = {name: self._changed(name) for name in folder.names()}
        self.told: set[str] = set()
        self.bars: dict[str, tqdm[Any]] = {}
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.done.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.done.wait(SECONDS):
            self._look()
        self._look()
        for bar in self.bars.values():
            bar.close()

    def _look(self) -> None:
        names = self.folder.names()
        for name in names:
            changed = self._changed(name)
            if name in self.told or changed == 0 or changed == self.seen.get(name):
                continue
            job = self.folder.job(name)
            if job.status == "running":
                self._bar(job)
            elif job.status != "not run":
                self._tell(job, len(names))

    def _changed(self, name: str) -> int:
        """When the job's status was last written; 0 if never."""
        try:
            return (self.folder.path / name / STATUS).stat().st_mtime_ns
        except OSError:
            return 0

    def _bar(self, job: Job) -> None:
        if not sys.stderr.isatty():
            return
        if job.name not in self.bars:
            self.bars[job.name] = tqdm(desc=job.name, leave=False, unit=" steps", dynamic_ncols=True)
        bar = self.bars[job.name]
        bar.total = job.steps
        bar.update(job.step - bar.n)

    def _tell(self, job: Job, count: int) -> None:
        self.told.add(job.name)
        if job.name in self.bars:
            self.bars.pop(job.name).close()
        found = numbers(job)
        seconds = f"{found.pop('seconds')} s" if found["seconds"] else ""
        shown = "  ".join([seconds, *(f"{title} {value}" for title, value in found.items() if value)]).strip()
        error = "  " + shorten(job.error, 100, placeholder=" …") if job.error else ""
        ended = sum(1 for name in self.folder.names() if name in self.told)
        tqdm.write(
            f"[{ended:>{len(str(count))}}/{count}] {job.name}  {job.status}  {shown}{error}".rstrip(), file=sys.stderr
        )
