"""The plots of a report: each number against a swept value, rate against distortion, and training. SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vaex.report.axes import Axis, shown
from vaex.report.layout import Line, View
from vaex.report.scores import Scale
from vaex.report.statistics import (
    ACTIVE_UNITS,
    BITS,
    DISTORTION,
    FID,
    METRICS,
    MSE,
    NLL,
    RATE,
    Configuration,
    Metric,
    Summary,
    scales,
)
from vaex.report.svg import COLOURS, INK, MARKERS, RAMP, panel, svg
from vaex.report.training import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGEND_LINE = 0.18  # inches
START = 0.05  # share of the steps whose values don't stretch the axis: most of the change is in these


Points = tuple[Line, list[tuple[float, Summary]]]  # (swept value, over seeds) along a line


@dataclass(frozen=True)
class Plot:
    """`name` of a file, without its ending; `svg` to stand inside a page; `group` of those that belong together."""

    name: str
    title: str
    svg: str


def against(view: View, found: Sequence[Configuration]) -> list[Plot]:
    """Every number that there is, mean ± std over seeds, one panel for each scale: different things share no axis."""
    plots = []
    for metric in METRICS:
        if metric in (RATE, DISTORTION):  # in plots of their own
            continue
        on = scales(metric, found)
        for n, scale in enumerate(on, 1):
            lines = [(line, line.points(metric, scale)) for line in view.lines]
            lines = [(line, points) for line, points in lines if points]
            if max((len(points) for _, points in lines), default=0) < 2:
                continue
            title = metric.title + f": {_short(scale)}" * (len(on) > 1 or not scale.likelihoods)
            name = f"{metric.name}_{_file(view.axis.key)}" + f"_{n}_{_file(_short(scale))}" * (len(on) > 1)
            plots.append(_lines(view, metric, title, name, lines))
            if metric in (BITS, NLL) and len(lines) > 1:
                plots.append(_lines(view, metric, f"{title}, above each one's best", f"{name}_above_best", lines, True))
    return plots


def _lines(
    view: View, metric: Metric, title: str, name: str, lines: Sequence[Points], above_best: bool = False
) -> Plot:
    """`above_best`: less the lowest mean of each line, which shows the swept value's part where lines lie far apart."""
    with panel(title, view.axis.key, metric.unit) as (figure, axes):
        for line, points in lines:
            means = [over_seeds.mean for _, over_seeds in points]
            spreads = [over_seeds.std or 0.0 for _, over_seeds in points]
            off = min(means) if above_best else 0.0
            axes.errorbar([x for x, _ in points], [mean - off for mean in means], spreads, **_look(line))
        _along(axes, view.axis)
        if metric is FID:
            _floor(axes, lines)
        if metric is ACTIVE_UNITS:
            axes.locator_params(axis="y", integer=True)
        if metric is BITS:
            _in_nats(axes, lines[0][0])
        _legend(figure, axes, [line.label for line, _ in lines])
        return Plot(name, title, svg(figure))


def rate_distortion(view: View, found: Sequence[Configuration]) -> list[Plot]:
    """The rate against the error, which all likelihoods share, and against the distortion, each on its own scale."""
    plots = []
    for n, scale in enumerate(on := scales(MSE, found), 1):
        title = "Rate and error" + f": {_short(scale)}" * (len(on) > 1)
        plots.append(_rates(view, MSE, scale, title, "rate_error" + f"_{n}" * (len(on) > 1)))
    for n, scale in enumerate(scales(DISTORTION, found), 1):
        title, name = f"Rate and distortion: {_short(scale)}", f"rate_distortion_{n}_{_file(_short(scale))}"
        plots.append(_rates(view, DISTORTION, scale, title, name))
    return [plot for plot in plots if plot]


def _rates(view: View, metric: Metric, scale: Scale, title: str, name: str) -> Plot | None:
    """One line a likelihood, points labelled by the swept value; None of less than two points on every line."""
    lines = []
    for line in view.lines:
        both = [(x, c.summary(RATE), c.summary(metric, scale)) for x, c in line.members]
        points = [(x, rate, value) for x, rate, value in both if rate and value]
        if len(points) > 1:
            lines.append((line, points))
    if not lines:
        return None
    xlabel = f"rate, nats per image; points: {view.axis.key}"
    with panel(title, xlabel, f"{metric.title}, {metric.unit}") as (figure, axes):
        for line, points in lines:
            look = _look(line)
            rates, values = [rate.mean for _, rate, _ in points], [value.mean for _, _, value in points]
            across, up = [rate.std or 0.0 for _, rate, _ in points], [value.std or 0.0 for _, _, value in points]
            axes.errorbar(rates, values, up, across, **look)
            for (x, _, _), at in zip(points, zip(rates, values, strict=True), strict=True):
                axes.annotate(f"{x:g}", at, (5, 4), textcoords="offset points", fontsize=8.5, color=look["color"])
        axes.margins(0.1)
        _legend(figure, axes, [line.label for line, _ in lines])
        return Plot(name, title, svg(figure))


