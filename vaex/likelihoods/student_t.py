"""Student-t likelihood with fixed degrees of freedom ν > 2, for which the variance exists. Nats per image."""

import math

import torch
from torch import Tensor

from vaex.likelihoods.location_scale import LocationScale, Standard, mean_over
from vaex.likelihoods.newton import solve_log_scale
from vaex.likelihoods.scale import LikelihoodScale


class StandardStudentT(Standard):
    def __init__(self, degrees_of_freedom: float) -> None:
        v = degrees_of_freedom
        self.degrees_of_freedom = v
        if v < 1000:
            self.log_normalizer = math.lgamma(v / 2) - math.lgamma((v + 1) / 2) + 0.5 * math.log(v * math.pi)
        else:  # a series, because the two logarithms have most of their digits in common
            self.log_normalizer = 0.5 * math.log(2 * math.pi) + 1 / (4 * v) - 1 / (24 * v**3)
        self.variance = v / (v - 2)

    def log_kernel(self, e: Tensor) -> Tensor:
        v = self.degrees_of_freedom
        return -0.5 * (v + 1) * torch.log1p(e.square() / v)

    def sample(self, reference: Tensor) -> Tensor:
        v = self.degrees_of_freedom
        chi_squared = 2 * torch._standard_gamma(torch.full_like(reference, v / 2))
        return torch.randn_like(reference) * torch.sqrt(v / chi_squared)

    def cdf(self, e: Tensor) -> Tensor:
        """From a table over θ, with e = √ν tan θ, in which the density is smooth: proportional to cos(θ)^(ν-1)."""
        v = self.degrees_of_freedom
        limit = min(math.pi / 2, 12 / math.sqrt(v))  # for many degrees of freedom a normal, without mass beyond 12
        theta = torch.linspace(-limit, limit, 20_001, dtype=torch.float64, device=e.device)
        density = torch.exp(0.5 * (v - 1) * torch.log1p(-theta.sin().square()))
        table = torch.cumulative_trapezoid(density, theta)
        table = torch.cat([table.new_zeros(1), table]) / table[-1]
        position = ((torch.atan(e.double() / math.sqrt(v)) / limit + 1) * 10_000).clamp(0, 20_000)
        below = position.floor().clamp(max=19_999).long()
        fraction = position - below
        return torch.lerp(table[below], table[below + 1], fraction).to(e.dtype)

    def optimal_log_scale(self, error: Tensor, dimensions: tuple[int, ...]) -> Tensor:
        """Stationary where mean((ν + 1) u² / (ν + u²)) = 1."""
        v = self.degrees_of_freedom

        def terms(u: Tensor) -> tuple[Tensor, Tensor]:
            ratio = u.square() / (v + u.square())
            return (v + 1) * ratio, 2 * (v + 1) * ratio * (1 - ratio)

        start = mean_over(error.abs(), dimensions).log()
        return solve_log_scale(error, dimensions, start, terms)


class StudentT(LocationScale):
    """Lower `degrees_of_freedom`, which must be above 2, have heavier tails."""

    formula = "½(ν+1) log(1 + (x−μ)²/νs²) + log s + ½ log νπ + log Γ(ν/2) − log Γ((ν+1)/2)"

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        scale: LikelihoodScale,
        bounded_mean: bool | None,
        degrees_of_freedom: float,
    ) -> None:
        if not (math.isfinite(degrees_of_freedom) and degrees_of_freedom > 2):
            raise ValueError(
                f"likelihood.degrees_of_freedom={degrees_of_freedom}: must be a finite number > 2; with fewer there is "
                "no variance"
            )
        self.standard = StandardStudentT(degrees_of_freedom)
        super().__init__(image_shape=image_shape, scale=scale, bounded_mean=bounded_mean)
