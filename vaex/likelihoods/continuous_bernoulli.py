"""Continuous Bernoulli on [0, 1], from its logit η. Loaiza-Ganem & Cunningham 2019. Nats per image.

The density is exp(η x) η / (exp(η) - 1). At exactly 0 and 1 it is unbounded, so η is bounded, and the bound is reported
with the numbers. Everything is computed from η, because a probability near 0 or 1 lacks the precision.
"""

import math

import torch
from torch import Tensor

from vaex.likelihoods.base import LEVELS, Likelihood, PixelDistribution
from vaex.likelihoods.floor import AT_FLOOR, cost_of_floor


def log_normalizer(eta: Tensor) -> Tensor:
    """log((exp(η) - 1) / η)."""
    small = eta.abs() < 0.5
    near = torch.where(small, eta, 0.0)
    far = torch.where(small, 1.0, eta)
    size = far.abs()
    squared = near.square()
    series = near / 2 + squared / 24 - squared.square() / 2880 + squared.square() * squared / 181_440
    exact = far.clamp(min=0) + torch.log(-torch.expm1(-size)) - size.log()
    return torch.where(small, series, exact)


class ContinuousBernoulliDistribution(PixelDistribution):
    def __init__(self, eta: Tensor) -> None:
        super().__init__(eta.shape)
        self.eta = eta

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        # Both terms less max(η, 0), so that they do not cancel. By `where`, because at η = 0, where the two sides have
        # the same derivative, those that torch gives abs and clamp do not add up to it.
        positive = self.eta > 0
        exponent = self.eta * torch.where(positive, value - 1, value)
        return exponent - (log_normalizer(self.eta) - torch.where(positive, self.eta, 0.0))

    @property
    def mean(self) -> Tensor:
        """1/(1 - exp(-η)) - 1/η."""
        small = self.eta.abs() < 0.5
        near = torch.where(small, self.eta, 0.0)
        far = torch.where(small, 1.0, self.eta)
        squared = near.square()
        series = 0.5 + near / 12 - near * squared / 720 + near * squared.square() / 30_240
        return torch.where(small, series, -1 / torch.expm1(-far) - 1 / far)

    @property
    def variance(self) -> Tensor:
        """1/η² - 1/(4 sinh²(η/2))."""
        small = self.eta.abs() < 1
        near = torch.where(small, self.eta, 0.0).square()
        far = torch.where(small, 2.0, self.eta).double()
        series = 1 / 12 - near / 240 + near.square() / 6048 - near * near.square() / 172_800
        exact = far.square().reciprocal() - 0.25 / torch.sinh(far / 2).square()
        return torch.where(small, series, exact.to(self.eta.dtype))

    @property
    def mode(self) -> Tensor:
        return (self.eta > 0).to(self.eta.dtype)

    @property
    def parameter(self) -> Tensor:
        """λ = σ(η), which is not the mean."""
        return torch.sigmoid(self.eta)

    def cdf(self, value: Tensor) -> Tensor:
        """(exp(η x) - 1) / (exp(η) - 1)."""
        size, small = self.eta.abs(), self.eta.abs() < 1e-4
        safe = torch.where(small, 1.0, size)
        x = torch.where(self.eta > 0, 1 - value, value)  # mirrored, so that the density decreases
        decreasing = torch.where(small, x + size * x * (1 - x) / 2, torch.expm1(-safe * x) / torch.expm1(-safe))
        return torch.where(self.eta > 0, 1 - decreasing, decreasing)

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        with torch.no_grad():
            eta = self.eta.expand(*sample_shape, *self.eta.shape)
            u = torch.rand_like(eta)
            size, small = eta.abs(), eta.abs() < 1e-4
            safe = torch.where(small, 1.0, size)
            decreasing = torch.where(small, u, -torch.log1p(u * torch.expm1(-safe)) / safe).clamp(0, 1)
            return torch.where(eta > 0, 1 - decreasing, decreasing)


def bits_of_known_black(size: Tensor) -> Tensor:
    """Bits/dim at each logit -size [N] of a pixel that is known to be black; no level but white needs such a logit."""
    mean = 0.5 / LEVELS  # of x = u/256; the log density is linear in x
    return math.log2(LEVELS) + (log_normalizer(-size) + size * mean) / math.log(2)


class ContinuousBernoulli(Likelihood):
    """η = bound · tanh(h / bound). Clipping λ to [ε, 1 - ε] corresponds to a bound of log(1/ε - 1)."""

    formula = "−ηx + log((exp η − 1)/η), η the logit"
    support = "unit_interval"
    kind = "density"

    def __init__(self, *, image_shape: tuple[int, int, int], bound: float) -> None:
        super().__init__(image_shape=image_shape)
        if not (math.isfinite(bound) and bound > 0):
            raise ValueError(f"likelihood.bound={bound}: must be a finite number > 0, the largest |logit|")
        self.bound = bound

    def bounds(self) -> dict[str, float]:
        return {"logit_bound": self.bound}

    def at_floor(self, distribution: PixelDistribution) -> Tensor | None:
        if not isinstance(distribution, ContinuousBernoulliDistribution):
            return None
        return (distribution.eta.abs() >= self.bound / AT_FLOOR).float()

    def floor_bits(self) -> float | None:
        return cost_of_floor(lambda log_scale: bits_of_known_black(torch.exp(-log_scale)), 1 / self.bound)

    def forward(self, h: Tensor, x: Tensor | None = None) -> ContinuousBernoulliDistribution:
        return ContinuousBernoulliDistribution(self.bound * torch.tanh(h / self.bound))
