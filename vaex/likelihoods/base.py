"""Base classes of the likelihoods and of the distributions over images that they return.

A likelihood maps the decoder's linear output to a distribution over images. It owns every squashing function and its
scale, and knows nothing about networks, datasets or beta. Log-probabilities are in nats, summed over channels and
pixels, and include every constant.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from vaex.likelihoods.floor import AT_FLOOR
from vaex.likelihoods.scale import LikelihoodScale

# A density with support open_unit_interval may be infinite at exactly 0 or 1.
Support = Literal["binary", "unit_interval", "open_unit_interval", "real", "uint8"]
Kind = Literal["density", "mass", "pseudo"]

LEVELS = 256  # number of values of an 8-bit pixel
MAX_LEVEL = LEVELS - 1  # level k is x = k / MAX_LEVEL


def sum_event(values: Tensor) -> Tensor:
    """Sum over channels and pixels, [..., C, H, W] -> [...]. No other code sums over them."""
    return values.sum(dim=(-3, -2, -1))


class PixelDistribution(torch.distributions.Distribution):
    """Base class of distributions over images with independent pixels: batch shape [...], event shape [C, H, W].

    `log_prob` accepts leading dimensions of x that broadcast against the batch shape, so that several decodings of one
    image are scored at once. Arguments are never validated: checking values would make the host wait for the device.

    A subclass implements `log_prob_of_pixels` (or `log_prob`) and `mean`. It implements `sample`, `cdf`, `variance` and
    `mode` if it can.
    """

    arg_constraints: dict[str, torch.distributions.constraints.Constraint] = {}

    def __init__(self, shape: torch.Size) -> None:
        super().__init__(batch_shape=shape[:-3], event_shape=shape[-3:], validate_args=False)

    @property
    def has_cdf(self) -> bool:
        """Whether `cdf` is available."""
        return type(self).cdf is not PixelDistribution.cdf

    @property
    def has_sample(self) -> bool:
        """Whether `sample` is available."""
        return type(self).sample is not PixelDistribution.sample

    @property
    def scale(self) -> Tensor | None:
        """Scale parameter in units of x, broadcastable to [..., C, H, W]; None if the distribution has none."""
        return None

    @property
    def parameter(self) -> Tensor:
        """The image in [0, 1] that tutorials show instead of the mean; by default the mean."""
        return self.mean

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats of each image, [...]."""
        return sum_event(self.log_prob_of_pixels(value))

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        """Nats of each channel of each pixel, [..., C, H, W]."""
        raise NotImplementedError

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        """Samples [*sample_shape, ..., C, H, W] from the support, in float32 never the ends of an open interval."""
        raise NotImplementedError(f"{type(self).__name__} cannot be sampled: it does not implement sample()")

    def cdf(self, value: Tensor) -> Tensor:
        """P(X <= x) of each channel of each pixel, [..., C, H, W]."""
        raise NotImplementedError(f"{type(self).__name__} does not implement cdf()")

    def cdf_below(self, value: Tensor) -> Tensor:
        """P(X < x) of each channel of each pixel, [..., C, H, W]; for a density this equals `cdf`."""
        return self.cdf(value)


class Likelihood(nn.Module):
    """Base class of likelihoods.

    Args:
        image_shape: (channels, height, width) of the images.

    Attributes:
        support: values that a pixel may take: binary {0, 1}, unit_interval [0, 1], open_unit_interval (0, 1), real, or
            uint8 (k/255).
        kind: density, mass, or pseudo. A pseudo-likelihood is not a probability of the images it scores, and it is
            never ranked against others.
        mean_error: the per-pixel mean error of which the distortion is a multiple plus a constant: mse, mae or bce;
            None if there is no such error.
        formula: -log p of one channel of a pixel in nats, for display; empty if there is no short one.
        scale: the scale rule; None for a likelihood without one.
    """

    support: Support
    kind: Kind
    mean_error: Literal["mse", "mae", "bce"] | None = None
    formula: str = ""
    scale: LikelihoodScale | None

    def __init__(self, *, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.scale = None

    @property
    def depends_on_x(self) -> bool:
        """Whether the distribution in training mode depends on the image that it scores."""
        return self.scale is not None and self.scale.depends_on_x

    @property
    def warning(self) -> str | None:
        """What a user should know before trusting this likelihood's numbers."""
        return None if self.scale is None else self.scale.warning

    def out_channels(self, image_channels: int) -> int:
        """Number of channels that the decoder must return."""
        return image_channels + (0 if self.scale is None else self.scale.out_channels(image_channels))

    def forward(self, h: Tensor, x: Tensor | None = None) -> PixelDistribution:
        """Decoder output [..., out_channels, H, W] -> distribution with batch shape [...].

        x [..., C, H, W] is used only in training mode, by scale rules that are computed from the error.
        """
        raise NotImplementedError

    def clamp_offset(self, offset: Tensor) -> Tensor:
        """The nearest constant decoder output from which training can start; by default every output is one.

        A likelihood that squashes h overrides this, because the slope of a saturated function is too small to learn
        from.

        Args:
            offset: [out_channels, H, W] or [out_channels, 1, 1].
        """
        return offset

    def bounds(self) -> dict[str, float]:
        """Every clip on which an unbounded log-probability depends; results.json reports them with the numbers."""
        return {} if self.scale is None or self.scale.floor is None else {"scale_floor": self.scale.floor}

    def at_floor(self, distribution: PixelDistribution) -> Tensor | None:
        """Whether a pixel's scale is within 5 % of its floor, or another parameter of the limit in `bounds`.

        Returns:
            0 to 1, broadcastable to [..., C, H, W]; None if there is no such limit.
        """
        scale = distribution.scale
        if self.scale is None or self.scale.floor is None or scale is None:
            return None
        return (scale <= AT_FLOOR * self.scale.floor).float()

    def floor_bits(self) -> float | None:
        """Bits/dim that this limit costs at most on a pixel whose level is known; None if it is not known."""
        return None

    def freeze(self, error: Tensor) -> None:
        """Set what is computed from errors to a fixed value for evaluation; by default there is nothing to set.

        Args:
            error: x - loc of training images, [N, C, H, W].
        """

    def mean_error_weight(self, distribution: PixelDistribution) -> Tensor | None:
        """w in distortion = w · mean_error + const., averaged over the batch; None if there is no such w.

        Dividing the loss by w gives the loss in terms of that mean error, in which the rate has the weight beta / w.
        """
        return None
