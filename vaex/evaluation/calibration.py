"""Calibration of the pixels' distributions: how often x lies in the central interval that should hold it so often.

With z ~ q(z|x), v = F(x|z) for every channel and pixel; the central interval of level c holds x where |v - 1/2| <= c/2.
A calibrated model covers a fraction c; above c its scale is too wide, below c too narrow. For distributions over levels
v is drawn uniformly between the cdf below and at the level, which is uniform over pixels when the model is right.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.evaluation.bound import ToFloat, evaluating, fixed_noise
from vaex.model import Autoencoder

LEVELS = (*(round(0.05 * n, 2) for n in range(1, 20)), 0.99)


@dataclass(frozen=True)
class Calibration:
    """`coverage`: for each of LEVELS, the fraction of the split's pixels inside the central interval of that level."""

    coverage: list[float]

    def at(self, level: float) -> float:
        return self.coverage[LEVELS.index(level)]


def calibration(
    model: Autoencoder,
    images: Images,
    to_float: ToFloat,
    *,
    batch_size: int = 1000,
    poll: Callable[[], None] = lambda: None,
) -> Calibration | None:
    """Every image of the split once, one draw of z each; None when the distribution has no elementwise cdf.

    `poll` is called before each batch, and may raise to stop.
    """
    device = model.device
    levels = torch.tensor(LEVELS, device=device)
    inside = torch.zeros(len(LEVELS), dtype=torch.float64, device=device)
    with evaluating(model), fixed_noise(device):
        for start in range(0, len(images), batch_size):
            poll()
            batch = images[start : start + batch_size].to(device)
            x, labels = to_float(batch.pixels), batch.labels
            distribution = model.decode(model.encode(x, labels).rsample(1)[0], labels, x)
            try:
                v = probability_integral(distribution, x)
            except NotImplementedError:
                return None
            inside += torch.stack([((v - 0.5).abs() <= level / 2).double().sum() for level in levels])
    return Calibration((inside / images.pixels.numel()).tolist())


def probability_integral(distribution: torch.distributions.Distribution, x: Tensor) -> Tensor:
    """v, of the shape of x [B, C, H, W]; uniform on [0, 1] over pixels of a calibrated model.

    Raises:
        NotImplementedError: the distribution has no cdf.
    """
    v = distribution.cdf(x)
    cdf_below: Callable[[Tensor], Tensor] | None = getattr(distribution, "cdf_below", None)
    if cdf_below is None:
        return v
    below = cdf_below(x)
    return below + torch.rand_like(v) * (v - below)
