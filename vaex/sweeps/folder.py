"""The folder of a sweep: its command, its jobs, and how far each job is. Imports no torch."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaex.errors import UserError
from vaex.runs.folder import METRICS, STATUS, RunFolder, check_own
from vaex.runs.reading import read_json
from vaex.runs.writing import replace_file

SWEEP = "sweep.json"


@dataclass(frozen=True)
class JobState:
    """How far a job is, as the files in its folder say.

    Attributes:
        status: of the run (see RunFolder.set_status), or `not run`.
        error: why the run failed or was interrupted.
        step: the last step that the run logged; 0 before the first.
        steps: the number of steps that it takes.
        seconds: of training, once the run is complete.
        summary: title -> text of its headline metrics, once the run is complete.
    """

    name: str
    status: str = "not run"
    error: str | None = None
    step: int = 0
    steps: int | None = None
    seconds: float | None = None
    summary: Mapping[str, str] = field(default_factory=dict)

    def numbers(self) -> dict[str, str]:
        """Title -> text of the training time in seconds and of the headline metrics; empty until it is complete."""
        seconds = {} if self.seconds is None else {"seconds": f"{self.seconds:.0f}"}
        return {**seconds, **self.summary}


class SweepFolder:
    """The folder of a sweep, which may not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder if necessary, and keep other sweeps out of it.

        Raises:
            UserError: another sweep is at work there, or the folder cannot be created.
        """
        check_own("sweep", self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be created ({error.strerror}); give another sweep=FOLDER") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(f"sweep={self.path}: another command is at work on it; wait for it, or stop it") from error
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            os.close(descriptor)

    def read(self) -> dict[str, Any]:
        """The content of sweep.json, empty if there is none.

        `arguments` are those of the command, `constant` the values that all jobs share, `jobs` the names of the jobs.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / SWEEP
        if not path.exists():
            return {}
        remedy = "remove it and give the whole command again"
        content = read_json(path, remedy, _check_sweep)
        return {"arguments": content["arguments"], "constant": content["constant"], "jobs": content["jobs"]}

    def write(self, arguments: Sequence[str], constant: Mapping[str, str], jobs: Sequence[str]) -> None:
        """Write sweep.json. Raises UserError if that is impossible."""
        content = {"arguments": list(arguments), "constant": dict(constant), "jobs": list(jobs)}
        try:
            replace_file(self.path / SWEEP, (json.dumps(content, indent=2) + "\n").encode())
        except OSError as error:
            raise UserError(f"{self.path / SWEEP}: cannot be written ({error.strerror})") from error

    def add_jobs(self, names: Sequence[str]) -> None:
        """Add names to the jobs in sweep.json, each once. Raises UserError if the file cannot be written."""
        content = self.read()
        jobs = list(dict.fromkeys([*content["jobs"], *names]))
        self.write(content["arguments"], content["constant"], jobs)

    def discard(self) -> None:
        """Remove a sweep that has no job."""
        (self.path / SWEEP).unlink(missing_ok=True)
        with suppress(OSError):  # the folder has other files
            self.path.rmdir()

    def names(self) -> list[str]:
        """The jobs in sweep.json, in their order, then other runs in the folder, such as those of an old search."""
        planned: list[str] = self.read().get("jobs", [])
        runs = {path.parent.name for path in self.path.glob(f"*/{STATUS}")}
        return planned + sorted(runs - set(planned))

    def job(self, name: str) -> JobState:
        """The state of a job. A file that cannot be read counts as one that does not exist."""
        folder = RunFolder(self.path / name)
        status: dict[str, Any] = {}
        results: dict[str, Any] = {}
        with suppress(UserError):
            status = folder.read_status()
        with suppress(UserError):
            results = folder.read_results()
        error = status.get("error") or status.get("reason")
        return JobState(
            name=name,
            status=status.get("status", "not run"),
            error=str(error) if error else None,
            step=_last_step(folder.path / METRICS),
            steps=status.get("steps"),
            seconds=results.get("train/seconds"),
            summary=status.get("summary", {}),
        )

    def jobs(self) -> list[JobState]:
        return [self.job(name) for name in self.names()]


def _check_sweep(content: dict[str, Any]) -> None:
    """Raises ValueError unless sweep.json holds what `SweepFolder.write` writes."""
    match content:
        case {"arguments": [*arguments], "constant": {**constant}, "jobs": [*jobs]}:
            if all(isinstance(text, str) for text in (*arguments, *constant.values(), *jobs)):
                if outside := [name for name in jobs if "/" in name or name in ("", ".", "..")]:
                    raise ValueError(f"the job {outside[0]} is not a folder in this one")
                return
    raise ValueError("it needs arguments, constant and jobs, all of text")


def announce(folder: Path | str, jobs: str) -> None:
    """Print what a sweep is about to run, and where."""
    print(f"{'sweep':>10}  {jobs}\n{'in':>10}  {folder}", flush=True)


def _last_step(metrics: Path) -> int:
    """The step of the last complete line; 0 without one."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return 0
