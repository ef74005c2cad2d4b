"""Codes of test images, colored by class; of more than two latents, their first two principal components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vaex.figures.figure import FigureKind, Files, Subject, has_standard_prior
from vaex.figures.plot import GRAY, needs_matplotlib, render, styled_figure
from vaex.latents.prior import LatentDistribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PRIOR_RADIUS = 2.0  # standard deviations of the prior, marked by a circle or two lines
PRIOR = f"prior, {PRIOR_RADIUS:g} std"
PRIOR_STYLE: Any = {"color": GRAY, "linestyle": "--", "linewidth": 1}
LEGEND = 20  # classes that fit into the legend


def principal(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Principal components of z [N, D] in float64, in order of decreasing variance.

    Returns:
        The mean [D]; the directions [D, D], a unit vector in each row whose largest entry is positive; and the share of
        the variance along each of them [D].
    """
    z = z.double()
    mean = z.mean(0)
    centered = z - mean
    variance, vectors = torch.linalg.eigh(centered.T @ centered)  # ascending
    variance, directions = variance.flip(0).clamp(min=0), vectors.T.flip(0)
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    return mean, directions, variance / variance.sum().clamp(min=torch.finfo(torch.float64).tiny)


def plot(subjects: Sequence[Subject]) -> Tensor:
    """The codes of several models side by side with one legend, uint8 [3, height, width]."""
    with styled_figure(6.2 * len(subjects) + 1.3, 6.2) as figure:
        axes = figure.subplots(1, len(subjects), squeeze=False)[0]
        entries: dict[str, Any] = {}
        for axis, subject in zip(axes, subjects, strict=True):
            _scatter(axis, subject)
            handles, names = axis.get_legend_handles_labels()
            entries.update(zip(names, handles, strict=True))
        if entries:
            figure.legend(list(entries.values()), list(entries), loc="outside right center", markerscale=2.5)
        return render(figure)


def _scatter(axis: Axes, subject: Subject) -> None:
    count, standard, class_names = subject.count or 2000, has_standard_prior(subject.model), subject.class_names
    z, labels = subject.codes(count)[0], subject.dataset.test.labels[:count].cpu()
    classes, dimensions = len(class_names), z.shape[1]
    axis.set_title(subject.title, fontsize=10)
    if dimensions == 1:
        # Each class has a band of its own. Multiples of the golden ratio spread its codes evenly over the band.
        jitter = (torch.arange(len(labels)) * 0.6180339887).frac() - 0.5
        points = torch.stack([z[:, 0], (labels if classes else 0) + 0.8 * jitter], dim=1)
        axis.set_xlabel("z0")
        axis.set_yticks(range(classes), class_names)
        if standard:
            axis.axvline(-PRIOR_RADIUS, **PRIOR_STYLE)
            axis.axvline(PRIOR_RADIUS, label=PRIOR, **PRIOR_STYLE)
    else:
        points, origin, names = z, torch.zeros(2), ["z0", "z1"]
        if dimensions > 2:
            mean, directions, share = principal(z)
            points, origin = (z - mean) @ directions[:2].T, -mean @ directions[:2].T
            names = [f"principal component {n + 1}: {share[n]:.1%} of the variance" for n in range(2)]
        axis.set(xlabel=names[0], ylabel=names[1], aspect="equal", adjustable="datalim")
    for n in range(max(1, classes)):
        chosen = points[labels == n] if classes else points
        name = class_names[n] if 0 < classes <= LEGEND else None
        axis.scatter(chosen[:, 0], chosen[:, 1], s=7, color=color(n, classes), alpha=0.8, label=name, linewidths=0)
    if dimensions == 2 and subject.model.stochastic and not standard:
        _outline(axis, subject.model.latent_prior())
    if dimensions > 1 and standard:
        angle = torch.linspace(0, 2 * math.pi, 200)
        circle = origin + PRIOR_RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
        axis.plot(circle[:, 0], circle[:, 1], label=PRIOR, **PRIOR_STYLE)


def _outline(axis: Axes, prior: LatentDistribution) -> None:
    """The region of highest density that holds as much of p(z) as a circle of PRIOR_RADIUS of N(0, I)."""
    share = 1 - math.exp(-(PRIOR_RADIUS**2) / 2)
    samples = prior.sample(4000)
    log_prob = prior.log_prob(samples)
    level = log_prob.quantile(1 - share).item()
    axis.update_datalim(samples[log_prob >= level].cpu().numpy())
    axis.autoscale_view()
    sides = [torch.linspace(*limits, 200) for limits in (axis.get_xlim(), axis.get_ylim())]
    x, y = torch.meshgrid(*sides, indexing="xy")
    z = torch.stack([x, y], dim=-1).flatten(0, 1)
    log_prob = torch.cat([prior.log_prob(part.to(samples.device)).cpu() for part in torch.split(z, 4000)]).view_as(x)
    axis.contour(x, y, log_prob, levels=[level], colors=[GRAY], linestyles="--", linewidths=1)
    axis.plot([], [], label=f"prior, {share:.0%}", **PRIOR_STYLE)


def color(label: int, classes: int) -> tuple[float, ...]:
    """One of ten or twenty distinct colors; of a circle of hues if there are more classes."""
    from matplotlib import colormaps

    if classes <= 20:
        return colormaps["tab10" if classes <= 10 else "tab20"](label)
    return colormaps["hsv"](label / classes)


def latents(subject: Subject) -> Files:
    return {"latents.png": plot([subject])}


LATENTS = FigureKind("latents", latents, needs_matplotlib)