def training_curves(shown_panels: Iterable[Panel]) -> list[Plot]:
    """One panel a likelihood, a thin line for each run, coloured by the swept value."""
    plots = []
    for n, each in enumerate(shown_panels, 1):
        values = sorted({curve.value for curve in each.curves if curve.value is not None})
        with panel(each.title or "Training", "step", f"{each.curves[0].key.replace('/', ' ')}, nats") as (figure, axes):
            named: set[float | None] = {None}
            for curve in each.curves:
                label = f"{each.axis.key}={shown(curve.value)}" if each.axis and curve.value not in named else None
                named.add(curve.value)
                colour = _on_ramp(each.axis, curve.value)
                axes.plot(curve.steps, curve.values, color=colour, linewidth=1.3, alpha=0.85, label=label)
            _limits(axes, each)
            axes.locator_params(axis="x", integer=True, nbins=5)
            _legend(figure, axes, [f"{value:g}" for value in values])
            plots.append(Plot(f"training_{n}_{_file(each.title)}".rstrip("_"), each.title, svg(figure)))
    return plots


def _look(line: Line) -> dict[str, Any]:
    """The same in all plots."""
    marker = MARKERS[line.number % len(MARKERS)]
    style = {"linewidth": 1.6, "elinewidth": 1.1, "capsize": 2.5, "markersize": 5}
    return {"color": COLOURS[line.number % len(COLOURS)], "marker": marker, "label": line.label, **style}


def _along(axes: Axes, axis: Axis) -> None:
    """The swept values are the ticks, where they don't crowd."""
    numbers = axis.numbers
    if axis.geometric:
        smallest = min(number for number in numbers if number > 0)
        axes.set_xscale("symlog", linthresh=smallest) if numbers[0] == 0 else axes.set_xscale("log")
    if len(numbers) <= 8:
        axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
        axes.set_xticks([], minor=True)


def _in_nats(axes: Axes, line: Line) -> None:
    """The same numbers in nats per image, on the right."""
    dimensions = line.members[0][1].items[0].row.dimensions

    def to_nats(bits: Any) -> Any:
        return bits * (dimensions * math.log(2))

    def to_bits(nats: Any) -> Any:
        return nats / (dimensions * math.log(2))

    left, bottom, width, height = axes.get_position().bounds
    axes.set_position((left, bottom, width - 0.12, height))
    right = axes.secondary_yaxis("right", functions=(to_nats, to_bits))
    right.set_ylabel("nats per image")
    right.spines["right"].set_visible(True)


def _floor(axes: Axes, lines: Sequence[Points]) -> None:
    """What as many real images would give."""
    items = [item for line, _ in lines for _, configuration in line.members for item in configuration.items]
    floors = [item.row.results.get("test/fid_floor") for item in items]
    if there := [floor for floor in floors if isinstance(floor, float)]:
        axes.axhline(there[0], color=INK, alpha=0.5, linewidth=1, linestyle=":")
        axes.annotate(
            "real images", (1, there[0]), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", fontsize=8.5, alpha=0.8,
        )  # fmt: skip
        axes.set_ylim(bottom=0)


def _legend(figure: Figure, axes: Axes, labels: Sequence[str]) -> None:
    """Under the plot, where it hides nothing; none where the title has said it."""
    if not labels or (len(labels) == 1 and labels[0] in axes.get_title("left")):
        return
    columns = min(len(labels), 2 if max(map(len, labels)) > 10 else 4)
    if more := max(0, math.ceil(len(labels) / columns) - 2) * LEGEND_LINE:
        left, bottom, width, height = axes.get_position().bounds
        before = figure.get_figheight()
        figure.set_figheight(before + more)
        axes.set_position((left, (bottom * before + more) / (before + more), width, height * before / (before + more)))
    figure.legend(loc="lower center", ncols=columns, handlelength=1.6, columnspacing=1.2)


def _limits(axes: Axes, each: Panel) -> None:
    last = max(curve.steps[-1] for curve in each.curves)
    points = [point for curve in each.curves for point in zip(curve.steps, curve.values, strict=True)]
    later = [value for step, value in points if step > START * last]
    room = 0.05 * (max(later) - min(later)) or 1.0
    axes.set_ylim(min(later) - room, max(later) + room)


def _on_ramp(axis: Axis | None, value: float | None) -> str:
    """The same for a value in all panels."""
    if axis is None or value is None:
        return COLOURS[0]
    return RAMP[round(axis.numbers.index(value) * (len(RAMP) - 1) / max(1, len(axis.numbers) - 1))]


def _short(scale: Scale) -> str:
    return scale.title.partition(", ")[0]


def _file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()
