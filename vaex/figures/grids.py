"""Grids of reconstructions and samples: the likelihood's mean, and [0, 1] is black to white."""

import math
from collections.abc import Callable
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from vaex.data.dataset import Images
from vaex.evaluation.bound import evaluating, fixed_noise
from vaex.model import Autoencoder

BACKGROUND = 255


def tile(images: Tensor, columns: int, gaps_after_rows: int = 1) -> Tensor:
    """float [N, C, H, W] in [0, 1] -> one picture, uint8 [C, height, width], filled row by row.

    Small images are enlarged by a whole factor, so that pixels stay squares. A row of the background separates images;
    a wider one separates each `gaps_after_rows` rows.
    """
    count, channels, height, width = images.shape
    factor = max(1, 64 // max(height, width))
    pixels = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    height, width, thin, wide = height * factor, width * factor, 2, 10
    rows = math.ceil(count / columns)
    tops, top = [], thin
    for row in range(rows):
        tops.append(top)
        top += height + (wide if gaps_after_rows > 1 and (row + 1) % gaps_after_rows == 0 and row + 1 < rows else thin)
    picture = torch.full((channels, top, thin + columns * (width + thin)), BACKGROUND, dtype=torch.uint8)
    for n in range(count):
        y, x = tops[n // columns], thin + (n % columns) * (width + thin)
        picture[:, y : y + height, x : x + width] = pixels[n]
    return picture


def reconstructions(
    model: Autoencoder,
    images: Images,
    to_float: Callable[[Tensor], Tensor],
    count: int,
    columns: int = 16,
    parameter: bool = False,
) -> Tensor:
    """The first `count` images of the split above the decoder's means. uint8 [C, height, width].

    `parameter`: below each mean, the raw parameter that is often drawn in its place.
    """
    count = min(count, len(images))
    columns = min(columns, count)
    with evaluating(model), fixed_noise(images.pixels.device):
        x = to_float(images.pixels[:count])
        labels = images.labels[:count]
        distribution = model.decode(model.encode(x, labels).mean, labels)
        parts = [x, distribution.mean] + ([distribution.parameter] if parameter else [])
    blank = torch.full((-count % columns, *x.shape[1:]), BACKGROUND / 255, device=x.device)
    rows = [torch.cat([part, blank]).view(-1, columns, *part.shape[1:]) for part in parts]
    return tile(torch.stack(rows, dim=1).flatten(0, 2), columns, gaps_after_rows=len(parts))


def samples(model: Autoencoder, device: torch.device, count: int, columns: int = 16) -> Tensor:
    """The decoder's means at the same draws from the prior every time. uint8 [C, height, width].

    A conditional model draws one row for each class, with the same z down every column.
    """
    columns = min(columns, count)
    with evaluating(model), fixed_noise(device):
        if model.classes:
            z = torch.randn(columns, model.latent_dim, device=device).repeat(model.classes, 1)
            labels = torch.arange(model.classes, device=device).repeat_interleave(columns)
            return tile(model.decode(z, labels).mean, columns)
        return tile(model.sample(count), columns)


def encode_png(picture: Tensor) -> bytes:
    """uint8 [1 or 3, height, width] -> PNG."""
    array = picture.permute(1, 2, 0).numpy()
    buffer = BytesIO()
    Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array).save(buffer, format="PNG")
    return buffer.getvalue()
