"""Gaussian likelihood, N(loc, scale²) for each pixel. Nats per image."""

import math

import torch
from torch import Tensor

from vaex.likelihoods.base import PixelDistribution
from vaex.likelihoods.location_scale import LocationScale, Standard, mean_over
from vaex.likelihoods.log_ndtr import log_ndtr


class StandardGaussian(Standard):
    log_normalizer = 0.5 * math.log(2 * math.pi)
    variance = 1.0

    def log_kernel(self, e: Tensor) -> Tensor:
        return -0.5 * e.square()

    def sample(self, reference: Tensor) -> Tensor:
        return torch.randn_like(reference)

    def cdf(self, e: Tensor) -> Tensor:
        cdf: Tensor = torch.special.ndtr(e)
        return cdf

    def log_cdf(self, e: Tensor) -> Tensor:
        return log_ndtr(e.double()).to(e.dtype)

    def log_interval(self, center: Tensor, width: Tensor) -> Tensor:
        """log Φ(b) + log(1 - exp(log Φ(a) - log Φ(b))), mirrored into the lower tail, where log Φ is precise.

        Computed in float64, because both ends of a narrow bin have most of their digits in common.
        """
        away, narrow = center.double().abs(), width.double() < 1e-4
        half = torch.where(narrow, 1.0, width.double()) / 2  # safe input of the branch that is not taken
        upper = log_ndtr(half - away)
        lower = log_ndtr(-half - away)
        difference = upper + torch.log(-torch.expm1(lower - upper))
        rectangle = self.log_kernel(away) - self.log_normalizer + width.double().log()  # relative error width²/24
        log_mass: Tensor = torch.where(narrow, rectangle, difference)
        return log_mass.to(center.dtype)

    def optimal_log_scale(self, error: Tensor, dimensions: tuple[int, ...]) -> Tensor:
        return 0.5 * mean_over(error.square(), dimensions).log()


class Gaussian(LocationScale):
    formula = "(x−μ)²/2σ² + log σ + ½ log 2π"
    mean_error = "mse"
    standard = StandardGaussian()

    def mean_error_weight(self, distribution: PixelDistribution) -> Tensor | None:
        """Sum over pixels of 1/(2 sigma²), because the sum of squares is D times their mean."""
        total = self.sum_of_inverse_scale(distribution, power=2)
        return None if total is None else 0.5 * total
