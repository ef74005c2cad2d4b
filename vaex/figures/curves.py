"""Metrics over the training steps, from a run's metrics.jsonl."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from vaex.figures.figure import FigureKind, Files, Subject
from vaex.figures.plot import GRAY, needs_matplotlib, render, styled_figure
from vaex.runs.reading import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The metrics that have a curve, if the run has logged them, and their units.
UNITS = {
    **dict.fromkeys(("loss", "distortion", "rate", "elbo"), "nats per image"),
    "likelihood_scale": "of x in [0, 1]",
    "posterior_std": "of z",
}
START = 0.05  # share of the steps whose values do not extend the axis, since the loss falls steeply in these

Series = tuple[list[int], list[float]]  # steps, values


def curves(subject: Subject) -> Files:
    """Training (means over the steps since the last line) and validation metrics."""
    assert subject.metrics is not None
    train, validation = (read(subject.metrics, prefix) for prefix in ("train", "validation"))
    names = [name for name in UNITS if train.get(name) or validation.get(name)]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    with styled_figure(4.2 * columns, 3.2 * rows) as figure:
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, name in zip(axes, names, strict=False):
            _panel(axis, name, train.get(name), validation.get(name))
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        return {"curves.png": render(figure)}


def read(metrics: Path, prefix: str) -> dict[str, Series]:
    """The series of `prefix/<name>`, by name."""
    series: dict[str, Series] = {}
    for line in read_metrics(metrics):
        for name in UNITS:
            value = line.get(f"{prefix}/{name}")
            if isinstance(value, int | float):
                steps, values = series.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    return series


def _panel(axis: Axes, name: str, train: Series | None, validation: Series | None) -> None:
    axis.set_title(name.replace("_", " "), fontsize=10, loc="left")
    axis.set(xlabel="step", ylabel=UNITS[name])
    start = START * max(series[0][-1] for series in (train, validation) if series)
    if train:
        train = _whole_intervals(*train)
        axis.plot(*train, color="#6a9bc9", linewidth=1.2, marker="." if len(train[0]) < 10 else "", label="training")
    if validation:
        axis.plot(*validation, color="#c44e52", linewidth=1.2, marker="o", markersize=3, label="validation")
    points = [point for series in (train, validation) if series for point in zip(*series, strict=True)]
    values = [value for step, value in points if step > start and math.isfinite(value)]
    if values:
        low, high = min(values), max(values)
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axis.set_ylim(low - room, high + room)
    axis.locator_params(axis="x", integer=True)
    axis.grid(color=GRAY, alpha=0.15)
    axis.legend(fontsize=9)


def _whole_intervals(steps: list[int], values: list[float]) -> Series:
    """Leave out means over a few steps only, such as the first of an epoch, since they fluctuate."""
    gaps = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    usual = sorted(gaps)[len(gaps) // 2]
    rows = [n for n, gap in enumerate(gaps) if 2 * gap >= usual]
    return [steps[n] for n in rows], [values[n] for n in rows]


def needs_metrics(subject: Subject) -> str | None:
    if reason := needs_matplotlib():
        return reason
    if subject.metrics is None or not subject.metrics.is_file():
        return f"needs {subject.metrics or 'metrics.jsonl'}, which does not exist"
    return None if read(subject.metrics, "train") else f"{subject.metrics} contains no training metrics"


CURVES = FigureKind("curves", curves, needs_metrics)
