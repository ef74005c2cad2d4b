"""Bits per dimension, and the pixels on which a likelihood must be scored for them to mean anything.

An 8-bit image has one probability, whatever the likelihood: a mass over 256 levels gives it directly, and a density
gives a bound on it by uniform dequantisation, log P(k) >= E_u log p((k+u)/256) - D log 256 (Theis et al. 2016, section
3.1). So densities are scored on (k+u)/256 even when the run was trained on k/255, where a density bounds nothing.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaex.data.dataset import Dataset
from vaex.evaluation.bound import ToFloat
from vaex.likelihoods.base import Likelihood


@dataclass(frozen=True)
class Scoring:
    """How -log p(x) in nats becomes bits of the image.

    Attributes:
        pixels: what is scored: (k+u)/256, k/255 or binary.
        to_float: uint8 batch -> that.
        offset: bits/dim that the change of units from x to levels adds.
    """

    pixels: str
    to_float: ToFloat
    offset: float

    def bits_per_dim(self, nll: float, dimensions: int) -> float:
        """nll in nats of one image with so many channels times pixels."""
        return nll / (dimensions * math.log(2)) + self.offset


def scoring(likelihood: Likelihood, dataset: Dataset) -> Scoring | None:
    """None where no probability of an image comes out: pseudo-likelihoods, and densities of binary images."""
    if likelihood.kind == "pseudo":
        return None
    if likelihood.kind == "density":
        return None if dataset.binary else Scoring("(k+u)/256", dequantized, offset=8.0)
    if dataset.binary:
        return Scoring("binary", dataset.to_float, offset=0.0)
    return Scoring("k/255", levels, offset=0.0) if likelihood.support == "uint8" else None


def dequantized(pixels: Tensor) -> Tensor:
    """uint8 k -> (k+u)/256, float32, u ~ U[0, 1)."""
    x = pixels.to(torch.float32)
    x = (x + torch.rand_like(x)) / 256
    # Rounding gives an exact 0 or 1 about once in a test split, and a density may be infinite there.
    return x.clamp(min=2**-33, max=1 - 2**-24)


def levels(pixels: Tensor) -> Tensor:
    """uint8 k -> k/255, float32."""
    return pixels.to(torch.float32) / 255
