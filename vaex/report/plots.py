"""The plots of a report, as SVG: metrics against a swept value, rate against distortion, and training curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vaex.evaluation.comparison import ComparisonGroup
from vaex.evaluation.metric import Metric
from vaex.report.axes import Axis
from vaex.report.collect import Run
from vaex.report.curves import Panel
from vaex.report.layout import Line, View
from vaex.report.statistics import Study, Summary, groups
from vaex.report.svg import COLORS, INK, MARKERS, RAMP, panel, plain, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATE, DISTORTION, ERROR = "test/image_rate", "test/image_distortion", "test/mse"
REFERENCES = {"test/fid": "test/fid_floor"}  # metric -> key of what real images give

LEGEND_LINE = 0.18  # inches
START = 0.05  # of the steps: most of the change happens in them, so they don't count for the limits of the axis

Points = tuple[Line, list[tuple[float, Summary]]]  # swept value and summary over seeds, along a line


@dataclass(frozen=True)
class Plot:
    """`name` is that of its file, before it is cut and made unique; `svg` an element to put into a page."""

    name: str
    title: str
    svg: str


def against(view: View, study: Study) -> list[Plot]:
    """Mean ± std of every metric over seeds, one panel for each comparison group."""
    plots = []
    for metric in study.metrics:
        if metric.key in (RATE, DISTORTION):  # they have plots of their own
            continue
        compared = groups(metric, study.configurations)
        for group in compared:
            lines = [(line, points) for line in view.lines if (points := line.points(metric, group))]
            if max((len(points) for _, points in lines), default=0) < 2:
                continue
            suffix = f": {group.name}" if len(compared) > 1 or not group.across_likelihoods else ""
            title, name = metric.title + suffix, f"{metric.name} {view.axis.key}{suffix}"
            plots.append(_lines(view, metric, group, title, name, lines))
            if group.ranked_by == metric.key and len(lines) > 1:
                title, name = f"{title}, above each line's best", f"{name} above best"
                plots.append(_lines(view, metric, group, title, name, lines, above_best=True))
    return plots


def _lines(
    view: View,
    metric: Metric,
    group: ComparisonGroup,
    title: str,
    name: str,
    lines: Sequence[Points],
    above_best: bool = False,
) -> Plot:
    """`above_best` subtracts the lowest mean of each line, to show the effect of the swept value on distant lines."""
    with panel(title, view.axis.key, metric.unit or metric.title) as (figure, axes):
        for line, points in lines:
            means = [summary.mean for _, summary in points]
            spreads = [summary.std or 0.0 for _, summary in points]
            offset = min(means) if above_best else 0.0
            axes.errorbar([x for x, _ in points], [mean - offset for mean in means], spreads, **_line_style(line))
        _scale_x(axes, view.axis)
        runs = [run for line, _ in lines for _, configuration in line.members for run in configuration.runs]
        runs = [run for run in runs if run.group(metric) == group]
        if metric.key in REFERENCES:
            _draw_reference(axes, REFERENCES[metric.key], runs)
        if metric.digits == 0:
            axes.locator_params(axis="y", integer=True)
        if metric.comparable == "bits":
            _add_nats(axes, runs)
        _add_legend(figure, axes, [line.label for line, _ in lines])
        return Plot(name, title, svg(figure))


def rate_distortion(view: View, study: Study) -> list[Plot]:
    """The rate against the error, which likelihoods share, and against the distortion of each comparison group."""
    rate, plots = study.metric(RATE), []
    for key, title in ((ERROR, "Rate and error"), (DISTORTION, "Rate and distortion")):
        metric = study.metric(key)
        compared = groups(metric, study.configurations) if rate and metric else []
        for group in compared:
            suffix = f": {group.name}" if len(compared) > 1 or key == DISTORTION else ""
            assert rate and metric
            plots.append(_rates(view, rate, metric, group, title + suffix))
    return [plot for plot in plots if plot]


def _rates(view: View, rate: Metric, metric: Metric, group: ComparisonGroup, title: str) -> Plot | None:
    """Points labeled by the swept value; None if no line has two points."""
    lines = []
    for line in view.lines:
        pairs = [(x, c.summary(rate), c.summary(metric, group)) for x, c in line.members]
        points = [(x, across, up) for x, across, up in pairs if across and up]
        if len(points) > 1:
            lines.append((line, points))
    if not lines:
        return None
    xlabel = f"{rate.title}, {rate.unit}; points: {view.axis.key}"
    with panel(title, xlabel, ", ".join(filter(None, (metric.title, metric.unit)))) as (figure, axes):
        for line, points in lines:
            style = _line_style(line)
            across, up = [across for _, across, _ in points], [up for _, _, up in points]
            means = [summary.mean for summary in across], [summary.mean for summary in up]
            spreads = [summary.std or 0.0 for summary in up], [summary.std or 0.0 for summary in across]
            axes.errorbar(*means, *spreads, **style)
            for (x, _, _), at in zip(points, zip(*means, strict=True), strict=True):
                axes.annotate(f"{x:g}", at, (5, 4), textcoords="offset points", fontsize=8.5, color=style["color"])
        axes.margins(0.1)
        _add_legend(figure, axes, [line.label for line, _ in lines])
        return Plot(title, title, svg(figure))


def training_curves(panels: Iterable[Panel]) -> list[Plot]:
    """A thin curve for each run, colored by the swept value, which has the same color in all panels."""
    plots = []
    for each in panels:
        labels: dict[str, None] = {}
        with panel(each.title or "Training", "step", f"{each.curves[0].key.replace('/', ' ')}, nats") as (figure, axes):
            for curve in each.curves:
                label = "" if each.axis is None or curve.x is None else plain(f"{each.axis.key}={curve.x:g}")
                legend_entry = None if not label or label in labels else label
                labels |= {label: None} if label else {}
                color = _ramp_color(each.axis, curve.x)
                axes.plot(curve.steps, curve.values, color=color, linewidth=1.3, alpha=0.85, label=legend_entry)
            last = max(curve.steps[-1] for curve in each.curves)
            points = [point for curve in each.curves for point in zip(curve.steps, curve.values, strict=True)]
            values = [value for step, value in points if step > START * last]
            room = 0.05 * (max(values) - min(values)) or 1.0
            axes.set_ylim(min(values) - room, max(values) + room)
            axes.locator_params(axis="x", integer=True, nbins=5)
            _add_legend(figure, axes, list(labels))
            plots.append(Plot(f"training {each.title}", each.title, svg(figure)))
    return plots


def _line_style(line: Line) -> dict[str, Any]:
    marker, color = MARKERS[line.number % len(MARKERS)], COLORS[line.number % len(COLORS)]
    sizes = {"linewidth": 1.6, "elinewidth": 1.1, "capsize": 2.5, "markersize": 5}
    return {"color": color, "marker": marker, "label": plain(line.label), **sizes}


def _scale_x(axes: Axes, axis: Axis) -> None:
    """Logarithmic for geometric values, with a tick for each value unless there are too many."""
    numbers = axis.numbers
    if axis.geometric:
        smallest = min(number for number in numbers if number > 0)
        axes.set_xscale("symlog", linthresh=smallest) if numbers[0] == 0 else axes.set_xscale("log")
    if len(numbers) <= 8:
        axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
        axes.set_xticks([], minor=True)


def _add_nats(axes: Axes, runs: Sequence[Run]) -> None:
    """A second axis on the right, in nats per image instead of bits per dimension."""
    about = runs[0].about
    assert about
    nats = math.prod(about.image_shape) * math.log(2)  # in one bit/dim
    left, bottom, width, height = axes.get_position().bounds
    axes.set_position((left, bottom, width - 0.12, height))

    def to_nats(bits: Any) -> Any:
        return bits * nats

    def to_bits(values: Any) -> Any:
        return values / nats

    right = axes.secondary_yaxis("right", functions=(to_nats, to_bits))
    right.set_ylabel("nats per image")
    right.spines["right"].set_visible(True)


def _draw_reference(axes: Axes, key: str, runs: Sequence[Run]) -> None:
    """A dotted line at what as many real images give."""
    values = [value for run in runs if isinstance(value := run.results.get(key), float)]
    if values:
        axes.axhline(values[0], color=INK, alpha=0.5, linewidth=1, linestyle=":")
        axes.annotate(
            "real images", (1, values[0]), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", fontsize=8.5, alpha=0.8,
        )  # fmt: skip
        axes.set_ylim(bottom=0)


def _add_legend(figure: Figure, axes: Axes, labels: Sequence[str]) -> None:
    """Below the plot, where it hides nothing; none if the title already contains the only label."""
    if not labels or (len(labels) == 1 and labels[0] in axes.get_title("left")):
        return
    columns = min(len(labels), 2 if max(map(len, labels)) > 10 else 4)
    if more := max(0, math.ceil(len(labels) / columns) - 2) * LEGEND_LINE:
        left, bottom, width, height = axes.get_position().bounds
        before = figure.get_figheight()
        figure.set_figheight(before + more)
        axes.set_position((left, (bottom * before + more) / (before + more), width, height * before / (before + more)))
    figure.legend(loc="lower center", ncols=columns, handlelength=1.6, columnspacing=1.2)


def _ramp_color(axis: Axis | None, value: float | None) -> str:
    if axis is None or value is None:
        return COLORS[0]
    return RAMP[round(axis.numbers.index(value) * (len(RAMP) - 1) / max(1, len(axis.numbers) - 1))]
