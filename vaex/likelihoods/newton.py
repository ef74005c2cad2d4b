"""The scale of highest likelihood where it has no closed form."""

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
    """Newton's method for t = log scale in mean(g(error · exp(-t))) = 1, which says that the likelihood is stationary.

    Args:
        error: [..., C, H, W].
        dimensions: over which the scale is shared; kept with size 1.
        start: log scale to start from, of the result's shape.
        terms: u -> (g(u), u g'(u)); g rises from 0 with |u|, so that the left side falls with t.
    """
    t = start.clamp(min=-40)  # an error of exactly 0 has no optimum; the floor takes over
    for _ in range(iterations):
        g, slope = terms(error * torch.exp(-t))
        step = (mean_over(g, dimensions) - 1) / mean_over(slope, dimensions).clamp(min=1e-6)
        t = t + step.clamp(-1, 1)
    return t
