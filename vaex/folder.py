"""A run's folder: claimed once, with its config, its status and its results. Imports no torch."""

import json
import os
import platform
import subprocess
import sys
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


class RunFolder:
    """The folder of one run. Create with `claim` or `reopen`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def claim(cls, path: Path) -> "RunFolder":
        """Make `path` this run's own.

        Raises:
            UserError: another run has it, or it can't be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            with open(path / STATUS, "x") as file:  # fails if it exists: two runs can't both succeed
                file.write('{"status": "running"}\n')
        except FileExistsError as error:
            raise UserError(
                f"hydra.run.dir={path}: taken by another run; give a new folder, or go on with that run: resume={path}"
            ) from error
        except OSError as error:
            raise UserError(
                f"hydra.run.dir={path}: can't be written ({error.strerror}); give another folder"
            ) from error
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> "RunFolder":
        """Raises UserError when there is no run at `path`."""
        if not (path / CONFIG).is_file():
            raise UserError(f"resume={path}: no {CONFIG} there; give the folder of a run, as `vaex train` printed it")
        return cls(path)

    def write_config(self, config: Config, recorded: dict[str, Any]) -> None:
        """The resolved config, and under `recorded` what it ran with."""
        content = asdict(config) | {"recorded": recorded}
        content.pop("resume")
        replace_file(self.path / CONFIG, OmegaConf.to_yaml(OmegaConf.create(content)).encode())

    def read_config(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The config as plain containers, and what was recorded with it.

        A value that the vaex of the run didn't have yet is today's default.
        """
        defaults = OmegaConf.to_container(OmegaConf.load(config_dir() / "train.yaml"))
        assert isinstance(defaults, dict)
        for not_a_value in ("defaults", "hydra"):
            defaults.pop(not_a_value)
        content = OmegaConf.to_container(OmegaConf.merge(defaults, OmegaConf.load(self.path / CONFIG)))
        assert isinstance(content, dict)
        recorded = content.pop("recorded")
        return {str(key): value for key, value in content.items()} | {"resume": None}, recorded

    def set_status(self, status: str, **details: object) -> None:
        """status: running | completed | failed | interrupted."""
        self.write_json(STATUS, {"status": status, **details})

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        replace_file(self.path / name, (json.dumps(content, indent=2) + "\n").encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write so that at any moment, also of a crash, `path` holds either the old content or the new, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def provenance() -> dict[str, Any]:
    """Versions, and the git revision when vaex runs from a checkout."""
    packages = {name: version(name) for name in ("torch", "torchvision", "hydra-core", "omegaconf", "numpy")}
    return {
        "vaex": __version__,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        **packages,
        "command": ["vaex", "train", *sys.argv[1:]],
    }


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
