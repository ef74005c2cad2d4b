"""The axes of a sweep: what differs between the configs of its runs, whatever their folders are called.

Imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vaex.config.schema import DATA
from vaex.report.collect import Run, Value

# Keys of how a run is executed, which change no result, are no axis.
EXECUTION = (
    *("device", "resume", "figures.", "dataset.resident"),
    *(f"trainer.{key}" for key in ("threads", "compile", "capture", "log_every", "checkpoint_every", "on_save_error")),
)
# The axes that most sweeps have come first, in this order.
FIRST = ("dataset", "architecture", "likelihood", "likelihood/scale", "objective", "beta", "latent_dim")
# Labels show the options of these groups without the name of the group.
SELF_EXPLANATORY = ("dataset", "architecture", "likelihood", "likelihood/scale", "objective", "experiment")


@dataclass(frozen=True)
class Axis:
    """A key whose value differs between runs.

    Attributes:
        key: as on the command line: likelihood/scale, beta, optimizer.lr.
        values: numbers ascending, others in the order of the runs; None comes last, if some runs have no such key.
        is_group: whether the key is a config group and the values are its options.
    """

    key: str
    values: tuple[Value, ...]
    is_group: bool

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
        ratios, steps = [b / a for a, b in pairwise(numbers)], [b - a for a, b in pairwise(numbers)]
        return max(ratios) / min(ratios) < max(steps) / min(steps)


@dataclass(frozen=True)
class Design:
    """The axes of a sweep, and the keys that differ without being an axis.

    Attributes:
        seeds: ascending.
        followers: keys whose value is decided by the option of a group, or repeats that of another key.
        execution: keys of how the runs were executed.
    """

    axes: tuple[Axis, ...]
    seeds: tuple[Value, ...] = ()
    followers: tuple[str, ...] = ()
    execution: tuple[str, ...] = ()

    def value(self, run: Run, axis: Axis) -> Value:
        """None if the run has no such value, or ended before it wrote its config."""
        if not run.config:
            return run.overrides.get(axis.key)
        return (run.choices if axis.is_group else run.config).get(axis.key)

    def values(self, run: Run) -> tuple[Value, ...]:
        return tuple(self.value(run, axis) for axis in self.axes)

    def label(self, values: Sequence[Value], axes: Sequence[Axis] | None = None) -> str:
        """The values of the axes as text: `laplace, beta=4`."""
        return ", ".join(
            value_text(value) if axis.key in SELF_EXPLANATORY else f"{axis.key}={value_text(value)}"
            for axis, value in zip(self.axes if axes is None else axes, values, strict=True)
            if value is not None
        )


def as_number(value: Value) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def value_text(value: Value) -> str:
    """As on the command line; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(map(value_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def find_axes(runs: Sequence[Run]) -> Design:
    """Groups first, then single values. The seed is a repetition and no axis."""
    seeds = _distinct([run.seed for run in runs if run.seed is not None])
    runs = [run for run in runs if run.config]
    groups = _differing_groups(runs)
    differing = _differing_keys([run.config for run in runs])
    moved = (DATA,) if _had_same_images(runs) else ()  # a path with the same images is no other setting
    execution = tuple(key for key in differing if key.startswith((*EXECUTION, *moved)))
    options = {axis.key: [run.choices.get(axis.key) for run in runs] for axis in groups}
    columns: dict[str, list[Value]] = {}  # key -> its value in each run
    followers = []
    for key in sorted(differing, key=lambda key: (key.count("."), key)):
        if key == "seed" or key in execution:
            continue
        column = [run.config.get(key) for run in runs]
        deciding = [options[group] for group in options if group.split("/")[0] in (key.split(".")[0], "experiment")]
        if _repeats(key, column, columns) or (deciding and _decide(deciding, column)):
            followers.append(key)
        else:
            columns[key] = column
    values = [Axis(key, _distinct(column), is_group=False) for key, column in columns.items()]
    return Design((*sorted(groups, key=_order), *sorted(values, key=_order)), seeds, tuple(followers), execution)


def _had_same_images(runs: Sequence[Run]) -> bool:
    keys = ("about/train_sha256", "about/test_sha256")
    hashes = {tuple(run.results.get(key) for key in keys) for run in runs if run.results}
    return len(hashes) == 1 and None not in next(iter(hashes))


def _order(axis: Axis) -> tuple[int, str]:
    return FIRST.index(axis.key) if axis.key in FIRST else len(FIRST), axis.key


def _differing_groups(runs: Sequence[Run]) -> list[Axis]:
    """Config groups as axes, except those that the parent group decides, as a likelihood may have one scale or none."""
    axes = []
    for group in _differing_keys([run.choices for run in runs]):
        parent = group.rpartition("/")[0]
        column: list[Value] = [run.choices.get(group) for run in runs]
        above: list[Value] = [run.choices.get(parent) for run in runs]
        if not (parent and len({*column} - {None}) == 1 and _decide([above], column)):
            axes.append(Axis(group, _distinct(column), is_group=True))
    return axes


def _differing_keys(mappings: Sequence[Mapping[str, Value]]) -> list[str]:
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    return [key for key in keys if len({_typed(mapping.get(key)) for mapping in mappings}) > 1]


def _typed(value: Value) -> tuple[bool, Value]:
    """True equals 1 in Python, but they are different values of a config."""
    return isinstance(value, bool), value


def _decide(options: Sequence[Sequence[Value]], column: Sequence[Value]) -> bool:
    """Whether runs with the same options always have the same value."""
    decided: dict[tuple[Value, ...], Value] = {}
    pairs = zip(zip(*options, strict=True), column, strict=True)
    return all(decided.setdefault(choices, value) == value for choices, value in pairs)


def _repeats(key: str, column: Sequence[Value], columns: Mapping[str, Sequence[Value]]) -> bool:
    """Whether another key that ends in the same name has the same value in every run that has this key."""
    name = key.rpartition(".")[2]
    return any(
        other.rpartition(".")[2] == name and all(a is None or a == b for a, b in zip(column, values, strict=True))
        for other, values in columns.items()
    )


def _distinct(column: Sequence[Value]) -> tuple[Value, ...]:
    """Distinct values: ascending if all are numbers, else in the order of the column; None comes last."""
    distinct = list({_typed(value): value for value in column}.values())
    values = [value for value in distinct if value is not None]
    if all(as_number(value) is not None for value in values):
        values.sort(key=lambda value: as_number(value) or 0.0)
    return (*values, *([None] if None in distinct else []))
