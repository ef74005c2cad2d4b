"""What the encoder of a denoising autoencoder sees of an image: float32 [B, C, H, W] in, the same shape out.

The loss scores the decoder against the clean image. Vincent et al. 2010, section 3.3. All channels of a pixel share its
fate. Noise is drawn anew for each batch, on the batch's device.
"""

import math

import torch
from torch import Tensor


class Masking:
    """Each pixel becomes 0 with probability `fraction`.

    Raises:
        ValueError: fraction isn't from 0 to 1.
    """

    def __init__(self, *, fraction: float) -> None:
        self.fraction = _probability(fraction)

    def __call__(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x[:, :1]) >= self.fraction)


class GaussianNoise:
    """x + std · N(0, 1), not clipped to [0, 1].

    Raises:
        ValueError: std is negative.
    """

    def __init__(self, *, std: float) -> None:
        if not (math.isfinite(std) and std >= 0):
            raise ValueError(f"corruption.std={std}: must be a finite number >= 0, in units of x in [0, 1]")
        self.std = std

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn_like(x)


class SaltAndPepper:
    """Each pixel becomes 0 or 1, either with probability `fraction` / 2.

    Raises:
        ValueError: fraction isn't from 0 to 1.
    """

    def __init__(self, *, fraction: float) -> None:
        self.fraction = _probability(fraction)

    def __call__(self, x: Tensor) -> Tensor:
        u = torch.rand_like(x[:, :1])
        return torch.where(u < self.fraction, (u < self.fraction / 2).to(x.dtype), x)


def _probability(fraction: float) -> float:
    if not 0 <= fraction <= 1:
        raise ValueError(f"corruption.fraction={fraction}: must be from 0 to 1")
    return fraction
