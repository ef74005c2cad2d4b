"""What differs between runs: the axes of a sweep, found in configs and not in folders' names. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vaex.report.collect import Run, Value

# How a run ran, and not what it is: never an axis.
EXECUTION = (
    "device",
    "resume",
    "figures.",
    "dataset.resident",
    "trainer.threads",
    "trainer.compile",
    "trainer.capture",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.on_save_error",
)
# Groups and values that people sweep come first, in this order.
FIRST = ("dataset", "architecture", "likelihood", "likelihood/scale", "objective", "beta", "latent_dim")
SPEAK_FOR_THEMSELVES = ("dataset", "architecture", "likelihood", "likelihood/scale", "objective", "experiment")


@dataclass(frozen=True)
class Axis:
    """One thing that differs.

    Attributes:
        key: as on the command line: likelihood/scale, beta, optimizer.lr.
        values: numbers ascending, others in the order in which the runs have them, last a None for runs without such a
            key.
        choice: whether these are options of a group.
    """

    key: str
    values: tuple[Value, ...]
    choice: bool

    @property
    def numbers(self) -> list[float]:
        return [number for number in map(as_number, self.values) if number is not None]

    @property
    def numeric(self) -> bool:
        return len(self.numbers) == len([value for value in self.values if value is not None]) > 1

    @property
    def geometric(self) -> bool:
        """Whether a logarithmic axis spaces the values more evenly than a linear one."""
        numbers = [number for number in self.numbers if number != 0]
        if len(numbers) < 3 or numbers[0] < 0:
            return False
        pairs = list(zip(numbers, numbers[1:], strict=False))
        ratios, steps = [after / before for before, after in pairs], [after - before for before, after in pairs]
        return max(ratios) / min(ratios) < max(steps) / min(steps)


@dataclass(frozen=True)
class Design:
    """The axes of the runs, and what differs without being one.

    Attributes:
        seeds: ascending.
        followers: keys whose value goes with the option of a group, or repeats another key's.
        execution: keys of how the runs ran.
    """

    axes: tuple[Axis, ...]
    seeds: tuple[Value, ...] = ()
    followers: tuple[str, ...] = ()
    execution: tuple[str, ...] = ()

    def value(self, run: Run, axis: Axis) -> Value:
        """None where the run has no such value, or none is known."""
        if not run.config:
            return run.overrides.get(axis.key)
        return (run.choices if axis.choice else run.config).get(axis.key)

    def values(self, run: Run) -> tuple[Value, ...]:
        """The run's configuration, as far as it differs from others."""
        return tuple(self.value(run, axis) for axis in self.axes)

    def label(self, values: Sequence[Value], axes: Sequence[Axis] | None = None) -> str:
        """`laplace, beta=4`."""
        parts = []
        for axis, value in zip(self.axes if axes is None else axes, values, strict=True):
            if value is not None:
                parts.append(shown(value) if axis.key in SPEAK_FOR_THEMSELVES else f"{axis.key}={shown(value)}")
        return ", ".join(parts)


def as_number(value: Value) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def shown(value: Value) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{','.join(map(shown, value))}]"
    return str(value)


def find_axes(runs: Sequence[Run]) -> Design:
    """Groups' options first, then plain values; the seed is a repetition."""
    seeds = _ordered([run.seed for run in runs if run.seed is not None])
    known = [run for run in runs if run.config]
    choices = _differing_choices(known)
    differing = _differing([run.config for run in known])
    execution = tuple(key for key in differing if key.startswith(EXECUTION))
    options = {axis.key: [run.choices.get(axis.key) for run in known] for axis in choices}
    kept: dict[str, list[Value]] = {}
    followers = []
    for key in sorted(differing, key=lambda key: (key.count("."), key)):
        if key == "seed" or key in execution:
            continue
        column = [run.config.get(key) for run in known]
        deciding = [options[group] for group in options if group.split("/")[0] in (key.split(".")[0], "experiment")]
        if _repeats(key, column, kept) or (deciding and _decide(deciding, column)):
            followers.append(key)
        else:
            kept[key] = column
    values = [Axis(key, _ordered(column), choice=False) for key, column in kept.items()]
    return Design((*sorted(choices, key=_first), *sorted(values, key=_first)), seeds, tuple(followers), execution)


def _first(axis: Axis) -> tuple[int, str]:
    return (FIRST.index(axis.key) if axis.key in FIRST else len(FIRST), axis.key)


def _differing_choices(runs: Sequence[Run]) -> list[Axis]:
    """An option that goes with that of its parent, as a likelihood has one scale or none, is no axis of its own."""
    found = []
    for group in _differing([run.choices for run in runs]):
        parent = group.rpartition("/")[0]
        column: list[Value] = [run.choices.get(group) for run in runs]
        above: list[Value] = [run.choices.get(parent) for run in runs]
        if parent and len({option for option in column if option is not None}) == 1 and _decide([above], column):
            continue
        found.append(Axis(group, _ordered(column), choice=True))
    return found


def _differing(mappings: Sequence[Mapping[str, Value]]) -> list[str]:
    """Keys that some mapping lacks or has with another value."""
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    return [key for key in keys if len({_told(mapping.get(key)) for mapping in mappings}) > 1]


def _told(value: Value) -> tuple[bool, Value]:
    """Python's True is its 1; in a config they are different values."""
    return isinstance(value, bool), value


def _decide(options: Sequence[Sequence[Value]], column: Sequence[Value]) -> bool:
    """Whether runs with the same options always have the same value."""
    seen: dict[tuple[Value, ...], Value] = {}
    pairs = zip(zip(*options, strict=True), column, strict=True)
    return all(seen.setdefault(chosen, value) == value for chosen, value in pairs)


def _repeats(key: str, column: Sequence[Value], kept: Mapping[str, Sequence[Value]]) -> bool:
    """Whether another key of the same last name has the same value in every run that has this one."""
    name = key.rpartition(".")[2]
    return any(
        other.rpartition(".")[2] == name and all(a is None or a == b for a, b in zip(column, theirs, strict=True))
        for other, theirs in kept.items()
    )


def _ordered(column: Sequence[Value]) -> tuple[Value, ...]:
    """Distinct values: ascending if all are numbers, else in the order of the column; None at the end."""
    distinct = list({_told(value): value for value in column}.values())
    there = [value for value in distinct if value is not None]
    if all(as_number(value) is not None for value in there):
        there.sort(key=lambda value: as_number(value) or 0.0)
    return (*there, *([None] if None in distinct else []))
