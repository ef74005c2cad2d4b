"""Read the files of a run, whoever wrote them: each value has the type that vaex writes, or the file is damaged.

Imports no torch.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from vaex.errors import UserError, first_line

# Keys of results.json that begin with one of these are numbers or lists of numbers, except TEXTS.
NUMERIC = ("test", "train", "model", "beta", "likelihood")
TEXTS = frozenset(
    f"test/{name}"
    for name in (
        "bits_per_dim_from",
        "nll_posterior",
        "scored_pixels",
        "fid_draws",
        "fid_latent",
        "fid_classifier",
        "fid_inception_draws",
        "fid_inception_latent",
        "fid_inception_features",
        "lpips_network",
    )
) | {"model/sha256"}
STATUS_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("status", "error", "reason", "traceback"), (str,)),
    **dict.fromkeys(("steps", "best_step"), (int, type(None))),
    "monitored": (int, float, type(None)),
    "summary": (dict,),
}

log = logging.getLogger("vaex")


class _Loader(get_yaml_loader()):  # type: ignore[misc]
    """OmegaConf's loader, a SafeLoader, without aliases: nine lines of them can stand for a gigabyte."""

    def compose_node(self, parent: object, index: object) -> object:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"it contains the YAML alias *{self.peek_event().anchor}, and a run writes none")
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """The content of a YAML text. Raises ValueError if it is damaged, or contains aliases or objects."""
    try:
        return _Loader(text).get_single_data()
    except Exception as error:  # depending on the damage
        raise ValueError(first_line(error)) from error


def read_json(path: Path, remedy: str, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        check: raises ValueError for a value that vaex does not write.

    Raises:
        UserError: the file can't be read or is damaged.
    """
    try:
        content = mapping(json.loads(path.read_bytes()))
        check(content)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); {remedy}") from error
    return content


def mapping(content: object) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError("no mapping")
    return {str(key): value for key, value in content.items()}


def check_status(status: dict[str, Any]) -> None:
    """Raises ValueError for a value of status.json of another type than vaex writes."""
    for key in STATUS_TYPES.keys() & status.keys():
        if not isinstance(status[key], STATUS_TYPES[key]):
            raise ValueError(f"{key} is {status[key]!r}")
    if not all(isinstance(text, str) for text in status.get("summary", {}).values()):
        raise ValueError(f"summary is {status['summary']!r}")


def check_results(results: dict[str, Any]) -> None:
    """Raises ValueError for a value of results.json of another type than vaex writes."""
    for key, value in results.items():
        valid = isinstance(value, str | None) if key in TEXTS else _is_numeric(value)
        if key.partition("/")[0] in NUMERIC and not valid:
            raise ValueError(f"{key} is {value!r}")


def _is_numeric(value: object) -> bool:
    """Whether it is a number, null (for one that is not finite), or a list of such, at any depth."""
    if isinstance(value, list):
        return all(map(_is_numeric, value))
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def read_metrics(path: Path, key: str = "") -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order, without those that a run resumed from an earlier step wrote again.

    Lines that can't be read are left out, and named unless the last one was cut off.

    Args:
        key: return only the lines with this key.

    Raises:
        OSError: the file can't be read.
    """
    lines: list[dict[str, Any]] = []
    damaged = []
    texts = path.read_bytes().splitlines(keepends=True)
    for number, text in enumerate(texts, start=1):
        if key and f'"{key}"'.encode() not in text:
            continue
        try:
            line = mapping(json.loads(text))
            valid = isinstance(line["step"], int) and all(map(_is_numeric, line.values()))
        except (ValueError, KeyError, RecursionError):
            valid = False
        if not valid:
            damaged += [str(number)] if text.endswith(b"\n") else []
            continue
        while lines and lines[-1]["step"] > line["step"]:
            lines.pop()
        lines.append(line)
    if damaged:
        log.warning(f"{path}: left out line {', '.join(damaged[:5])}{' …' * (len(damaged) > 5)}, which can't be read")
    return lines
