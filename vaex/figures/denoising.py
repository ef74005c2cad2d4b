"""What a denoising autoencoder makes of corrupted images."""

from collections.abc import Callable

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.evaluation.bound import ToFloat, evaluating, fixed_noise
from vaex.figures.sheet import above, framed, grid
from vaex.model import Autoencoder


def denoising(
    model: Autoencoder,
    images: Images,
    to_float: ToFloat,
    corruption: Callable[[Tensor], Tensor],
    count: int = 24,
    columns: int = 12,
) -> Tensor:
    """The first `count` images; below each what the encoder sees, cut to [0, 1]; and below that the decoder's mean."""
    shown = images[:count].to(model.device)
    with evaluating(model), fixed_noise(model.device):
        x = to_float(shown.pixels)
        corrupted = corruption(x)
        restored = model.reconstruct(corrupted, shown.labels)
    triples = torch.stack([x, corrupted, restored])  # [3, N, C, H, W]
    return framed(
        above(*(grid(part, rows=["clean", "corrupted", "restored"]) for part in torch.split(triples, columns, dim=1)))
    )
