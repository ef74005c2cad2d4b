"""Which values make a run what it is, so that a sweep resumes only runs that would train the same."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from vaex.config.schema import Config

# Keys that change where or how fast a run trains, but not what it computes: a resumed sweep may change them.
INCIDENTAL = (
    "device",
    "resume",
    "sweep",
    "trainer.threads",
    "trainer.compile",
    "trainer.capture",
    "trainer.on_save_error",
)


def config_hash(config: Config) -> str:
    """Hexadecimal SHA-256 of all values except INCIDENTAL: equal for two configs that train the same."""
    return hashlib.sha256(json.dumps(_identity(config), sort_keys=True).encode()).hexdigest()


def difference(before: Config, now: Config) -> str:
    """The values in which two configs differ, apart from INCIDENTAL: `epochs was 2 and is 3`."""
    old, new = _identity(before), _identity(now)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {old.get(key)} and is {new.get(key)}" for key in changed)


def is_incidental(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in INCIDENTAL)


def _identity(config: Config) -> dict[str, Any]:
    return {key: value for key, value in _leaves(asdict(config)) if not is_incidental(key)}


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values, dicts resolved into their entries."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
