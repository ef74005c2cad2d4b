"""The plane of two latents, at even quantiles of the prior. Kingma & Welling 2014, figure 4."""

import torch
from torch import Tensor

from vaex.figures.figure import FigureKind, Files, Subject, has_standard_prior, needs_prior
from vaex.figures.sheet import above, beside, framed, grid, text

CAPTION = "z0 grows to the right and z1 upwards, at even quantiles of the prior"


def manifold(subject: Subject) -> Files:
    """Decoded codes, z0 growing to the right and z1 upwards, each at `subject.count` quantiles of N(0, 1).

    A conditional model has such a grid for each of its first ten classes. The default is 15 quantiles, or 5 with
    classes.
    """
    if not subject.model.classes:
        sheet = above(_plane(subject, subject.count or 15, 0), text(CAPTION), gap=8)
        return {"manifold.png": framed(sheet)}
    names = subject.class_names[:10]
    sheets = [
        above(text(f"class {name}"), _plane(subject, subject.count or 5, n), gap=6) for n, name in enumerate(names)
    ]
    rows = [beside(*sheets[n : n + 5]) for n in range(0, len(sheets), 5)]
    return {"manifold.png": framed(above(*rows, text(CAPTION)))}


def _plane(subject: Subject, side: int, label: int) -> Tensor:
    values = quantiles(side)
    z = torch.stack(torch.meshgrid(values, values, indexing="xy"), dim=-1).flip(0)  # [side, side, (z0, z1)], z1 upwards
    means = subject.decode(z.flatten(0, 1), torch.full((side * side,), label))
    names = [f"{value:.2f}" for value in values.tolist()]
    return grid(means.view(side, side, *means.shape[1:]), rows=names[::-1], columns=names, columns_below=True, gap=0)


def quantiles(side: int) -> Tensor:
    """The middles of `side` intervals of equal probability under N(0, 1): Φ⁻¹((k + ½) / side)."""
    values: Tensor = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side)
    return values.float()


def needs_plane(subject: Subject) -> str | None:
    if subject.model.latent_dim != 2:
        return f"needs latent_dim=2, this run has {subject.model.latent_dim}"
    if subject.model.stochastic and not has_standard_prior(subject.model):
        return "needs prior=standard, since it is drawn at quantiles of N(0, 1)"
    return needs_prior(subject)


MANIFOLD = FigureKind("manifold", manifold, needs_plane)
