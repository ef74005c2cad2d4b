"""Where the codes of test images lie, by class: on the first two principal components where there are more latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.evaluation.bound import ToFloat
from vaex.evaluation.codes import codes
from vaex.figures.plot import GREY, rendered, style
from vaex.model import Autoencoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PRIOR_RADIUS = 2.0  # of the circle that is drawn of the prior, in its standard deviations
PRIOR = f"prior, {PRIOR_RADIUS:g} std"
LEGEND = 20  # classes that it has room for


@dataclass(frozen=True)
class Panel:
    """One model's codes. `z` [N, latent_dim]: the posterior's means; `labels` [N]."""

    title: str
    z: Tensor
    labels: Tensor
    class_names: Sequence[str]
    stochastic: bool


def panel(
    model: Autoencoder,
    images: Images,
    to_float: ToFloat,
    *,
    count: int = 2000,
    class_names: Sequence[str] = (),
    title: str = "",
) -> Panel:
    z = codes(model, images[:count], to_float).mean
    return Panel(title, z, images.labels[:count].cpu(), class_names, model.stochastic)


def principal(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Principal components of z [N, D], the widest first.

    Returns:
        mean [D]; directions [D, D], a unit vector in each row, its largest entry positive; and the share of the
        variance along each [D]. Float64.
    """
    z = z.double()
    mean = z.mean(0)
    centred = z - mean
    variance, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    variance, directions = variance.flip(0).clamp(min=0), vectors.T.flip(0)
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    return mean, directions, variance / variance.sum().clamp(min=torch.finfo(torch.float64).tiny)


def latents(panels: Sequence[Panel]) -> Tensor:
    """The panels side by side. uint8 [3, height, width]."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(6.2 * len(panels) + 1.3, 6.2), dpi=100, layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, part in zip(axes, panels, strict=True):
            _scatter(axis, part)
        pairs = [pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
        if entries := {name: handle for handle, name in pairs}:
            figure.legend(list(entries.values()), list(entries), loc="outside right center", markerscale=2.5)
        return rendered(figure)


def _scatter(axis: Axes, panel: Panel) -> None:
    dimensions = panel.z.shape[1]
    labels = panel.labels
    if dimensions == 1:
        # Each class has a band of its own, in which its codes are spread evenly.
        spread = (torch.arange(len(labels)) * 0.6180339887).frac() - 0.5
        points = torch.stack([panel.z[:, 0], (labels if panel.class_names else 0) + 0.8 * spread], dim=1)
        origin = None
        axis.set_xlabel("z0")
        axis.set_yticks(range(len(panel.class_names)), panel.class_names)
        if panel.stochastic:
            for side, name in ((-PRIOR_RADIUS, None), (PRIOR_RADIUS, PRIOR)):
                axis.axvline(side, color=GREY, linestyle="--", linewidth=1, label=name)
    else:
        if dimensions == 2:
            points, origin = panel.z, torch.zeros(2)
            names = ["z0", "z1"]
        else:
            mean, directions, share = principal(panel.z)
            points, origin = (panel.z - mean) @ directions[:2].T, -mean @ directions[:2].T
            names = [f"principal component {n + 1}: {share[n]:.1%} of the variance" for n in range(2)]
        axis.set(xlabel=names[0], ylabel=names[1], aspect="equal")
        axis.set_adjustable("datalim")
    axis.set_title(panel.title, fontsize=10)
    classes = len(panel.class_names)
    for n in range(max(1, classes)):
        chosen = points[labels == n] if classes else points
        name = panel.class_names[n] if 0 < classes <= LEGEND else None
        axis.scatter(chosen[:, 0], chosen[:, 1], s=7, color=colour(n, classes), alpha=0.8, label=name, linewidths=0)
    if origin is not None and panel.stochastic:
        angle = torch.linspace(0, 2 * math.pi, 200)
        circle = origin + PRIOR_RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
        axis.plot(circle[:, 0], circle[:, 1], color=GREY, linestyle="--", linewidth=1, label=PRIOR)


def colour(label: int, classes: int) -> tuple[float, ...]:
    """Ten, twenty, or as many from a circle of hues as there are classes."""
    from matplotlib import colormaps

    if classes <= 20:
        return colormaps["tab10" if classes <= 10 else "tab20"](label)
    return colormaps["hsv"](label / classes)
