"""Beta likelihood on (0, 1), with two concentrations for each pixel. Nats per image.

For concentrations below 1 the density is infinite at 0 or 1, so the images must be dequantized, and the concentrations
are bounded to [1/cap, cap]. It is computed in float64, because its terms are hundreds of times larger than their sum.
"""

import math

import torch
from torch import Tensor

from vaex.likelihoods.base import Likelihood, PixelDistribution


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

    def forward(self, h: Tensor, x: Tensor | None = None) -> BetaDistribution:
        size = math.log(self.cap)
        alpha, beta = (size * torch.tanh(h.double() / size)).exp().chunk(2, dim=-3)
        return BetaDistribution(alpha, beta)
