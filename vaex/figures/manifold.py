"""Everything a model with two latents can draw, at even quantiles of the prior. Kingma & Welling 2014, figure 4."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vaex.figures.sheet import above, beside, framed, grid, text
from vaex.figures.traversal import decoded
from vaex.model import Autoencoder

CAPTION = "z0 grows to the right and z1 upwards, at even quantiles of the prior"


def manifold(model: Autoencoder, side: int | None = None, class_names: Sequence[str] = ()) -> Tensor:
    """The decoder's means with z0 growing to the right and z1 upwards, each at `side` quantiles of N(0, 1).

    A conditional model has one such grid for each of its first ten classes. Default side: 15, or 5 with classes.
    """
    if not model.classes:
        return framed(above(_grid(model, side or 15, 0), text(CAPTION), gap=8))
    side = side or 5
    sheets = [above(text(f"class {name}"), _grid(model, side, n), gap=6) for n, name in enumerate(class_names[:10])]
    rows = [beside(*sheets[n : n + 5]) for n in range(0, len(sheets), 5)]
    return framed(above(*rows, text(CAPTION)))


def _grid(model: Autoencoder, side: int, label: int) -> Tensor:
    values = quantiles(side)
    z = torch.stack(torch.meshgrid(values, values, indexing="xy"), dim=-1).flip(0)  # [side, side, (z0, z1)], z1 upwards
    means = decoded(model, z.flatten(0, 1), torch.full((side * side,), label))
    names = [f"{value:.2f}" for value in values.tolist()]
    return grid(means.view(side, side, *means.shape[1:]), rows=names[::-1], columns=names, columns_below=True, gap=0)


def quantiles(side: int) -> Tensor:
    """The middles of `side` intervals of equal probability under N(0, 1): Φ⁻¹((k + ½) / side)."""
    values: Tensor = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side)
    return values.float()
