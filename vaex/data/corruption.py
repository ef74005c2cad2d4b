"""Corruption of the encoder's input in a denoising autoencoder, Vincent et al. 2010, section 3.3.

A corruption is a callable: float32 images [B, C, H, W] in [0, 1] -> images of the same shape on the same device. It
draws new noise at each call: from vaex.data.noise, so that an evaluation gives each image noise of its own. The loss
compares the decoder's output with the clean image. Masking and salt-and-pepper noise act on all channels of a pixel
together.
"""

import math

import torch
from torch import Tensor

from vaex.data.noise import normal_like, uniform_like


class Masking:
    """Sets each pixel to 0 with probability `fraction`.

    Raises:
        ValueError: `fraction` is not between 0 and 1.
    """

    def __init__(self, *, fraction: float) -> None:
        self.fraction = _probability(fraction)

    def __call__(self, x: Tensor) -> Tensor:
        return x * (uniform_like(x[:, :1]) >= self.fraction)


class GaussianNoise:
    """Adds std · N(0, 1) to every value, without clipping to [0, 1].

    Raises:
        ValueError: `std` is negative or not finite.
    """

    def __init__(self, *, std: float) -> None:
        if not (math.isfinite(std) and std >= 0):
            raise ValueError(f"corruption.std={std}: must be a finite number >= 0, in units of x in [0, 1]")
        self.std = std

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.std * normal_like(x)


class SaltAndPepper:
    """Sets each pixel to 0 with probability `fraction` / 2, and to 1 with the same probability.

    Raises:
        ValueError: `fraction` is not between 0 and 1.
    """

    def __init__(self, *, fraction: float) -> None:
        self.fraction = _probability(fraction)

    def __call__(self, x: Tensor) -> Tensor:
        u = uniform_like(x[:, :1])
        return torch.where(u < self.fraction, (u < self.fraction / 2).to(x.dtype), x)


def _probability(fraction: float) -> float:
    if not 0 <= fraction <= 1:
        raise ValueError(f"corruption.fraction={fraction}: must be from 0 to 1")
    return fraction
