"""How the validation numbers of runs went, from their metrics.jsonl. Imports no torch."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vaex.report.axes import Axis, Design
from vaex.report.layout import MOST_LINES, views
from vaex.report.scores import Scored
from vaex.report.statistics import Configuration
from vaex.runs.folder import METRICS

MOST_POINTS = 120  # of one line
# What is drawn: the first of these that a run has. An autoencoder has no ELBO, and a run may have no validation split.
KEYS = ("validation/elbo", "validation/loss", "train_epoch/elbo", "train_epoch/loss")


@dataclass(frozen=True)
class Curve:
    """One run's. `value` is the swept one, where there is one."""

    key: str
    value: float | None
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """Runs of one likelihood; `axis` is what tells their lines apart."""

    title: str
    axis: Axis | None
    curves: tuple[Curve, ...]


def panels(design: Design, found: Sequence[Configuration]) -> list[Panel]:
    """One for each line of the first view, with all seeds; else one for each configuration."""
    grouped: list[tuple[str, Axis | None, list[tuple[float | None, Scored]]]] = []
    for view in views(design, found)[:1]:
        for line in view.lines:
            grouped.append((line.label, view.axis, [(x, item) for x, c in line.members for item in c.items]))
    if not grouped:
        grouped = [(c.label, None, [(None, item) for item in c.items]) for c in found[:MOST_LINES]]
    made = []
    for title, axis, members in grouped:
        curves = [curve(item.run.path / METRICS, value) for value, item in members]
        there = [one for one in curves if one]
        # One unit a panel: a run without a validation split isn't drawn beside others.
        same = tuple(one for one in there if one.key == there[0].key)
        if same:
            made.append(Panel(title, axis, same))
    return made


def curve(metrics: Path, value: float | None) -> Curve | None:
    """None where the file has none of the numbers, or two lines of none. A last line that was cut off is left out."""
    try:
        lines = metrics.read_text().splitlines()
    except OSError:
        return None
    for key in KEYS:
        points: list[tuple[int, float]] = []
        for text in lines:
            if f'"{key}"' not in text:
                continue
            try:
                line = json.loads(text)
                step, number = int(line["step"]), float(line[key])
            except (ValueError, TypeError, KeyError):
                continue
            while points and points[-1][0] >= step:  # the run went on from an earlier step
                points.pop()
            if math.isfinite(number):
                points.append((step, number))
        if len(points) > 1:
            points = thinned(points)
            return Curve(key, value, tuple(step for step, _ in points), tuple(number for _, number in points))
    return None


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most so many, evenly picked, the last among them."""
    stride = math.ceil(len(points) / MOST_POINTS)
    return list(points[::-1][::stride][::-1])
