"""Logistic likelihood, density exp(-e) / (scale (1 + exp(-e))²) with e = (x - loc) / scale. Nats per image."""

import math

import torch
from torch import Tensor

from vaex.likelihoods.location_scale import LocationScale, Standard, mean_over
from vaex.likelihoods.newton import solve_log_scale
from vaex.likelihoods.softplus import softplus


class StandardLogistic(Standard):
    log_normalizer = 0.0
    variance = math.pi**2 / 3

    def log_kernel(self, e: Tensor) -> Tensor:
        return e - 2 * softplus(e)

    def sample(self, reference: Tensor) -> Tensor:
        # The log of a ratio of exponentials is logistic, and unlike a uniform sample an exponential is never 0.
        return torch.empty_like(reference).exponential_().log() - torch.empty_like(reference).exponential_().log()

    def cdf(self, e: Tensor) -> Tensor:
        return torch.sigmoid(e)

    def log_cdf(self, e: Tensor) -> Tensor:
        return -softplus(-e)

    def log_interval(self, center: Tensor, width: Tensor) -> Tensor:
        """log σ(p) + log σ(-q) + log(1 - exp(-width)), with p and q the upper and the lower end."""
        ends = -softplus(-center - width / 2) - softplus(center - width / 2)
        return ends + torch.log(-torch.expm1(-width))

    def optimal_log_scale(self, error: Tensor, dimensions: tuple[int, ...]) -> Tensor:
        """Stationary where mean(u tanh(u/2)) = 1."""

        def terms(u: Tensor) -> tuple[Tensor, Tensor]:
            tanh = torch.tanh(u / 2)
            return u * tanh, u * tanh + 0.5 * u.square() * (1 - tanh.square())

        start = mean_over(error.abs(), dimensions).log() - math.log(2 * math.log(2))  # mean |e| is 2 log 2
        return solve_log_scale(error, dimensions, start, terms)


class Logistic(LocationScale):
    formula = "|x−μ|/s + log s + 2 log(1 + exp(−|x−μ|/s))"
    standard = StandardLogistic()
