"""The runs of a report, read from their folders, whatever state they are in. Imports no torch."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from vaex.config.schema import config_dir
from vaex.evaluation.comparison import ComparisonGroup, Description, comparison_group
from vaex.evaluation.metric import Metric
from vaex.runs.find import run_folders, short_names
from vaex.runs.folder import CONFIG, RESULTS, STATUS

Value = str | int | float | bool | tuple[Any, ...] | None
STATES = ("completed", "failed", "interrupted", "running")


@dataclass(frozen=True)
class Run:
    """What the folder of one run contains.

    Attributes:
        name: its path from the folder that contains all runs.
        status: completed, failed, interrupted, running, or unknown.
        reason: the last line of the error or reason in status.json, or which files can't be read; else empty.
        config: dotted key -> value; empty if the run ended before it wrote one.
        choices: config group -> option.
        overrides: the overrides on the command line, of a run without a config.
        results: results.json; empty if there is none.
    """

    path: Path
    name: str
    status: str
    reason: str
    config: Mapping[str, Value]
    choices: Mapping[str, str]
    overrides: Mapping[str, Value]
    results: Mapping[str, Any]

    @property
    def seed(self) -> Value:
        return self.config.get("seed", self.overrides.get("seed"))

    @property
    def completed(self) -> bool:
        return self.status == "completed" and bool(self.results)

    @cached_property
    def about(self) -> Description | None:
        """What the test numbers describe; None where results.json does not say it."""
        return Description.read(self.results)

    def group(self, metric: Metric) -> ComparisonGroup | None:
        """The runs with which this one's number may be compared; None where it may not, or where there is no number."""
        if metric not in self._groups:
            self._groups[metric] = comparison_group(metric, self.results)
        return self._groups[metric]

    def value(self, metric: Metric, group: ComparisonGroup) -> float | None:
        """The number, if it belongs to the group."""
        return metric.value(self.results) if self.group(metric) == group else None

    @cached_property
    def _groups(self) -> dict[Metric, ComparisonGroup | None]:
        return {}


def collect(folders: Iterable[Path]) -> list[Run]:
    """Every run in the folders, each once, with jobs 2 and 10 in that order.

    Raises:
        UserError: a folder does not exist or contains no run.
    """
    paths = run_folders(folders)
    train = yaml.safe_load((config_dir() / "train.yaml").read_text())
    defaults = _flatten({key: value for key, value in train.items() if key not in ("defaults", "hydra")})
    return [_read(path, name, defaults) for path, name in zip(paths, short_names(paths), strict=True)]


def _read(path: Path, name: str, defaults: Mapping[str, Value]) -> Run:
    problems: list[str] = []
    status, results, content = (_read_mapping(path / file, problems) for file in (STATUS, RESULTS, CONFIG))
    recorded = content.pop("recorded", None)
    choices = recorded.get("choices") if isinstance(recorded, dict) else None
    state = status.get("status")
    if state is None and not (path / STATUS).exists():
        state = "completed" if results else None
    reason = str(status.get("error") or status.get("reason") or status.get("traceback") or "").strip()
    return Run(
        path=path,
        name=name,
        status=state if state in STATES else "unknown",
        reason=reason.splitlines()[-1] if reason else "; ".join(problems),
        config={**defaults, **_flatten(content)} if content else {},
        choices={str(group): str(option) for group, option in choices.items()} if isinstance(choices, dict) else {},
        overrides={} if content else _overrides(path / ".hydra" / "overrides.yaml"),
        results=results,
    )


def _read_mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    """The mapping in a JSON or YAML file; empty if it can't be read, and then `problems` gets the reason."""
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else _read_yaml(text)
        if isinstance(content, dict):
            return content
        problems.append(f"{path.name}: damaged (not a mapping)")
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"{path.name}: can't be read ({error.strerror})")
    except (ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name}: damaged ({str(error).splitlines()[0]})")
    return {}


def _read_yaml(text: str) -> dict[str, Any]:
    """A mapping, parsed key by key: runs of a sweep share most of their config, and equal parts are parsed once."""
    content: dict[str, Any] = {}
    for part in re.split(r"^(?=[\w'\"])", text, flags=re.MULTILINE):
        parsed = _parse_yaml(part)
        if isinstance(parsed, dict):
            content |= parsed
        elif parsed is not None:
            raise ValueError("not a mapping")
    return content


_parse_yaml = cache(yaml.safe_load)


def _overrides(path: Path) -> dict[str, Value]:
    try:
        pairs = [str(line).lstrip("+~").partition("=") for line in yaml.safe_load(path.read_text())]
        return {key: _hashable(yaml.safe_load(value)) for key, _, value in pairs}
    except (OSError, TypeError, ValueError, yaml.YAMLError):
        return {}


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested mappings -> dotted keys."""
    flat: dict[str, Value] = {}
    for key, value in content.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": _hashable(value)}
    return flat


def _hashable(value: Any) -> Value:
    if isinstance(value, list | dict):
        items = value.items() if isinstance(value, dict) else value
        return tuple(_hashable(list(item) if isinstance(item, tuple) else item) for item in items)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
