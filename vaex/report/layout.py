"""Which swept value goes along the plots and down the sheets, what makes a line, and what is held. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from vaex.report.axes import Axis, Design, as_number, shown
from vaex.report.collect import Value
from vaex.report.scores import Scale, Scored
from vaex.report.statistics import Configuration, Metric, Summary

MOST_LINES = 8  # as many as there are colours


@dataclass(frozen=True)
class Line:
    """Configurations that differ in the value along the plot only. `number` says which colour it has in all plots."""

    label: str
    number: int
    members: tuple[tuple[float, Configuration], ...]

    def points(self, metric: Metric, scale: Scale) -> list[tuple[float, Summary]]:
        found = [(x, configuration.summary(metric, scale)) for x, configuration in self.members]
        return [(x, over_seeds) for x, over_seeds in found if over_seeds]


@dataclass(frozen=True)
class View:
    """A numeric axis, and the lines along it.

    Attributes:
        held: other numeric axes, each with the value that all lines have.
        left_out: labels of lines for which there is no room.
    """

    axis: Axis
    lines: tuple[Line, ...]
    held: tuple[tuple[Axis, Value], ...]
    left_out: tuple[str, ...]

    @property
    def gaps(self) -> list[str]:
        """What of each line has no completed run."""
        return [
            f"{line.label}, {self.axis.key}={x:g}"
            for line in self.lines
            for x in self.axis.numbers
            if x not in [there for there, _ in line.members]
        ]

    @property
    def caption(self) -> str:
        """What a reader must know of what is not in the picture; empty where all is."""
        held = ", ".join(f"{axis.key}={shown(value)}" for axis, value in self.held)
        parts = [f"Throughout {held}."] * bool(held)
        if self.left_out:
            parts.append(f"Left out for want of room: {', '.join(self.left_out)}.")
        return " ".join(parts)


def views(design: Design, found: Sequence[Configuration]) -> list[View]:
    """One for each numeric axis along which there is something to see, beta first."""
    numeric = [axis for axis in design.axes if axis.numeric]
    categories = [axis for axis in design.axes if not axis.numeric]
    names = list(dict.fromkeys(_part(design, configuration, categories) for configuration in found))
    made = []
    for axis in sorted(numeric, key=lambda axis: axis.key != "beta"):
        held = tuple((other, _middle(other, design, found)) for other in numeric if other != axis)
        members: dict[tuple[Value, ...], list[tuple[float, Configuration]]] = {}
        for configuration in found:
            at = dict(zip(design.axes, configuration.values, strict=True))
            x = as_number(at[axis])
            if x is not None and configuration.items and all(at[other] in (value, None) for other, value in held):
                members.setdefault(_part(design, configuration, categories), []).append((x, configuration))
        lines = [
            Line(_line_label(design, name, categories, found), names.index(name), tuple(points))
            for name, points in members.items()
        ]
        if max(map(len, members.values()), default=0) > 1:
            made.append(View(axis, tuple(lines[:MOST_LINES]), held, tuple(line.label for line in lines[MOST_LINES:])))
    return made


def rows(design: Design, found: Sequence[Configuration]) -> list[tuple[str, list[tuple[str, Scored]]]]:
    """The sheets of pictures: each a title, and its labelled rows down the swept value, of the first seed each.

    Where nothing numeric was swept, one sheet has a row for each configuration. What has no completed run has no row.
    """
    for view in views(design, found)[:1]:
        sheets = [
            (line.label, [(f"{view.axis.key}={shown(x)}", _first(c)) for x, c in line.members]) for line in view.lines
        ]
        break
    else:
        sheets = [("", [(configuration.label, _first(configuration)) for configuration in found])]
    there = [(title, [(label, item) for label, item in cells if item]) for title, cells in sheets]
    return [(title, cells) for title, cells in there if cells]


def _first(configuration: Configuration) -> Scored | None:
    seeds = [(as_number(item.run.seed) or 0.0, n) for n, item in enumerate(configuration.items)]
    return configuration.items[min(seeds)[1]] if seeds else None


def _part(design: Design, configuration: Configuration, axes: Sequence[Axis]) -> tuple[Value, ...]:
    at = dict(zip(design.axes, configuration.values, strict=True))
    return tuple(at[axis] for axis in axes)


def _line_label(
    design: Design, name: Sequence[Value], categories: Sequence[Axis], found: Sequence[Configuration]
) -> str:
    """Of what differs between lines; where nothing does, the likelihood that all have."""
    if label := design.label(name, categories):
        return label
    return next((item.row.likelihood for configuration in found for item in configuration.items), "")


def _middle(axis: Axis, design: Design, found: Sequence[Configuration]) -> Value:
    """The value that most completed configurations have, and of several the one in the middle."""
    n = design.axes.index(axis)
    counts = {value: sum(bool(c.items) and c.values[n] == value for c in found) for value in axis.values}
    counts.pop(None, None)
    most = [value for value, count in counts.items() if count == max(counts.values())]
    return most[(len(most) - 1) // 2]
