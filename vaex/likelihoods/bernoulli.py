"""Bernoulli likelihood, from logits, and the same formula on grey pixels. Nats per image.

log p = x·h - softplus(h). For x in {0, 1} that is a probability. For grey x in (0, 1) it is minus the cross-entropy
between two Bernoulli distributions, normalised over no set of images: a pseudo-likelihood, whose value can be compared
with nothing but itself.
"""

import math

import torch
from torch import Tensor

from vaex.likelihoods.base import Likelihood, PixelDistribution
from vaex.likelihoods.softplus import softplus


class BernoulliDistribution(PixelDistribution):
    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits.shape)
        self.logits = logits

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)

    @property
    def mode(self) -> Tensor:
        return (self.logits > 0).to(self.logits.dtype)

    @property
    def variance(self) -> Tensor:
        return torch.sigmoid(self.logits) * torch.sigmoid(-self.logits)

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        return value * self.logits - softplus(self.logits)

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(*sample_shape, *self.logits.shape))


class Bernoulli(Likelihood):
    """Exact, for binary images only."""

    formula = "−x log p − (1−x) log(1−p)"
    support = "binary"
    kind = "mass"
    mean_error = "bce"

    def forward(self, h: Tensor, x: Tensor | None = None) -> BernoulliDistribution:
        return BernoulliDistribution(h)

    def mean_error_weight(self, distribution: PixelDistribution) -> Tensor:
        return torch.tensor(float(math.prod(self.image_shape)))


class CrossEntropy(Likelihood):
    """Cross-entropy on grey pixels, as tutorials do: a pseudo-likelihood."""

    formula = "−x log p − (1−x) log(1−p)"
    support = "unit_interval"
    kind = "pseudo"
    mean_error = "bce"

    def forward(self, h: Tensor, x: Tensor | None = None) -> BernoulliDistribution:
        return BernoulliDistribution(h)

    def mean_error_weight(self, distribution: PixelDistribution) -> Tensor:
        return torch.tensor(float(math.prod(self.image_shape)))
