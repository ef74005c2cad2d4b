"""What plots and sheets show: the axis along them, one line for each other configuration. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from vaex.evaluation.comparison import ComparisonGroup
from vaex.evaluation.metric import Metric
from vaex.report.axes import Axis, as_number, value_text
from vaex.report.collect import Run, Value
from vaex.report.statistics import Configuration, Study, Summary

MOST_LINES = 8  # the number of colors


@dataclass(frozen=True)
class Line:
    """Configurations that differ only in the value along the plot. `number` decides the color, equal in all plots."""

    label: str
    number: int
    members: tuple[tuple[float, Configuration], ...]

    def points(self, metric: Metric, group: ComparisonGroup) -> list[tuple[float, Summary]]:
        summaries = [(x, configuration.summary(metric, group)) for x, configuration in self.members]
        return [(x, summary) for x, summary in summaries if summary]


@dataclass(frozen=True)
class View:
    """A numeric axis, and the lines along it.

    Attributes:
        fixed: other numeric axes, each with the value at which all lines are taken.
        left_out: labels of the lines for which there is no room.
    """

    axis: Axis
    lines: tuple[Line, ...]
    fixed: tuple[tuple[Axis, Value], ...]
    left_out: tuple[str, ...]

    @property
    def gaps(self) -> list[str]:
        """The points of each line that have no completed run."""
        return [
            f"{line.label}, {self.axis.key}={x:g}"
            for line in self.lines
            for x in self.axis.numbers
            if x not in [member for member, _ in line.members]
        ]

    @property
    def caption(self) -> str:
        """Which part of the runs the picture shows; empty if it shows all."""
        values = ", ".join(f"{axis.key}={value_text(value)}" for axis, value in self.fixed)
        parts = [f"At {values}."] * bool(values)
        parts += [f"Left out for lack of space: {', '.join(self.left_out)}."] * bool(self.left_out)
        return " ".join(parts)


def views(study: Study) -> list[View]:
    """One for each numeric axis along which some line has two points, beta first."""
    axes = study.design.axes
    numeric = [axis for axis in axes if axis.numeric]
    categories = [axis for axis in axes if not axis.numeric]

    def category(configuration: Configuration) -> tuple[Value, ...]:
        return tuple(value for axis, value in zip(axes, configuration.values, strict=True) if axis in categories)

    numbers = {name: n for n, name in enumerate(dict.fromkeys(map(category, study.configurations)))}
    result = []
    for axis in sorted(numeric, key=lambda axis: axis.key != "beta"):
        fixed = tuple((other, _typical_value(other, study)) for other in numeric if other != axis)
        members: dict[tuple[Value, ...], list[tuple[float, Configuration]]] = {}
        for configuration in study.configurations:
            values = dict(zip(axes, configuration.values, strict=True))
            x = as_number(values[axis])
            if x is not None and configuration.runs and all(values[other] in (value, None) for other, value in fixed):
                members.setdefault(category(configuration), []).append((x, configuration))
        lines = [
            Line(study.design.label(name, categories) or _likelihood(study), numbers[name], tuple(points))
            for name, points in members.items()
        ]
        if max(map(len, members.values()), default=0) > 1:
            result.append(
                View(axis, tuple(lines[:MOST_LINES]), fixed, tuple(line.label for line in lines[MOST_LINES:]))
            )
    return result


def sheet_rows(study: Study) -> list[tuple[str, list[tuple[str, Run]]]]:
    """The sheets of pictures: each a title and labeled rows along the first view, with the first seed of each.

    If nothing numeric was swept, one sheet has a row for each configuration. Configurations without a completed run
    have no row.
    """
    sheets = [
        (line.label, [(f"{view.axis.key}={value_text(x)}", configuration) for x, configuration in line.members])
        for view in views(study)[:1]
        for line in view.lines
    ] or [("", [(configuration.label, configuration) for configuration in study.configurations])]
    rows = [(title, [(label, min(c.runs, key=_seed)) for label, c in cells if c.runs]) for title, cells in sheets]
    return [(title, cells) for title, cells in rows if cells]


def _seed(run: Run) -> float:
    return as_number(run.seed) or 0.0


def _likelihood(study: Study) -> str:
    """The name of a line if lines do not differ."""
    return next((run.choices.get("likelihood", "likelihood") for run in study.completed), "")


def _typical_value(axis: Axis, study: Study) -> Value:
    """The value that most completed configurations have; the middle one of several."""
    n = study.design.axes.index(axis)
    completed = [configuration.values[n] for configuration in study.configurations if configuration.runs]
    counts = {value: completed.count(value) for value in axis.values if value is not None}
    most: Sequence[Value] = [value for value, count in counts.items() if count == max(counts.values())]
    return most[(len(most) - 1) // 2]
