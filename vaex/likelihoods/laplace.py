"""Laplace likelihood, density exp(-|x - loc| / scale) / (2 scale) for each pixel. Nats per image."""

import math

import torch
from torch import Tensor

from vaex.likelihoods.base import PixelDistribution
from vaex.likelihoods.location_scale import LocationScale, Standard, mean_over


class StandardLaplace(Standard):
    log_normalizer = math.log(2)
    variance = 2.0

    def log_kernel(self, e: Tensor) -> Tensor:
        return -e.abs()

    def sample(self, reference: Tensor) -> Tensor:
        # A difference of two exponentials avoids the logarithm of a uniform sample that is rounded to 0.
        return torch.empty_like(reference).exponential_() - torch.empty_like(reference).exponential_()

    def cdf(self, e: Tensor) -> Tensor:
        tail = 0.5 * torch.exp(-e.abs())
        return torch.where(e < 0, tail, 1 - tail)

    def log_cdf(self, e: Tensor) -> Tensor:
        negative, positive = e.clamp(max=0), e.clamp(min=0)
        return torch.where(e < 0, negative - math.log(2), torch.log1p(-0.5 * torch.exp(-positive)))

    def log_interval(self, center: Tensor, width: Tensor) -> Tensor:
        """exp(-|c|) sinh(w/2) for a bin on one side of 0, and 1 - exp(-w/2) cosh(c) for a bin that contains 0."""
        away, half = center.abs(), width / 2
        one_sided = -away + half + torch.log(-torch.expm1(-width)) - math.log(2)
        inside = torch.minimum(away, half)  # safe input of the branch that is not taken
        log_cosh = inside + torch.log1p(0.5 * torch.expm1(-2 * inside))
        both_sided = torch.log(-torch.expm1(log_cosh - half))
        return torch.where(away >= half, one_sided, both_sided)

    def optimal_log_scale(self, error: Tensor, dimensions: tuple[int, ...]) -> Tensor:
        return mean_over(error.abs(), dimensions).log()


class Laplace(LocationScale):
    formula = "|x−μ|/b + log 2b"
    mean_error = "mae"
    standard = StandardLaplace()

    def mean_error_weight(self, distribution: PixelDistribution) -> Tensor | None:
        """Sum over pixels of 1/b."""
        return self.sum_of_inverse_scale(distribution, power=1)
