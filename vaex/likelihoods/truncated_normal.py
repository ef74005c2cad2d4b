"""Normal distribution truncated to [0, 1], for each pixel. Nats per image.

The mean is not loc, and reaches values near 0 or 1 only if loc lies outside [0, 1]. Everything is computed in float64,
with log-probabilities of intervals that are accurate in the tails.
"""

import numpy as np
import torch
from torch import Tensor

from vaex.likelihoods.base import Likelihood, PixelDistribution
from vaex.likelihoods.floor import cost_of_floor
from vaex.likelihoods.gaussian import StandardGaussian
from vaex.likelihoods.location_scale import bits_of_known_level, default_floor
from vaex.likelihoods.scale import LikelihoodScale

NORMAL = StandardGaussian()


class TruncatedNormalDistribution(PixelDistribution):
    """loc, log_scale: float64; log_scale broadcastable to loc [..., C, H, W]."""

    def __init__(self, loc: Tensor, log_scale: Tensor) -> None:
        super().__init__(loc.shape)
        self.loc, self.log_scale = loc, log_scale

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp().float()

    def _standardized(self, value: Tensor | float) -> Tensor:
        return (value - self.loc) * torch.exp(-self.log_scale)

    @property
    def _log_mass(self) -> Tensor:
        """Log probability of [0, 1] under the normal distribution before truncation."""
        width = torch.exp(-self.log_scale).expand_as(self.loc)
        return NORMAL.log_interval(self._standardized(0.5), width)

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        log_density = NORMAL.log_kernel(self._standardized(value.double())) - NORMAL.log_normalizer - self.log_scale
        return (log_density - self._log_mass).to(value.dtype)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """The mean and the variance, by Gauss-Legendre quadrature from the mode to where the density is exp(-25) of it.

        The formulas in terms of the densities at both ends lose all digits for large scales and for locations far
        outside [0, 1].
        """
        mode, variance = self.loc.clamp(0, 1), (2 * self.log_scale).exp()
        offset = mode - self.loc
        root = (offset.square() + 50 * variance).sqrt()
        low = -torch.minimum(mode, 50 * variance / (root + (-offset).clamp(min=0)))
        high = torch.minimum(1 - mode, 50 * variance / (root + offset.clamp(min=0)))
        middle, half = (low + high) / 2, (high - low) / 2  # x = mode + middle + half · t, with t in [-1, 1]
        constant, slope = -middle * (middle + 2 * offset) / (2 * variance), -half * (middle + offset) / variance
        curvature = -half.square() / (2 * variance)
        total = first = second = torch.zeros_like(mode)
        for t, weight in zip(*np.polynomial.legendre.leggauss(24), strict=True):
            density = float(weight) * torch.exp(constant + float(t) * (slope + float(t) * curvature))
            total, first, second = total + density, first + float(t) * density, second + float(t * t) * density
        first, second = first / total, second / total
        return mode + (middle + half * first), half.square() * (second - first.square())

    @property
    def mean(self) -> Tensor:
        return self._moments()[0].float()

    @property
    def variance(self) -> Tensor:
        return self._moments()[1].float()

    @property
    def mode(self) -> Tensor:
        return self.loc.clamp(0, 1).float()

    @property
    def parameter(self) -> Tensor:
        return self.mode

    def cdf(self, value: Tensor) -> Tensor:
        x = value.double()
        inverse = torch.exp(-self.log_scale)
        part = NORMAL.log_interval(self._standardized(x / 2), (x * inverse).clamp(min=1e-300))
        return torch.where(x > 0, torch.exp(part - self._log_mass), 0.0).clamp(0, 1).to(value.dtype)

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        """By bisection of the cdf, which is accurate in the tails, unlike an inverse of Φ."""
        with torch.no_grad():
            shape = (*sample_shape, *self.loc.shape)
            u = torch.rand(shape, dtype=torch.float64, device=self.loc.device)
            low, high = torch.zeros_like(u), torch.ones_like(u)
            for _ in range(30):
                middle = (low + high) / 2
                below = self.cdf(middle) < u
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            return ((low + high) / 2).float()


class TruncatedNormal(Likelihood):
    """Accepts fixed, learned and predicted scale rules; the optimal scale has no closed form."""

    formula = "(x−μ)²/2σ² + log σ + ½ log 2π + log(Φ((1−μ)/σ) − Φ(−μ/σ))"
    support = "unit_interval"
    kind = "density"
    scale: LikelihoodScale

    def __init__(self, *, image_shape: tuple[int, int, int], scale: LikelihoodScale) -> None:
        super().__init__(image_shape=image_shape)
        if scale.depends_on_x:
            raise ValueError("likelihood/scale: a truncated normal has no optimal scale; use likelihood/scale=shared")
        # At gray levels it is a Gaussian. Black and white cost less: there, half of a wider Gaussian is as narrow.
        scale.resolve_floor(lambda: default_floor(NORMAL, discretize=False))
        self.scale = scale

    def floor_bits(self) -> float | None:
        if self.scale.floor is None:
            return None
        return cost_of_floor(lambda log_s: bits_of_known_level(log_s, NORMAL, discretize=False), self.scale.floor)

    def forward(self, h: Tensor, x: Tensor | None = None) -> TruncatedNormalDistribution:
        channels = self.image_shape[0]
        log_scale = self.scale(h[..., channels:, :, :], None, NORMAL.optimal_log_scale)
        return TruncatedNormalDistribution(h[..., :channels, :, :].double(), log_scale.double())
