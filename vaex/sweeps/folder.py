"""A sweep's folder: what was asked for, its jobs, and how far each has come. Imports no torch."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaex.errors import UserError
from vaex.runs.folder import METRICS, STATUS, RunFolder
from vaex.runs.writing import replace_file

SWEEP = "sweep.json"


@dataclass(frozen=True)
class Job:
    """One run of a sweep, as its folder tells.

    `status` is a run's, or `not run`; `steps` how many it was to take, `step` how many it has logged; `seconds` of
    training.
    """

    name: str
    path: Path
    status: str
    error: str | None
    step: int
    steps: int | None
    results: Mapping[str, Any]

    @property
    def seconds(self) -> float | None:
        return self.results.get("train/seconds")


class SweepFolder:
    """The folder of a sweep, which needn't be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other sweeps out of the folder, which is made if need be.

        Raises:
            UserError: another sweep is at work there, or the folder can't be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{self.path}: can't be made ({error.strerror}); give another sweep=FOLDER") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(f"sweep={self.path}: another command is at work on it; wait for it, or end it") from error
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            os.close(descriptor)

    def read(self) -> dict[str, Any]:
        """What was asked for: `arguments` of the command, `constant` and `jobs`. Empty if there is no sweep here.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / SWEEP
        if not path.exists():
            return {}
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            return {"arguments": content["arguments"], "constant": content["constant"], "jobs": content["jobs"]}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error}); remove it and give the whole command again") from error

    def write(self, arguments: Sequence[str], constant: Mapping[str, str], jobs: Sequence[str]) -> None:
        """Raises UserError when it can't be written."""
        content = {"arguments": list(arguments), "constant": dict(constant), "jobs": list(jobs)}
        try:
            replace_file(self.path / SWEEP, (json.dumps(content, indent=2) + "\n").encode())
        except OSError as error:
            raise UserError(f"{self.path / SWEEP}: can't be written ({error.strerror})") from error

    def add_jobs(self, names: Sequence[str]) -> None:
        """Those asked for before, and these. Raises UserError when it can't be written."""
        content = self.read()
        known = content["jobs"] + [name for name in names if name not in content["jobs"]]
        self.write(content["arguments"], content["constant"], known)

    def discard(self) -> None:
        """Of a sweep that has no job: leave nothing behind."""
        (self.path / SWEEP).unlink(missing_ok=True)
        with suppress(OSError):  # something else is in there
            self.path.rmdir()

    def names(self) -> list[str]:
        """Of the jobs asked for, in their order; then of others there, such as a search's."""
        planned: list[str] = self.read().get("jobs", [])
        there = {path.parent.name for path in self.path.glob(f"*/{STATUS}")}
        return planned + sorted(there - set(planned))

    def job(self, name: str) -> Job:
        """A file that can't be read counts as one that isn't there."""
        path = self.path / name
        folder = RunFolder(path)
        try:
            status = folder.read_status()
        except UserError:
            status = {}
        try:
            results = folder.read_results()
        except UserError:
            results = {}
        error = status.get("error") or status.get("reason")
        return Job(
            name=name,
            path=path,
            status=status.get("status", "not run"),
            error=str(error) if error else None,
            step=_last_step(path / METRICS),
            steps=status.get("steps"),
            results=results,
        )

    def jobs(self) -> list[Job]:
        return [self.job(name) for name in self.names()]


def _last_step(metrics: Path) -> int:
    """The step of the last whole line; 0 without one."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, LookupError):
        return 0
