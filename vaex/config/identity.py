"""Which values make a run what it is, so that only what belongs to a run is used to resume it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from vaex.config.schema import CHANGEABLE, DATA, Config

# Keys that may differ when a sweep is resumed: where and how fast a run trains, and what it draws, change no number.
INCIDENTAL = (
    "device",
    "figures",
    "resume",
    "sweep",
    DATA,
    "trainer.threads",
    "trainer.compile",
    "trainer.capture",
    "trainer.on_save_error",
)
# Options that configs of older runs lack: one that they have beside it, and the value that changes nothing.
ADDED = {
    "prior._target_": ("latent_dim", "vaex.latents.prior.Standard"),
    "posterior._target_": ("latent_dim", "vaex.latents.posterior.Diagonal"),
    "objective.delay": ("objective.warmup", 0),
    "objective.cycle": ("objective.warmup", None),
    "objective.coarse_first": ("objective.free_bits", False),
    "objective.groups": ("objective.doubly_reparametrized", 1),
    "objective.elbo": ("objective.doubly_reparametrized", 0.0),
    "objective.partial": ("objective.doubly_reparametrized", False),
}
MOST_NAMED = 4  # differences in a message


def config_hash(config: Config) -> str:
    """Hexadecimal SHA-256 of all values except INCIDENTAL: equal for two configs that train the same."""
    return hashlib.sha256(json.dumps(_identity(asdict(config)), sort_keys=True).encode()).hexdigest()


def difference(before: Config, now: Config) -> str:
    """The values in which two configs differ, apart from INCIDENTAL: `epochs was 2 and is 3`."""
    return _difference(_identity(asdict(before)), _identity(asdict(now)))


def difference_from_checkpoint(saved: Mapping[str, Any], config: Config) -> str:
    """The values in which a checkpoint's config differs from the run's; empty if both may be of one run.

    Values that a resumed run may change do not count, nor do options that the vaex of the checkpoint did not have yet.
    """
    before, now = _identity(saved), _identity(asdict(config))
    return _difference(*({key: node[key] for key in before if key in node} for node in (_fixed(before), _fixed(now))))


def is_incidental(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in INCIDENTAL)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    more = f", and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
    return ", ".join(f"{key} was {old.get(key)} and is {new.get(key)}" for key in changed[:MOST_NAMED]) + more


def _identity(content: Mapping[str, Any]) -> dict[str, Any]:
    return with_added({key: value for key, value in _leaves(content) if not is_incidental(key)})


def with_added(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, by dotted keys, with those of options that an older config lacks."""
    return {key: value for key, (beside, value) in ADDED.items() if beside in values} | dict(values)


def _fixed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key.partition(".")[0] not in CHANGEABLE}


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values, dicts resolved into their entries."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
