"""Location-scale likelihoods: x = loc + scale · e, where e follows the family's standard distribution.

With `discretize` a pixel is one of the 256 levels k/255, and its probability is the mass of the bin from (k - ½)/255 to
(k + ½)/255; the first and the last bin include the tails (Salimans et al. 2017, PixelCNN++, eq. 2).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vaex.likelihoods.base import LEVELS, MAX_LEVEL, Likelihood, PixelDistribution, sum_event
from vaex.likelihoods.floor import MOST_BITS, cost_of_floor, highest_floor
from vaex.likelihoods.scale import LikelihoodScale

LARGEST_START = 4.0  # largest |logit| of a location at the start of training, 2 % from an end of [0, 1]


class Standard:
    """Base class of symmetric distributions with location 0 and scale 1.

    A family implements `log_kernel`. What else it implements decides what it can be used for: `sample` for drawing
    images with noise, `cdf` for calibration, `log_cdf` and `log_interval` (with `cdf`) for likelihood.discretize=true,
    and `optimal_log_scale` for the density with likelihood/scale=optimal.

    Attributes:
        log_normalizer: the log density is log_kernel(e) - log_normalizer.
        variance: variance of e.
    """

    log_normalizer: float
    variance: float

    def implements(self, method: str) -> bool:
        """Whether the family overrides a method of this class."""
        return getattr(type(self), method) is not getattr(Standard, method)

    def log_kernel(self, e: Tensor) -> Tensor:
        """Log density up to a constant, elementwise."""
        raise NotImplementedError

    def sample(self, reference: Tensor) -> Tensor:
        """Independent samples of e, of the shape, dtype and device of `reference`."""
        raise NotImplementedError

    def cdf(self, e: Tensor) -> Tensor:
        raise NotImplementedError

    def log_interval(self, center: Tensor, width: Tensor) -> Tensor:
        """log P(center - width/2 < e < center + width/2), accurate far in the tails, too."""
        raise NotImplementedError

    def log_cdf(self, e: Tensor) -> Tensor:
        raise NotImplementedError

    def optimal_log_scale(self, error: Tensor, dimensions: tuple[int, ...]) -> Tensor:
        """The log scale of highest likelihood that is shared over `dimensions`, which are kept with size 1."""
        raise NotImplementedError


def mean_over(values: Tensor, dimensions: tuple[int, ...]) -> Tensor:
    """Mean over `dimensions`, which are kept with size 1; the values themselves if there are none."""
    return values.mean(dimensions, keepdim=True) if dimensions else values


class LocationScalePixels(PixelDistribution):
    """Base class of distributions with a location and a scale.

    Args:
        loc: [..., C, H, W].
        log_scale: broadcastable to `loc`, with its last three dimensions present (1 or full).
        standard: the standard distribution of the family.
    """

    def __init__(self, loc: Tensor, log_scale: Tensor, standard: Standard) -> None:
        super().__init__(loc.shape)
        self.loc, self.log_scale, self.standard = loc, log_scale, standard

    @property
    def has_cdf(self) -> bool:
        return self.standard.implements("cdf")

    @property
    def has_sample(self) -> bool:
        return self.standard.implements("sample")

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        """Samples of the density, which a discretized distribution rounds."""
        with torch.no_grad():
            loc = self.loc.expand(*sample_shape, *self.loc.shape)
            return loc + self.scale * self.standard.sample(loc)


class LocationScaleDistribution(LocationScalePixels):
    """Independent pixels with a density."""

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


class DiscretizedDistribution(LocationScalePixels):
    """Independent pixels with a mass on the 256 levels k/255."""

    @property
    def parameter(self) -> Tensor:
        return self.loc

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        return log_bin_mass(value, self.loc, self.log_scale, self.standard)

    def cdf(self, value: Tensor) -> Tensor:
        return torch.where(value > 1 - 0.5 / MAX_LEVEL, 1.0, self._cdf_at_edge(value, 0.5))

    def cdf_below(self, value: Tensor) -> Tensor:
        return torch.where(value < 0.5 / MAX_LEVEL, 0.0, self._cdf_at_edge(value, -0.5))

    def _cdf_at_edge(self, value: Tensor, offset: float) -> Tensor:
        """The family's distribution function at an edge of the bin of `value`, in the units of `log_bin_mass`."""
        edge = (value * MAX_LEVEL).round() + offset
        return self.standard.cdf((edge - self.loc * MAX_LEVEL) * torch.exp(-self.log_scale) / MAX_LEVEL)

    @property
    def mean(self) -> Tensor:
        """Σ_k P(X > k/255) / 255. This is exact: the mass of the tails counts as 0 and 1."""
        return self._tail_sum(lambda k: 1.0)

    @property
    def variance(self) -> Tensor:
        """E[X²] - E[X]², with 255² · E[X²] = Σ_k (2k + 1) P(X > k/255)."""
        exact = DiscretizedDistribution(self.loc.double(), self.log_scale.double(), self.standard)  # the terms cancel
        variance = exact._tail_sum(lambda k: (2 * k + 1) / MAX_LEVEL) - exact.mean.square()
        return variance.clamp(min=0).to(self.loc.dtype)

    def _tail_sum(self, weight: Callable[[int], float]) -> Tensor:
        """Σ_k weight(k) P(X > k/255) / 255."""
        inverse = torch.exp(-self.log_scale)
        total = torch.zeros_like(self.loc)
        for k in range(MAX_LEVEL):  # a loop, because 256 copies of a batch of images may not fit in memory
            tail = self.standard.cdf((self.loc - (k + 0.5) / MAX_LEVEL) * inverse)  # P(e > a) = P(e < -a) by symmetry
            total = total + weight(k) * tail
        return total / MAX_LEVEL

    @property
    def mode(self) -> Tensor:
        """The level nearest to loc, or an end if the tail has more mass."""
        nearest = (self.loc * MAX_LEVEL).round().clamp(0, MAX_LEVEL) / MAX_LEVEL
        levels = torch.stack([nearest, torch.zeros_like(nearest), torch.ones_like(nearest)])
        best = self.log_prob_of_pixels(levels).argmax(0, keepdim=True)
        return levels.gather(0, best)[0]

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        return (super().sample(sample_shape) * MAX_LEVEL).round().clamp(0, MAX_LEVEL) / MAX_LEVEL


