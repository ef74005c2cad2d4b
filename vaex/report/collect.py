"""The runs of a report, read from their folders, whatever state they are in. Imports no torch."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vaex.config.schema import config_dir
from vaex.errors import UserError
from vaex.runs.find import short_names
from vaex.runs.folder import CONFIG, RESULTS, STATUS

Value = str | int | float | bool | tuple[Any, ...] | None
STATES = ("completed", "failed", "interrupted", "running")


@dataclass(frozen=True)
class Run:
    """One run's folder.

    Attributes:
        name: its path from where all the runs are.
        status: completed, failed, interrupted, running, or unknown.
        reason: the last line of what stopped it, or of what in its folder can't be read; empty where nothing did.
        config: dotted key -> value. Empty when the run ended before it wrote one.
        choices: group -> option.
        overrides: what was asked for on the command line, of a run without a config.
        image_shape: (channels, height, width), when there is a config.
        results: results.json, empty when there is none.
    """

    path: Path
    name: str
    status: str
    reason: str
    config: Mapping[str, Value]
    choices: Mapping[str, str]
    overrides: Mapping[str, Value]
    image_shape: tuple[int, int, int] | None
    results: Mapping[str, Any]

    @property
    def seed(self) -> Value:
        return self.config.get("seed", self.overrides.get("seed"))

    @property
    def complete(self) -> bool:
        """Whether its test numbers count."""
        return self.status == "completed" and bool(self.results) and self.image_shape is not None


def collect(folders: Iterable[Path]) -> list[Run]:
    """Every run in the folders, each once, jobs 2 and 10 in that order.

    Raises:
        UserError: a folder is missing or holds no run.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give folders of runs or sweeps, as `vaex train` printed them")
        inside = list(_run_folders(folder))
        if not inside:
            raise UserError(f"{folder}: no run there, with {CONFIG} or {STATUS}; give the folder of one, or of a sweep")
        for path in inside:
            found.setdefault(path.resolve(), path)
    paths = sorted(found.values(), key=_natural)
    defaults = _flat(_train_defaults())
    return [_read(path, name, defaults) for path, name in zip(paths, short_names(paths), strict=True)]


def _run_folders(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        if CONFIG in files or STATUS in files:
            yield Path(path)
            folders.clear()
        else:
            folders[:] = [name for name in folders if name != ".hydra"]  # holds what Hydra composed, and no run


def _natural(path: Path) -> list[tuple[float, str]]:
    parts = re.split(r"(\d+(?:\.\d+)?)", str(path))
    return [(float(part), "") if n % 2 else (-1.0, part) for n, part in enumerate(parts)]


def _train_defaults() -> dict[str, Any]:
    content = yaml.safe_load((config_dir() / "train.yaml").read_text())
    return {key: value for key, value in content.items() if key not in ("defaults", "hydra")}


def _read(path: Path, name: str, defaults: Mapping[str, Value]) -> Run:
    problems: list[str] = []
    status = _mapping(path / STATUS, problems)
    results = _mapping(path / RESULTS, problems)
    content = _mapping(path / CONFIG, problems)
    recorded = content.pop("recorded", None)
    recorded = recorded if isinstance(recorded, dict) else {}
    choices = recorded.get("choices")
    shape = recorded.get("image_shape")
    state = status.get("status")
    if state is None and not (path / STATUS).exists():
        state = "completed" if results else None
    told = str(status.get("error") or status.get("reason") or status.get("traceback") or "").strip()
    return Run(
        path=path,
        name=name,
        status=state if state in STATES else "unknown",
        reason=told.splitlines()[-1] if told else "; ".join(problems),
        config={**defaults, **_flat(content)} if content else {},
        choices={str(group): str(option) for group, option in choices.items()} if isinstance(choices, dict) else {},
        overrides={} if content else _overrides(path / ".hydra" / "overrides.yaml"),
        image_shape=(shape[0], shape[1], shape[2]) if isinstance(shape, list) and len(shape) == 3 else None,
        results=results,
    )


def _mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON or YAML file's mapping; where it can't be read an empty one, and why among the problems."""
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else _yaml(text)
        if isinstance(content, dict):
            return content
        problems.append(f"{path.name}: damaged (no mapping)")
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"{path.name}: can't be read ({error.strerror})")
    except (ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name}: damaged ({str(error).splitlines()[0]})")
    return {}


def _yaml(text: str) -> dict[str, Any]:
    """A mapping, read by its keys: runs of a sweep share most of their config, and what they share is parsed once."""
    content: dict[str, Any] = {}
    for part in re.split(r"^(?=[\w'\"])", text, flags=re.MULTILINE):
        parsed = _parsed(part)
        if isinstance(parsed, dict):
            content |= parsed
        elif parsed is not None:
            raise ValueError("no mapping")
    return content


_parsed = cache(yaml.safe_load)


def _overrides(path: Path) -> dict[str, Value]:
    try:
        lines = yaml.safe_load(path.read_text())
        pairs = [str(line).lstrip("+~").partition("=") for line in lines]
        return {key: _plain(yaml.safe_load(value)) for key, _, value in pairs}
    except (OSError, TypeError, ValueError, yaml.YAMLError):
        return {}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested mappings -> dotted keys; lists become tuples, which can be told apart in sets."""
    flat: dict[str, Value] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _plain(value: Any) -> Value:
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _plain(item)) for key, item in value.items())
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
