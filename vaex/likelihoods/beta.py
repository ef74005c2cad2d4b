"""Beta likelihood on (0, 1), with two concentrations for each pixel. Nats per image.

For concentrations below 1 the density is infinite at 0 or 1, so the images must be dequantized, and the concentrations
are bounded to [1/cap, cap]. It is computed in float64, because its terms are hundreds of times larger than their sum.
"""

import math

import numpy as np
import torch
from torch import Tensor

from vaex.likelihoods.base import LEVELS, Likelihood, PixelDistribution
from vaex.likelihoods.floor import AT_FLOOR, cost_of_floor


class BetaDistribution(PixelDistribution):
    """alpha, beta: float64 [..., C, H, W]."""

    def __init__(self, alpha: Tensor, beta: Tensor) -> None:
        super().__init__(alpha.shape)
        self.alpha, self.beta = alpha, beta

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        x = value.double()
        normalizer = torch.lgamma(self.alpha) + torch.lgamma(self.beta) - torch.lgamma(self.alpha + self.beta)
        log_density: Tensor = torch.xlogy(self.alpha - 1, x) + torch.special.xlog1py(self.beta - 1, -x) - normalizer
        return log_density.to(value.dtype)

    @property
    def mean(self) -> Tensor:
        return (self.alpha / (self.alpha + self.beta)).float()

    @property
    def variance(self) -> Tensor:
        total = self.alpha + self.beta
        return (self.alpha * self.beta / (total.square() * (total + 1))).float()

    @property
    def mode(self) -> Tensor:
        """Inside (0, 1) if both concentrations are above 1, else the end with the larger concentration."""
        inside = (self.alpha > 1) & (self.beta > 1)
        peak = (self.alpha - 1) / torch.where(inside, self.alpha + self.beta - 2, 1.0)
        return torch.where(inside, peak, (self.alpha > self.beta).double()).float()

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        with torch.no_grad():
            shape = (*sample_shape, *self.alpha.shape)
            logit = _sample_log_gamma(self.alpha.expand(shape)) - _sample_log_gamma(self.beta.expand(shape))
            limits = torch.finfo(torch.float32)  # the conversion to float32 may round to 0 or 1
            return torch.sigmoid(logit).float().clamp(limits.tiny, 1 - limits.eps / 2)


def _sample_log_gamma(concentration: Tensor) -> Tensor:
    """Logarithms of gamma samples. The samples themselves may be too small for float64 if the concentration is small.

    A sample for a is one for a + 1 times U^(1/a), and -log U is exponential (Marsaglia & Tsang 2000, section 6).
    """
    exponential = torch.empty_like(concentration).exponential_()
    return torch._standard_gamma(concentration + 1).log() - exponential / concentration


def bits_of_known_level(beta: Tensor) -> Tensor:
    """Bits/dim at each larger concentration [N] of a pixel whose level is known to be 85 (or 170).

    These levels need the largest concentration: the variance of a mean m is about m (1-m)² / β, largest at m = ⅓.
    """
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(16))
    x, middle = (85.5 + nodes / 2) / LEVELS, 85.5 / LEVELS
    alpha = 1 + (beta - 1) * middle / (1 - middle)  # the mode is in the middle of the bin
    log_density = BetaDistribution(alpha[:, None], beta[:, None]).log_prob_of_pixels(x)
    return math.log2(LEVELS) - log_density @ (weights / 2) / math.log(2)


class Beta(Likelihood):
    """Log concentrations are log(cap) · tanh(h / log(cap)), so that `cap` is the largest concentration."""

    formula = "(1−α) log x + (1−β) log(1−x) + log B(α, β)"
    support = "open_unit_interval"
    kind = "density"

    def __init__(self, *, image_shape: tuple[int, int, int], cap: float) -> None:
        super().__init__(image_shape=image_shape)
        if not (math.isfinite(cap) and cap > 1):
            raise ValueError(f"likelihood.cap={cap}: must be a finite number > 1, the largest concentration")
        self.cap = cap

    def out_channels(self, image_channels: int) -> int:
        return 2 * image_channels

    def bounds(self) -> dict[str, float]:
        return {"concentration_cap": self.cap}

    def at_floor(self, distribution: PixelDistribution) -> Tensor | None:
        if not isinstance(distribution, BetaDistribution):
            return None
        return (torch.maximum(distribution.alpha, distribution.beta) >= self.cap / AT_FLOOR).float()

    def floor_bits(self) -> float | None:
        return cost_of_floor(lambda log_scale: bits_of_known_level(torch.exp(-log_scale)), 1 / self.cap)

    def forward(self, h: Tensor, x: Tensor | None = None) -> BetaDistribution:
        size = math.log(self.cap)
        alpha, beta = (size * torch.tanh(h.double() / size)).exp().chunk(2, dim=-3)
        return BetaDistribution(alpha, beta)