def log_bin_mass(value: Tensor, loc: Tensor, log_scale: Tensor, standard: Standard) -> Tensor:
    """Log probability of the level k/255 nearest to `value`; the arguments are broadcast against each other."""
    width = torch.exp(-log_scale) / MAX_LEVEL
    # In units of a level, because the difference between a level and a location near it is then exact. Adjacent bins
    # thus have the same edge between them, and the masses add up to 1.
    center = ((value * MAX_LEVEL).round() - loc * MAX_LEVEL) * width
    first, last = value < 0.5 / MAX_LEVEL, value > 1 - 0.5 / MAX_LEVEL
    tail = standard.log_cdf(torch.where(last, -center, center) + width / 2)
    return torch.where(first | last, tail, standard.log_interval(center, width))


def bits_of_known_level(log_scale: Tensor, standard: Standard, discretize: bool) -> Tensor:
    """Bits/dim at each log scale [N] of a pixel whose level is known, with the location in the middle of its bin."""
    if discretize:
        width = torch.exp(-log_scale) / MAX_LEVEL
        return -standard.log_interval(torch.zeros_like(width), width) / math.log(2)
    # (k+u)/256 with u uniform on [0, 1]. A symmetric density is smooth on either side of the middle, u = ½.
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(16))
    offsets = (nodes + 1) / (4 * LEVELS)
    kernel = standard.log_kernel(offsets * torch.exp(-log_scale)[:, None]) @ (weights / 2)
    return (standard.log_normalizer + log_scale - kernel) / math.log(2) + math.log2(LEVELS)


