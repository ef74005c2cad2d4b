"""The folder of one run: its lock, config, status and results. Imports no torch."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vaex.config.schema import Config, config_dir
from vaex.errors import UserError, first_line
from vaex.runs.reading import check_results, check_status, mapping, parse_yaml, read_json
from vaex.runs.writing import TEMPORARY, WritePolicy, replace_file

CONFIG, STATUS, RESULTS = "config.yaml", "status.json", "results.json"
METRICS, WEIGHTS = "metrics.jsonl", "model.safetensors"
WEIGHTS_HASH = "model/sha256"  # key of results.json: of the weights that its numbers describe
LOG = "vaex.log"  # named by Hydra, after hydra.job.name

log = logging.getLogger("vaex")


class RunFolder:
    """The folder of one run at `path`. `claim` makes a new one; `reopen` opens an existing run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None  # a descriptor of the folder, while this process holds the lock

    @classmethod
    def claim(cls, path: Path) -> "RunFolder":
        """Make `path` the folder of a new run, and keep other processes out of it until `lock` is left.

        Raises:
            UserError: the folder belongs to another run, or can't be written.
        """
        folder, claimed = cls(path), False
        check_own("hydra.run.dir", path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            claimed = folder._try_lock() and (folder._create_status() or folder._holds_no_work())
        except OSError as error:
            raise UserError(f"hydra.run.dir={path}: can't be written ({error.strerror}); use another folder") from error
        finally:
            if not claimed:
                folder._unlock()
        if not claimed:
            raise UserError(
                f"hydra.run.dir={path}: taken by another run; use a new folder, or continue that run with resume={path}"
            )
        return folder

    @classmethod
    def reopen(cls, path: Path) -> "RunFolder":
        """Raises UserError if `path` holds no run."""
        if not (path / CONFIG).is_file():
            raise UserError(f"{path}: contains no {CONFIG}; give a run folder, as printed by `vaex train`")
        return cls(path)

    def _create_status(self) -> bool:
        """Create status.json. Returns False if it exists: on a file system without locks only one run can create it."""
        try:
            with open(self.path / STATUS, "x") as file:
                file.write('{"status": "running"}\n')
        except FileExistsError:
            return False
        except OSError:  # an empty file would look like that of another run
            (self.path / STATUS).unlink(missing_ok=True)
            raise
        return True

    def _holds_no_work(self) -> bool:
        """Whether the run in this folder ended before it produced anything, such as after an error in its config."""
        try:
            status = self.read_status()["status"]
        except (UserError, KeyError):
            return False
        ended = status in ("failed", "interrupted") or (status == "running" and not (self.path / CONFIG).exists())
        return ended and not any((self.path / name).exists() for name in ("checkpoints", "figures", RESULTS, WEIGHTS))

    def _try_lock(self) -> bool:
        """Returns False if another process holds the lock. The system releases a lock when its process ends."""
        if self._lock is not None:
            return True
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            log.debug(f"{self.path}: the file system has no locks")
        self._lock = descriptor
        return True

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def lock(self, wait: float = 0) -> Iterator[None]:
        """Keep other processes out of this run, and remove the half-written files of a killed process.

        Args:
            wait: seconds to wait for another process that works on the run.

        Raises:
            UserError: another process is still at work on the run.
        """
        deadline = time.monotonic() + wait
        while not self._try_lock():
            if time.monotonic() > deadline:
                raise UserError(
                    f"resume={self.path}: another process is at work on this run; wait until it ends, or stop it"
                )
            time.sleep(0.2)
        try:
            own = (self.path / name for name in ("checkpoints", "figures"))
            for path in chain(self.path.glob(f"*{TEMPORARY}"), *(folder.rglob(f"*{TEMPORARY}") for folder in own)):
                with WritePolicy(self.path).guard("temporary file", path):
                    path.unlink()
            yield
        finally:
            self._unlock()

    def clear(self) -> None:
        """Remove everything that a run wrote to the folder except its log."""
        for path in self.path.iterdir():
            if path.name in ("checkpoints", "figures"):
                shutil.rmtree(path)
            elif path.name in (CONFIG, RESULTS, METRICS, WEIGHTS) or path.name.startswith("events.out.tfevents."):
                path.unlink()

    def discard(self) -> None:
        """Remove the folder of a run that failed before it started, unless it contains other files."""
        if (self.path / CONFIG).exists():
            return
        with suppress(OSError):
            shutil.rmtree(self.path / ".hydra", ignore_errors=True)
            for name in (STATUS, LOG):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    def write_config(self, config: Config, recorded: dict[str, Any]) -> None:
        """Write the resolved config, with the facts in `recorded` (versions, choices, overrides) under that key."""
        content = asdict(config) | {"recorded": recorded}
        for argument in ("resume", "sweep"):  # belong to one command, not to the run
            content.pop(argument)
        self.write(CONFIG, OmegaConf.to_yaml(OmegaConf.create(content)).encode())

    def read_config(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The config as plain containers, and the facts recorded with it.

        An option that the run's version of vaex did not have yet takes its current default.

        Raises:
            UserError: the file is damaged or can't be read.
        """
        path = self.path / CONFIG
        try:
            saved = mapping(parse_yaml(path.read_text(encoding="utf-8")) or {})  # of an empty file
            recorded = mapping(saved.pop("recorded"))
            if "${" in str(saved):  # merging would resolve it, and ${oc.env:SECRET} would end up in a file
                raise ValueError("it contains an interpolation ${…}, and a run writes only values")
            content = mapping(OmegaConf.to_container(OmegaConf.merge(_defaults(), saved)))
        except OSError as error:
            raise UserError(f"{path}: can't be read ({error.strerror})") from error
        except Exception as error:  # raised by YAML, by OmegaConf or here, depending on the damage
            reason = first_line(error)
            raise UserError(
                f"{path}: damaged ({reason}); restore it from a copy: each checkpoint holds the values under config"
            ) from error
        return content | {"resume": None}, recorded

    def read_results(self) -> dict[str, Any]:
        """The numbers in results.json; empty if the file does not exist. Raises UserError if it is damaged."""
        if not (self.path / RESULTS).exists():
            return {}
        remedy = "remove it, and vaex eval measures the test metrics again"
        return read_json(self.path / RESULTS, remedy, check_results)

    def check_weights(self, content: bytes) -> None:
        """Raises UserError unless the weights are those that the numbers in results.json describe."""
        expected = self.read_results().get(WEIGHTS_HASH)  # older runs have none
        if expected not in (None, weights_hash(content)):
            raise UserError(
                f"{self.path / WEIGHTS}: damaged, or of another run: its SHA-256 is not the one in {RESULTS}. Restore "
                f"it, write both files again with vaex train resume={self.path}, or remove {RESULTS} to use these "
                "weights"
            )

    def read_status(self) -> dict[str, Any]:
        """The content of status.json. Raises UserError if the file does not exist or is damaged."""
        remedy = f"resume={self.path} continues the run and writes the file again"
        return read_json(self.path / STATUS, remedy, check_status)

    def set_status(self, status: str, **details: object) -> None:
        """status: running | completed | failed | interrupted."""
        self.write_json(STATUS, {"status": status, **details})

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self.write(name, (json.dumps(content, indent=2) + "\n").encode())

    def write(self, name: str, content: bytes) -> None:
        """Replace the file's content, whole or not at all. Raises WriteFailed."""
        path = self.path / name
        with WritePolicy(self.path).guard("file", path):
            replace_file(path, content)


def check_own(key: str, path: Path) -> None:
    """Raises UserError if the folder can't be that of one run or sweep only: the root, the home, or above this one."""
    folder = path.resolve()
    if folder in (Path(folder.anchor), Path.home(), *Path.cwd().parents):
        raise UserError(f"{key}={path}: contains more than a run would own; give it a new folder, such as outputs/mine")


def weights_hash(content: bytes) -> str:
    """The SHA-256 of model.safetensors."""
    return hashlib.sha256(content).hexdigest()


@cache
def _defaults() -> dict[str, Any]:
    """The values in conf/train.yaml, read once because many runs may be read."""
    defaults = mapping(OmegaConf.to_container(OmegaConf.load(config_dir() / "train.yaml")))
    return {key: value for key, value in defaults.items() if key not in ("defaults", "hydra")}  # for Hydra, not values
