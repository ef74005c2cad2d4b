"""The scale of highest likelihood for families in which it has no closed form."""

from collections.abc import Callable

import torch
from torch import Tensor

from vaex.likelihoods.location_scale import mean_over


def solve_log_scale(
    error: Tensor,
    dimensions: tuple[int, ...],
    start: Tensor,
    terms: Callable[[Tensor], tuple[Tensor, Tensor]],
    iterations: int = 12,
) -> Tensor:
    """Solve mean(g(error · exp(-t))) = 1, where the likelihood is stationary, for t = log scale by Newton's method.

    Args:
        error: [..., C, H, W].
        dimensions: dimensions that share the scale, kept with size 1.
        start: initial log scale, of the shape of the result.
        terms: u -> (g(u), u g'(u)). g increases from 0 with |u|, so the left side decreases with t.
        iterations: number of steps.
    """
    t = start.clamp(min=-40)  # an error of exactly 0 has no optimum; the floor applies
    for _ in range(iterations):
        g, slope = terms(error * torch.exp(-t))
        step = (mean_over(g, dimensions) - 1) / mean_over(slope, dimensions).clamp(min=1e-6)
        t = t + step.clamp(-1, 1)
    return t