def default_floor(standard: Standard, discretize: bool) -> float:
    """The floor that the statement of vaex.likelihoods.floor gives for a family."""
    most_bits = MOST_BITS["mass" if discretize else "density"]
    return highest_floor(lambda log_scale: bits_of_known_level(log_scale, standard, discretize), most_bits)


class LocationScale(Likelihood):
    """Base class of location-scale likelihoods, which set `standard`.

    Args:
        image_shape: (channels, height, width).
        scale: the scale rule.
        bounded_mean: squash the decoder's location into [0, 1] with a sigmoid; if false, use it as it is. None squashes
            it for a density but not for bins, since only a location beyond 0 or 1 gives an end bin all the mass.
        discretize: use a mass on 256 levels instead of a density.
    """

    standard: Standard
    scale: LikelihoodScale

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        scale: LikelihoodScale,
        bounded_mean: bool | None,
        discretize: bool = False,
    ) -> None:
        super().__init__(image_shape=image_shape)
        name = type(self.standard).__name__
        if not self.standard.implements("log_kernel"):
            raise ValueError(f"likelihood: {name} must define log_kernel, as Standard says")
        if not hasattr(self.standard, "log_normalizer"):
            raise ValueError(f"likelihood: {name} must define log_normalizer, as Standard says")
        if discretize and not self.standard.implements("log_interval"):
            raise ValueError(f"likelihood.discretize=true: {name} does not implement log_interval(); set it to false")
        if scale.depends_on_x and not self.standard.implements("optimal_log_scale"):
            raise ValueError(
                f"likelihood/scale: {name} does not implement optimal_log_scale(); use likelihood/scale=shared"
            )
        if scale.depends_on_x and discretize:
            raise ValueError(
                "likelihood/scale: vaex computes the optimal scale of a density only, and likelihood.discretize=true "
                "uses a mass; use likelihood/scale=shared"
            )
        self.scale = scale
        self.bounded_mean = not discretize if bounded_mean is None else bounded_mean
        self.discretize = discretize
        self.kind = "mass" if discretize else "density"
        self.support = "uint8" if discretize else "real"
        scale.resolve_floor(lambda: default_floor(self.standard, discretize))
        if discretize:
            self.formula = "−log(F(x + 1/510) − F(x − 1/510)), F the family's distribution function"

    def forward(self, h: Tensor, x: Tensor | None = None) -> LocationScalePixels:
        channels = self.image_shape[0]
        loc = h[..., :channels, :, :]
        if self.bounded_mean:
            loc = torch.sigmoid(loc)
        error = x - loc if self.scale.depends_on_x and x is not None else None
        log_scale = self.scale(h[..., channels:, :, :], error, self.standard.optimal_log_scale)
        distribution = DiscretizedDistribution if self.discretize else LocationScaleDistribution
        return distribution(loc, log_scale, self.standard)

    def clamp_offset(self, offset: Tensor) -> Tensor:
        if not self.bounded_mean:
            return offset
        loc, scale = offset.tensor_split([self.image_shape[0]])
        return torch.cat([loc.clamp(-LARGEST_START, LARGEST_START), scale])

    def freeze(self, error: Tensor) -> None:
        self.scale.freeze(error, self.standard.optimal_log_scale)

    def floor_bits(self) -> float | None:
        if self.scale.floor is None:
            return None
        return cost_of_floor(lambda log_s: bits_of_known_level(log_s, self.standard, self.discretize), self.scale.floor)

    def sum_of_inverse_scale(self, distribution: PixelDistribution, power: int) -> Tensor | None:
        """Sum over pixels of scale^-power, averaged over the batch; None for a discretized distribution."""
        if not isinstance(distribution, LocationScaleDistribution):
            return None
        log_scale = distribution.log_scale
        repeats = math.prod(self.image_shape) // math.prod(log_scale.shape[-3:])
        return repeats * sum_event(torch.exp(-power * log_scale)).mean()
