"""Location-scale likelihoods: x = loc + scale · e, with e from the family's standard distribution.

With `discretize` the pixel is one of 256 levels k/255, and its probability is the mass of the bin ((k - ½)/255,
(k + ½)/255); the first and the last bin take the tails (Salimans et al. 2017, PixelCNN++, eq. 2).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vaex.likelihoods.base import LEVELS, Likelihood, PixelDistribution, sum_event
from vaex.likelihoods.scale import OptimalScale, Scale

TOP = LEVELS - 1


class Standard:
    """A symmetric distribution with location 0 and scale 1.

    Attributes:
        log_normalizer: log density is log_kernel(e) - log_normalizer.
        variance: of e.
    """

    log_normalizer: float
    variance: float

    def log_kernel(self, e: Tensor) -> Tensor:
        raise NotImplementedError

    def sample(self, like: Tensor) -> Tensor:
        """A draw for each entry."""
        raise NotImplementedError

    def cdf(self, e: Tensor) -> Tensor:
        raise NotImplementedError

    def log_interval(self, center: Tensor, width: Tensor) -> Tensor:
        """log P(center - width/2 < e < center + width/2), also where it is far in a tail."""
        raise NotImplementedError

    def log_cdf(self, e: Tensor) -> Tensor:
        raise NotImplementedError

    def optimal_log_scale(self, error: Tensor, dimensions: tuple[int, ...]) -> Tensor:
        """Log scale of highest likelihood for errors that share it over `dimensions`, which are kept with size 1."""
        raise NotImplementedError


def mean_over(values: Tensor, dimensions: tuple[int, ...]) -> Tensor:
    return values.mean(dimensions, keepdim=True) if dimensions else values


class LocationScaleDistribution(PixelDistribution):
    """Independent pixels with a density.

    Args:
        loc: [..., C, H, W].
        log_scale: broadcastable to `loc`, with its last three dimensions present (1 or full).
        standard: the family.
    """

    def __init__(self, loc: Tensor, log_scale: Tensor, standard: Standard) -> None:
        super().__init__(loc.shape)
        self.loc, self.log_scale, self.standard = loc, log_scale, standard

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
        return (self.standard.variance * (2 * self.log_scale).exp()).expand_as(self.loc)

    def standardized(self, value: Tensor) -> Tensor:
        return (value - self.loc) * torch.exp(-self.log_scale)

    def log_prob(self, value: Tensor) -> Tensor:
        dimensions = math.prod(self.event_shape)
        repeats = dimensions // math.prod(self.log_scale.shape[-3:])  # pixels that share one entry of log_scale
        kernel = sum_event(self.standard.log_kernel(self.standardized(value)))
        return kernel - repeats * sum_event(self.log_scale) - dimensions * self.standard.log_normalizer

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        kernel = self.standard.log_kernel(self.standardized(value))
        return kernel - self.log_scale - self.standard.log_normalizer

    def cdf(self, value: Tensor) -> Tensor:
        return self.standard.cdf(self.standardized(value))

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        with torch.no_grad():
            loc = self.loc.expand(*sample_shape, *self.loc.shape)
            return loc + self.scale * self.standard.sample(loc)


class DiscretizedDistribution(PixelDistribution):
    """Independent pixels with a mass on 256 levels k/255. Arguments as above."""

    def __init__(self, loc: Tensor, log_scale: Tensor, standard: Standard) -> None:
        super().__init__(loc.shape)
        self.loc, self.log_scale, self.standard = loc, log_scale, standard

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    @property
    def parameter(self) -> Tensor:
        return self.loc

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        return log_bin_mass(value, self.loc, self.log_scale, self.standard)

    def cdf(self, value: Tensor) -> Tensor:
        upper = self.standard.cdf((value + 0.5 / TOP - self.loc) * torch.exp(-self.log_scale))
        return torch.where(value > 1 - 0.5 / TOP, 1.0, upper)

    def cdf_below(self, value: Tensor) -> Tensor:
        lower = self.standard.cdf((value - 0.5 / TOP - self.loc) * torch.exp(-self.log_scale))
        return torch.where(value < 0.5 / TOP, 0.0, lower)

    @property
    def mean(self) -> Tensor:
        """Σ_k P(X > k/255) / 255, exactly: the tails count for 0 and 1."""
        return self._tail_sum(lambda k: 1.0)

    @property
    def variance(self) -> Tensor:
        """E[X²] - E[X]², with 255² · E[X²] = Σ_k (2k + 1) P(X > k/255)."""
        return (self._tail_sum(lambda k: (2 * k + 1) / TOP) - self.mean.square()).clamp(min=0)

    def _tail_sum(self, weight: Callable[[int], float]) -> Tensor:
        inverse = torch.exp(-self.log_scale)
        total = torch.zeros_like(self.loc)
        for k in range(TOP):  # a loop, since 256 copies of a batch of images need not fit in memory
            total = total + weight(k) * self.standard.cdf((self.loc - (k + 0.5) / TOP) * inverse)  # symmetric
        return total / TOP

    @property
    def mode(self) -> Tensor:
        """The level nearest to loc, or an end where the tail weighs more."""
        nearest = (self.loc * TOP).round().clamp(0, TOP) / TOP
        levels = torch.stack([nearest, torch.zeros_like(nearest), torch.ones_like(nearest)])
        best = self.log_prob_of_pixels(levels).argmax(0, keepdim=True)
        return levels.gather(0, best)[0]

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        with torch.no_grad():
            loc = self.loc.expand(*sample_shape, *self.loc.shape)
            return ((loc + self.scale * self.standard.sample(loc)) * TOP).round().clamp(0, TOP) / TOP


def log_bin_mass(value: Tensor, loc: Tensor, log_scale: Tensor, standard: Standard) -> Tensor:
    """log probability of the level k/255 nearest to `value`, all broadcast against each other."""
    inverse = torch.exp(-log_scale)
    center, width = (value - loc) * inverse, inverse / TOP
    first = standard.log_cdf(center + width / 2)
    last = standard.log_cdf(width / 2 - center)
    middle = standard.log_interval(center, width)
    return torch.where(value < 0.5 / TOP, first, torch.where(value > 1 - 0.5 / TOP, last, middle))


class LocationScale(Likelihood):
    """Base of the location-scale families, which name their `standard` distribution.

    Args:
        scale: the scale rule.
        bounded_mean: squash the decoder's location into [0, 1] with a sigmoid; otherwise it is taken as it is. None:
            squash for a density; not for bins, where only a location beyond 0 or 1 gives the end bin all the mass.
        discretize: a mass on 256 levels, rather than a density.
    """

    standard: Standard

    def __init__(
        self, *, image_shape: tuple[int, int, int], scale: Scale, bounded_mean: bool | None, discretize: bool = False
    ) -> None:
        super().__init__(image_shape=image_shape)
        self.scale = scale
        self.bounded_mean = not discretize if bounded_mean is None else bounded_mean
        self.discretize = discretize
        self.kind = "mass" if discretize else "density"
        self.support = "uint8" if discretize else "real"
        if discretize:
            self.formula = "−log(F(x + 1/510) − F(x − 1/510)), F the family's distribution function"

    def out_channels(self, image_channels: int) -> int:
        return image_channels + self.scale.out_channels(image_channels)

    def bounds(self) -> dict[str, float]:
        return {} if self.scale.floor is None else {"scale_floor": self.scale.floor}

    def forward(self, h: Tensor, x: Tensor | None = None) -> PixelDistribution:
        channels = self.image_shape[0]
        loc = h[..., :channels, :, :]
        if self.bounded_mean:
            loc = torch.sigmoid(loc)
        error = x - loc if self.scale.depends_on_x and x is not None else None
        log_scale = self.scale(h[..., channels:, :, :], error, self.standard.optimal_log_scale)
        distribution = DiscretizedDistribution if self.discretize else LocationScaleDistribution
        return distribution(loc, log_scale, self.standard)

    def freeze(self, error: Tensor) -> None:
        """Set the evaluation scale, where it is computed from errors, from x - loc of training images [N, C, H, W]."""
        if isinstance(self.scale, OptimalScale):
            self.scale.freeze(error, self.standard.optimal_log_scale)

    def _sum_of_inverse(self, distribution: PixelDistribution, power: int) -> Tensor | None:
        """Sum over pixels of scale^-power, averaged over the batch. A bin's mass is no multiple of an error."""
        if not isinstance(distribution, LocationScaleDistribution):
            return None
        log_scale = distribution.log_scale
        repeats = math.prod(self.image_shape) // math.prod(log_scale.shape[-3:])
        return repeats * sum_event(torch.exp(-power * log_scale)).mean()
