"""Progress of a sweep: a line for each job that ends and, on a terminal, a bar for each job that runs.

It is read from the folders of the jobs, so it is the same for every launcher, even for jobs on other machines.
"""

import sys
import threading
from textwrap import shorten
from typing import Any, Self

from tqdm import tqdm

from vaex.runs.folder import STATUS
from vaex.sweeps.folder import JobState, SweepFolder

INTERVAL = 0.5  # seconds between two reads of the folders


class Watch:
    """Shows progress from another thread while its context lasts. Jobs that ended before are counted, but not shown."""

    def __init__(self, folder: SweepFolder) -> None:
        self.folder = folder
        self.reported = {name: self._changed(name) for name in folder.names()}  # status files that need no line
        self.finished_jobs = {job.name for job in folder.jobs() if job.status == "completed"}
        self.bars: dict[str, tqdm[Any]] = {}
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(INTERVAL):
            self._show()
        self._show()
        for bar in self.bars.values():
            bar.close()

    def _show(self) -> None:
        names = self.folder.names()
        for name in names:
            changed = self._changed(name)
            if changed in (0, self.reported.get(name)):
                continue
            job = self.folder.job(name)
            if job.status == "running":
                self._show_running(job)
            elif job.status != "not run":
                self.reported[name] = changed
                self._show_ended(job, len(names))

    def _changed(self, name: str) -> int:
        """When the job's status was last written, in nanoseconds; 0 if it never was."""
        try:
            return (self.folder.path / name / STATUS).stat().st_mtime_ns
        except OSError:
            return 0

    def _show_running(self, job: JobState) -> None:
        if not sys.stderr.isatty():
            return
        if job.name not in self.bars:
            self.bars[job.name] = tqdm(desc=job.name, leave=False, unit=" steps", dynamic_ncols=True)
        bar = self.bars[job.name]
        bar.total = job.steps
        bar.update(job.step - bar.n)

    def _show_ended(self, job: JobState, count: int) -> None:
        self.finished_jobs.add(job.name)
        if job.name in self.bars:
            self.bars.pop(job.name).close()
        cells = [f"{text} s" if title == "seconds" else f"{title} {text}" for title, text in job.numbers().items()]
        if job.error:
            cells.append(shorten(job.error, 100, placeholder=" …"))
        counter = f"[{len(self.finished_jobs):>{len(str(count))}}/{count}]"
        tqdm.write("  ".join([f"{counter} {job.name}", job.status, *cells]), file=sys.stderr)
