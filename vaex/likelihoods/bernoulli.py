"""Bernoulli likelihood from logits, and the same formula on gray pixels. Nats per image.

log p = x·h - softplus(h). For x in {0, 1} this is a probability. For gray x in (0, 1) it is minus the cross-entropy
between two Bernoulli distributions. It is not normalized over any set of images: a pseudo-likelihood, which can be
compared only with other values of itself.
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


class BernoulliFormula(Likelihood):
    """Base class of the two likelihoods that use the formula of a Bernoulli distribution."""

    formula = "−x log p − (1−x) log(1−p)"
    mean_error = "bce"

    def forward(self, h: Tensor, x: Tensor | None = None) -> BernoulliDistribution:
        return BernoulliDistribution(h)

    def mean_error_weight(self, distribution: PixelDistribution) -> Tensor:
        return torch.tensor(float(math.prod(self.image_shape)))


class Bernoulli(BernoulliFormula):
    """Exact; for binary images only."""

    support = "binary"
    kind = "mass"


class CrossEntropy(BernoulliFormula):
    """Cross-entropy on gray pixels, as in tutorials: a pseudo-likelihood."""

    support = "unit_interval"
    kind = "pseudo"
