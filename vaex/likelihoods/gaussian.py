"""Gaussian likelihood, N(loc, scale²) for every pixel. Nats per image."""

import math

import torch
from torch import Tensor

from vaex.likelihoods.base import PixelDistribution
from vaex.likelihoods.location_scale import LocationScale, LocationScaleDistribution


class GaussianDistribution(LocationScaleDistribution):
    log_normalizer = 0.5 * math.log(2 * math.pi)
    standard_variance = 1.0

    @staticmethod
    def standard_log_kernel(e: Tensor) -> Tensor:
        return -0.5 * e.square()

    @staticmethod
    def standard_sample(like: Tensor) -> Tensor:
        return torch.randn_like(like)


class Gaussian(LocationScale):
    mean_error = "mse"
    distribution = GaussianDistribution

    def mean_error_weight(self, distribution: PixelDistribution) -> Tensor:
        """Sum over pixels of 1/(2 sigma²): the sum of squares is D times the mean one."""
        return 0.5 * self._sum_of_inverse(distribution, power=2)
