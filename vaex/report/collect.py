"""The runs of a report, read from their folders, whatever state they are in. Imports no torch."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from vaex.config.identity import with_added
from vaex.config.schema import config_dir
from vaex.errors import UserError
from vaex.evaluation.comparison import ComparisonGroup, Description, comparison_group
from vaex.evaluation.metric import Metric
from vaex.runs.find import run_folders, short_names
from vaex.runs.folder import CONFIG, RESULTS, STATUS, RunFolder
from vaex.runs.reading import mapping, parse_yaml

Value = str | int | float | bool | tuple[Any, ...] | None
STATES = ("completed", "failed", "interrupted", "running")
# Options of groups that older runs do not have.
ADDED_CHOICES = {"prior": "standard", "posterior": "diagonal"}


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
    train = parse_yaml((config_dir() / "train.yaml").read_text(encoding="utf-8"))
    defaults = _flatten({key: value for key, value in train.items() if key not in ("defaults", "hydra")})
    return [_read(path, name, defaults) for path, name in zip(paths, short_names(paths), strict=True)]


def _read(path: Path, name: str, defaults: Mapping[str, Value]) -> Run:
    folder, problems = RunFolder(path), list[str]()
    status = _or_empty(folder.read_status, path / STATUS, problems)
    results = _or_empty(folder.read_results, path / RESULTS, problems)
    content = _or_empty(partial(_read_config, path / CONFIG), path / CONFIG, problems)
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
        reason="; ".join(reason.splitlines()[-1:] + problems),
        config=with_added({**defaults, **_flatten(content)}) if content else {},
        choices=ADDED_CHOICES | {str(group): str(option) for group, option in choices.items()}
        if isinstance(choices, dict)
        else {},
        overrides={} if content else _overrides(path / ".hydra" / "overrides.yaml"),
        results=results,
    )


def _or_empty(read: Callable[[], dict[str, Any]], path: Path, problems: list[str]) -> dict[str, Any]:
    """The content of a file; empty if it does not exist or can't be read, and then `problems` gets the reason."""
    try:
        return read() if path.exists() else {}
    except UserError as error:
        problems.append(str(error).removeprefix(f"{path.parent}/").partition("; ")[0])
        return {}


def _read_config(path: Path) -> dict[str, Any]:
    """The values in config.yaml, parsed key by key: runs of a sweep share most of them, and each part is parsed once.

    Raises:
        UserError: the file is damaged or can't be read.
    """
    content: dict[str, Any] = {}
    try:
        for part in re.split(r"^(?=[\w'\"])", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            content |= mapping(_parse_yaml(part) or {})
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from error
    return content


_parse_yaml = cache(parse_yaml)


def _overrides(path: Path) -> dict[str, Value]:
    try:
        pairs = [str(line).lstrip("+~").partition("=") for line in parse_yaml(path.read_text(encoding="utf-8"))]
        return {key: _hashable(parse_yaml(value)) for key, _, value in pairs}
    except (OSError, TypeError, ValueError):
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
