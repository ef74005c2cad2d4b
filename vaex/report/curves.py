"""How the validation numbers of runs developed, from their metrics.jsonl. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vaex.report.axes import Axis
from vaex.report.collect import Run
from vaex.report.layout import MOST_LINES, views
from vaex.report.statistics import Study
from vaex.runs.folder import METRICS
from vaex.runs.reading import read_metrics

MOST_POINTS = 120  # of one curve
# The first of these keys that a run has is shown: an autoencoder has no ELBO, and a run may have no validation split.
KEYS = ("validation/elbo", "validation/loss", "train_epoch/elbo", "train_epoch/loss")


@dataclass(frozen=True)
class Curve:
    """The curve of one run; `x` is its value along the swept axis, if there is one."""

    key: str
    x: float | None
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """The curves of one line of the plots, which differ in the value of the axis and in the seed."""

    title: str
    axis: Axis | None
    curves: tuple[Curve, ...]


def panels(study: Study) -> list[Panel]:
    """One for each line of the first view, with all seeds; without a view one for each configuration."""
    members: list[tuple[str, Axis | None, list[tuple[float | None, Run]]]] = [
        (line.label, view.axis, [(x, run) for x, configuration in line.members for run in configuration.runs])
        for view in views(study)[:1]
        for line in view.lines
    ] or [(c.label, None, [(None, run) for run in c.runs]) for c in study.configurations[:MOST_LINES]]
    result = []
    for title, axis, runs in members:
        curves = [curve for x, run in runs if (curve := read_curve(run.path / METRICS, x))]
        # A panel has one unit: a run without a validation split is not drawn beside runs that have one.
        curves = [curve for curve in curves if curve.key == curves[0].key]
        if curves:
            result.append(Panel(title, axis, tuple(curves)))
    return result


def read_curve(metrics: Path, x: float | None) -> Curve | None:
    """None if no key has two points in the file."""
    if not metrics.is_file():
        return None
    for key in KEYS:
        lines = [line for line in read_metrics(metrics, key) if isinstance(line.get(key), int | float)]
        points = [(line["step"], float(line[key])) for line in lines if math.isfinite(line[key])]
        if len(points) > 1:
            steps, values = zip(*_thin(points), strict=True)
            return Curve(key, x, steps, values)
    return None


def _thin(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """At most MOST_POINTS, evenly spaced, including the last."""
    stride = math.ceil(len(points) / MOST_POINTS)
    return points[::-1][::stride][::-1]
