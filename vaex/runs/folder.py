"""A run's folder: claimed once, with its config, its status and its results. Imports no torch."""

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vaex.config.schema import Config, config_dir
from vaex.errors import UserError
from vaex.runs.writing import TEMPORARY, Writing, replace_file

CONFIG, STATUS, RESULTS, METRICS, WEIGHTS = (
    "config.yaml",
    "status.json",
    "results.json",
    "metrics.jsonl",
    "model.safetensors",
)
LOG = "vaex.log"  # Hydra's name for it: hydra.job.name

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
