"""How the numbers went while training, from a run's metrics.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vaex.figures.plot import GREY, rendered, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is drawn where there is such a number, and its unit.
UNITS = {
    "loss": "nats per image",
    "distortion": "nats per image",
    "rate": "nats per image",
    "elbo": "nats per image",
    "likelihood_scale": "of x in [0, 1]",
    "posterior_std": "of z; the prior's is 1",
}
START = 0.05  # share of the steps whose values don't stretch the axis: the loss falls by far the most in these

Series = tuple[list[int], list[float]]  # steps, values


def curves(metrics: Path) -> Tensor:
    """Training (the mean over the steps since the last line) and validation, by step. uint8 [3, height, width]."""
    from matplotlib.figure import Figure

    train, validation = (read(metrics, prefix) for prefix in ("train", "validation"))
    names = [name for name in UNITS if train.get(name) or validation.get(name)]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    with style():
        figure = Figure(figsize=(4.2 * columns, 3.2 * rows), dpi=100, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for axis, name in zip(axes, names, strict=False):
            _panel(axis, name, train.get(name), validation.get(name))
        for axis in list(axes)[len(names) :]:
            axis.set_axis_off()
        return rendered(figure)


def read(metrics: Path, prefix: str) -> dict[str, Series]:
    """The numbers `prefix/<name>`, by name.

    A run that went on from an earlier step has replaced what it had logged after that one. A last line that was cut off
    is left out.
    """
    lines: list[dict[str, float]] = []
    for text in metrics.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        while lines and lines[-1]["step"] > line["step"]:
            lines.pop()
        lines.append(line)
    found: dict[str, Series] = {}
    for line in lines:
        for key, value in line.items():
            group, _, name = key.partition("/")
            if group == prefix and name in UNITS:
                steps, values = found.setdefault(name, ([], []))
                steps.append(int(line["step"]))
                values.append(value)
    return found


def _panel(axis: Axes, name: str, train: Series | None, validation: Series | None) -> None:
    axis.set_title(name.replace("_", " "), fontsize=10, loc="left")
    axis.set(xlabel="step", ylabel=UNITS[name])
    last = max(series[0][-1] for series in (train, validation) if series)
    if train:
        train = _of_whole_intervals(train)
        axis.plot(*train, color="#6a9bc9", linewidth=1.2, marker="." if len(train[0]) < 10 else "", label="training")
    if validation:
        axis.plot(*validation, color="#c44e52", linewidth=1.2, marker="o", markersize=3, label="validation")
    later = [
        value
        for series in (train, validation)
        if series
        for step, value in zip(*series, strict=True)
        if step > START * last and math.isfinite(value)
    ]
    if later:
        low, high = min(later), max(later)
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axis.set_ylim(low - room, high + room)
    axis.locator_params(axis="x", integer=True)
    axis.grid(color=GREY, alpha=0.15)
    axis.legend(fontsize=9)


def _of_whole_intervals(series: Series) -> Series:
    """Without the means over a few steps, such as the first of an epoch's, which jump about."""
    gaps = [after - before for before, after in zip([0, *series[0]], series[0], strict=False)]
    usual = sorted(gaps)[len(gaps) // 2]
    kept = [n for n, gap in enumerate(gaps) if 2 * gap >= usual]
    return [series[0][n] for n in kept], [series[1][n] for n in kept]
