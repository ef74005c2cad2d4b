"""Grids of reconstructions and samples: the likelihood's mean, and [0, 1] is black to white."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.evaluation.bound import ToFloat, evaluating, fixed_noise
from vaex.figures.sheet import BACKGROUND, framed, grid, tile
from vaex.model import Autoencoder


def reconstructions(
    model: Autoencoder, images: Images, to_float: ToFloat, count: int, columns: int = 16, parameter: bool = False
) -> Tensor:
    """The first `count` images of the split above the decoder's means. uint8 [C, height, width].

    `parameter`: below each mean, the raw parameter that is often drawn in its place.
    """
    count = min(count, len(images))
    columns = min(columns, count)
    shown = images[:count].to(model.device)
    with evaluating(model), fixed_noise(model.device):
        x = to_float(shown.pixels)
        distribution = model.decode(model.encode(x, shown.labels).mean, shown.labels)
        parts = [x, distribution.mean] + ([distribution.parameter] if parameter else [])
    return columns_of(parts, columns)


def columns_of(parts: Sequence[Tensor], columns: int) -> Tensor:
    """Images [N, C, H, W] of several kinds -> a sheet with those of one n below each other, so many n in a row."""
    blank = torch.full((-len(parts[0]) % columns, *parts[0].shape[1:]), BACKGROUND / 255, device=parts[0].device)
    rows = [torch.cat([part, blank]).view(-1, columns, *part.shape[1:]) for part in parts]
    return tile(torch.stack(rows, dim=1).flatten(0, 2), columns, gaps_after_rows=len(parts))


def samples(
    model: Autoencoder, device: torch.device, count: int, columns: int = 16, class_names: Sequence[str] = ()
) -> Tensor:
    """The decoder's means at the same draws from the prior every time. uint8 [C, height, width].

    A conditional model draws one row for each class, its name beside it, with the same z down every column.
    """
    columns = min(columns, count)
    with evaluating(model), fixed_noise(device):
        if not model.classes:
            return tile(model.sample(count), columns)
        z = torch.randn(columns, model.latent_dim, device=device).repeat(model.classes, 1)
        labels = torch.arange(model.classes, device=device).repeat_interleave(columns)
        means = model.decode(z, labels).mean
    return framed(
        grid(
            means.view(model.classes, columns, *means.shape[1:]),
            rows=class_names or list(map(str, range(model.classes))),
        )
    )
