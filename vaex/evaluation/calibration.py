"""Calibration of the pixels' distributions: how often x lies inside the central interval of a level.

With z ~ q(z|x) and v = F(x|z) for each channel of each pixel, the central interval of level c holds x if
|v - 1/2| <= c/2. A calibrated model covers a fraction c; above c its scale is too wide, below c too narrow. For a
distribution over levels, v is uniform between the cdf below and at the level, so that it is uniform over pixels when
the model is right.
"""

from typing import Any

import torch
from torch import Tensor

from vaex.data.noise import uniform_like
from vaex.evaluation.bits import scored_to_float
from vaex.evaluation.measure import Evaluation, Measurement
from vaex.evaluation.metric import Metric
from vaex.likelihoods.base import PixelDistribution

COVERAGE_LEVELS = (*(round(0.05 * n, 2) for n in range(1, 20)), 0.99)


def calibration(evaluation: Evaluation) -> dict[str, Any]:
    """Fraction of pixels inside the central interval of each level; nothing if the distribution has no cdf."""
    model = evaluation.model
    levels = torch.tensor(COVERAGE_LEVELS, device=model.device)
    inside = torch.zeros(len(levels), dtype=torch.float64, device=model.device)
    for batch in evaluation.batches(scored_to_float(evaluation)):
        x, labels = batch.x, batch.labels
        distribution = model.decode(model.encode(x, labels).rsample(1)[0], labels, x)
        if not distribution.has_cdf:
            return {}
        v = probability_integral(distribution, x)
        inside += torch.stack([((v - 0.5).abs() <= level / 2).double().sum() for level in levels])
    coverage = (inside / evaluation.images.pixels.numel()).tolist()
    chosen = {f"test/coverage_{100 * level:.0f}": coverage[COVERAGE_LEVELS.index(level)] for level in (0.5, 0.9, 0.99)}
    return chosen | {"test/calibration": coverage, "test/calibration_levels": list(COVERAGE_LEVELS)}


def probability_integral(distribution: PixelDistribution, x: Tensor) -> Tensor:
    """v [B, C, H, W] of x; uniform on [0, 1] over the pixels of a calibrated model."""
    v, below = distribution.cdf(x), distribution.cdf_below(x)
    return below + uniform_like(v) * (v - below)


CALIBRATION = Measurement(
    calibration,
    (Metric("test/coverage_90", "90 % coverage", column="cov90"),),
    lambda evaluation: None if evaluation.model.stochastic else "",
)
