"""A run's folder: claimed once, with its config, its status and its results. Imports no torch."""

import errno
import fcntl
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vaex import __version__
from vaex.config import Config, config_dir
from vaex.errors import UserError

CONFIG, STATUS, RESULTS, METRICS, WEIGHTS = (
    "config.yaml",
    "status.json",
    "results.json",
    "metrics.jsonl",
    "model.safetensors",
)
LOG = "vaex.log"  # Hydra's name for it: hydra.job.name
TEMPORARY = ".vaex-tmp"  # at the end of the name of a file that is being written

log = logging.getLogger("vaex")


class RunFolder:
    """The folder of one run. Create with `claim` or `reopen`.

    Args:
        path: of the folder.
        written: else another process of the run writes it, and this one's writes are left out.
    """

    def __init__(self, path: Path, *, written: bool = True) -> None:
        self.path, self.written = path, written
        self._lock: int | None = None  # a descriptor of the folder, while other processes are kept off

    @classmethod
    def claim(cls, path: Path) -> "RunFolder":
        """Make `path` this run's own, and keep other processes off it until `alone` ends.

        Raises:
            UserError: another run has it, or it can't be written.
        """
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            free = folder._locked()
            try:
                if free:
                    with open(path / STATUS, "x") as file:  # without locks, two runs can't both succeed in this
                        file.write('{"status": "running"}\n')
            except FileExistsError:
                free = folder._came_to_nothing()
        except OSError as error:
            raise UserError(
                f"hydra.run.dir={path}: can't be written ({error.strerror}); give another folder"
            ) from error
        if not free:
            folder._unlock()
            raise UserError(
                f"hydra.run.dir={path}: taken by another run; give a new folder, or go on with that run: resume={path}"
            )
        return folder

    def _came_to_nothing(self) -> bool:
        """Whether a run ended here before it had anything to lose, as for a path that was mistyped."""
        try:
            status = self.read_status()["status"]
        except (UserError, KeyError):
            return False
        made = ("checkpoints", "figures", RESULTS, WEIGHTS)
        ended = status in ("failed", "interrupted") or (status == "running" and not (self.path / CONFIG).exists())
        return ended and not any((self.path / name).exists() for name in made)

    @classmethod
    def reopen(cls, path: Path) -> "RunFolder":
        """Raises UserError when there is no run at `path`."""
        if not (path / CONFIG).is_file():
            raise UserError(f"{path}: no {CONFIG} there; give the folder of a run, as `vaex train` printed it")
        return cls(path)

    def _locked(self) -> bool:
        """Take the lock, which the system takes back from a process that ends. Whether nobody else has it."""
        if self._lock is not None:
            return True
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            log.debug(f"{self.path}: is on a file system without locks")
        self._lock = descriptor
        return True

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def alone(self, wait: float = 0) -> Iterator[None]:
        """Keep other processes off this run, and remove what one that was killed left half-written.

        Args:
            wait: seconds within which another process may still end its work on the run.

        Raises:
            UserError: another process is at work on the run.
        """
        if not self.written:
            yield
            return
        until = time.monotonic() + wait
        while not self._locked():
            if time.monotonic() > until:
                raise UserError(
                    f"resume={self.path}: another process is at work on this run; wait for it, or end it first"
                )
            time.sleep(0.2)
        try:
            for left in self.path.rglob(f"*{TEMPORARY}"):
                with Writing(self.path).of("temporary file", left):
                    left.unlink()
            yield
        finally:
            self._unlock()

    def clear(self) -> None:
        """Remove what a run left here, but for its log."""
        for path in self.path.iterdir():
            if path.name in ("checkpoints", "figures"):
                shutil.rmtree(path)
            elif path.name in (CONFIG, RESULTS, METRICS, WEIGHTS) or path.name.startswith("events.out.tfevents."):
                path.unlink()

    def discard(self) -> None:
        """Of a run that was refused before it began: leave nothing behind, but for what others put there."""
        if (self.path / CONFIG).exists():
            return
        with suppress(OSError):
            shutil.rmtree(self.path / ".hydra", ignore_errors=True)
            for name in (STATUS, LOG):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    def write_config(self, config: Config, recorded: dict[str, Any]) -> None:
        """The resolved config, and under `recorded` what it ran with."""
        content = asdict(config) | {"recorded": recorded}
        for of_the_command in ("resume", "sweep"):
            content.pop(of_the_command)
        self.write(CONFIG, OmegaConf.to_yaml(OmegaConf.create(content)).encode())

    def read_config(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The config as plain containers, and what was recorded with it.

        A value that the vaex of the run didn't have yet is today's default.

        Raises:
            UserError: the file is damaged or can't be read.
        """
        defaults = OmegaConf.to_container(OmegaConf.load(config_dir() / "train.yaml"))
        assert isinstance(defaults, dict)
        for not_a_value in ("defaults", "hydra"):
            defaults.pop(not_a_value)
        path = self.path / CONFIG
        try:
            saved = OmegaConf.to_container(OmegaConf.load(path))
            assert isinstance(saved, dict)
            recorded = saved.pop("recorded")
            assert isinstance(recorded, dict)
            if "${" in str(saved):  # which to merge would resolve, as ${oc.env:SECRET} into a file
                raise ValueError("it holds an interpolation, ${…}, and a run writes values")
            content = OmegaConf.to_container(OmegaConf.merge(defaults, saved))
            assert isinstance(content, dict)
        except OSError as error:
            raise UserError(f"{path}: can't be read ({error.strerror})") from error
        except Exception as error:  # of YAML, of OmegaConf or ours, by what the damage is
            reason = (str(error) or "no mapping").splitlines()[0]
            raise UserError(
                f"{path}: damaged ({reason}); put a copy back: each checkpoint holds the values, under config"
            ) from error
        return {str(key): value for key, value in content.items()} | {"resume": None}, recorded

    def read_results(self) -> dict[str, Any]:
        """The numbers in results.json, none where there is no such file. Raises UserError when it is damaged."""
        if not (self.path / RESULTS).exists():
            return {}
        return self._read_json(RESULTS, "remove it, and vaex eval measures the test numbers anew")

    def read_status(self) -> dict[str, Any]:
        """What status.json says. Raises UserError when there is none, or it is damaged."""
        return self._read_json(STATUS, f"resume={self.path} goes on with the run, and writes it anew")

    def _read_json(self, name: str, remedy: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_text())
            if isinstance(content, dict):
                return content
            reason = "no object"
        except (OSError, ValueError) as error:
            reason = str(error)
        raise UserError(f"{self.path / name}: damaged ({reason}); {remedy}")

    def set_status(self, status: str, **details: object) -> None:
        """status: running | completed | failed | interrupted."""
        self.write_json(STATUS, {"status": status, **details})

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self.write(name, (json.dumps(content, indent=2) + "\n").encode())

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all. Raises WriteFailed."""
        if not self.written:
            return
        path = self.path / name
        with Writing(self.path).of("file", path):
            replace_file(path, content)


class WriteFailed(UserError):
    """A file of the run can't be written."""


class Writing:
    """What happens when a file of the run can't be written: the run ends with one line, or goes on with a warning.

    Args:
        folder: of the run.
        stop: else the run goes on, and each kind of file is warned of once, until it can be written again.
    """

    REMEDIES: dict[int | None, str] = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some of your quota",
        errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
        errno.EROFS: "make it writable",
        errno.EACCES: "make it writable",
        errno.EPERM: "make it writable",
    }

    def __init__(self, folder: Path, *, stop: bool = True) -> None:
        self.folder, self.stop = folder, stop
        self._failing: dict[str, int | None] = {}

    @contextmanager
    def of(self, what: str, path: Path, *, must: bool = False) -> Iterator[None]:
        """Around writing a kind of file. Raises WriteFailed if the run is to stop then, or this one `must` be."""
        try:
            yield
        except OSError as error:
            if os.path.isdir(self.folder):
                reason = os.strerror(error.errno) if error.errno else str(error)
                problem = f"{what} {path}: can't be written ({reason}); {self.REMEDIES.get(error.errno, 'mend that')}"
                then = f", then go on: vaex train resume={self.folder}"
            else:
                problem = f"{self.folder}: is gone"
                then = ", and what the run had saved with it; start the run anew"
            if self.stop or must:
                raise WriteFailed(problem + then) from error
            if self._failing.get(what, 0) != error.errno:
                log.warning(f"{problem}. Going on; the next save tries again")
            self._failing[what] = error.errno
        else:
            if self._failing.pop(what, 0):
                log.info(f"{what} {path}: written again")


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write so that at any moment, also of a crash, `path` holds either the old content or the new, whole.

    Raises OSError, and leaves the old content.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def versions() -> dict[str, str]:
    """Of vaex, Python and the packages that make the numbers."""
    packages = {name: version(name) for name in ("torch", "torchvision", "hydra-core", "omegaconf", "numpy")}
    return {"vaex": __version__, "python": platform.python_version(), **packages}


def provenance() -> dict[str, Any]:
    """Versions, and the git revision when vaex runs from a checkout."""
    return versions() | {"git_revision": _git_revision(), "command": ["vaex", "train", *sys.argv[1:]]}


def _git_revision() -> str | None:
    checkout = config_dir().parent
    if not (checkout / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
