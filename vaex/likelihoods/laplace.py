"""Laplace likelihood, density exp(-|x - loc| / scale) / (2 scale) for every pixel. Nats per image."""

import math

import torch
from torch import Tensor

from vaex.likelihoods.base import PixelDistribution
from vaex.likelihoods.location_scale import LocationScale, LocationScaleDistribution


class LaplaceDistribution(LocationScaleDistribution):
    log_normalizer = math.log(2)
    standard_variance = 2.0

    @staticmethod
    def standard_log_kernel(e: Tensor) -> Tensor:
        return -e.abs()

    @staticmethod
    def standard_sample(like: Tensor) -> Tensor:
        # The difference of two exponentials; no logarithm of a rounded zero.
        return torch.empty_like(like).exponential_() - torch.empty_like(like).exponential_()


class Laplace(LocationScale):
    mean_error = "mae"
    distribution = LaplaceDistribution

    def mean_error_weight(self, distribution: PixelDistribution) -> Tensor:
        """Sum over pixels of 1/b."""
        return self._sum_of_inverse(distribution, power=1)
