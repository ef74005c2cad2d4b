"""Location-scale likelihoods: x = loc + scale · e, with e from a standard distribution that the family names."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from vaex.likelihoods.base import Likelihood, PixelDistribution, sum_event
from vaex.likelihoods.scale import Scale


class LocationScaleDistribution(PixelDistribution):
    """Independent pixels of one location-scale family. A family gives the methods of its standard distribution.

    Args:
        loc: [..., C, H, W].
        log_scale: broadcastable to `loc`, with its last three dimensions present (1 or full).
    """

    log_normalizer: ClassVar[float]  # log density of the standard distribution is standard_log_kernel - log_normalizer
    standard_variance: ClassVar[float]

    def __init__(self, loc: Tensor, log_scale: Tensor) -> None:
        super().__init__(loc.shape)
        self.loc, self.log_scale = loc, log_scale

    @staticmethod
    def standard_log_kernel(e: Tensor) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def standard_sample(like: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return (self.standard_variance * (2 * self.log_scale).exp()).expand_as(self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        e = (value - self.loc) * torch.exp(-self.log_scale)
        dimensions = math.prod(self.event_shape)
        repeats = dimensions // math.prod(self.log_scale.shape[-3:])  # pixels that share one entry of log_scale
        return (
            sum_event(self.standard_log_kernel(e))
            - repeats * sum_event(self.log_scale)
            - dimensions * self.log_normalizer
        )

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        with torch.no_grad():
            loc = self.loc.expand(*sample_shape, *self.loc.shape)
            return loc + self.scale * self.standard_sample(loc)


class LocationScale(Likelihood):
    """Base of the location-scale families.

    Args:
        scale: the scale rule.
        bounded_mean: squash the decoder's location into [0, 1] with a sigmoid; otherwise it is taken as it is.
    """

    kind = "density"
    support = "real"
    distribution: ClassVar[type[LocationScaleDistribution]]

    def __init__(self, *, image_shape: tuple[int, int, int], scale: Scale, bounded_mean: bool) -> None:
        super().__init__(image_shape=image_shape)
        self.scale = scale
        self.bounded_mean = bounded_mean

    def out_channels(self, image_channels: int) -> int:
        return image_channels + self.scale.out_channels(image_channels)

    def forward(self, h: Tensor, x: Tensor | None = None) -> LocationScaleDistribution:
        channels = self.image_shape[0]
        loc = h[..., :channels, :, :]
        if self.bounded_mean:
            loc = torch.sigmoid(loc)
        return self.distribution(loc, self.scale(h[..., channels:, :, :]))

    def _sum_of_inverse(self, distribution: PixelDistribution, power: int) -> Tensor:
        """Sum over pixels of scale^-power, averaged over the batch."""
        assert isinstance(distribution, LocationScaleDistribution)
        log_scale = distribution.log_scale
        repeats = math.prod(self.image_shape) // math.prod(log_scale.shape[-3:])
        return repeats * sum_event(torch.exp(-power * log_scale)).mean()
