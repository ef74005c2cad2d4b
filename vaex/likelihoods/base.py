"""What a likelihood is, and the distribution over images that it makes.

A likelihood maps the decoder's linear output to a distribution over images. It owns every squashing function and its
scale, and knows nothing of networks, datasets or beta. Log-probabilities are in nats, summed over channels and pixels,
with every constant kept.
"""

from typing import Literal

import torch
from torch import Tensor, nn

# open_unit_interval: a density that is infinite at exactly 0 or 1.
Support = Literal["binary", "unit_interval", "open_unit_interval", "real", "uint8"]
Kind = Literal["density", "mass", "pseudo"]

LEVELS = 256  # of a pixel; x = k/255


def sum_event(values: Tensor) -> Tensor:
    """Sum over channels and pixels, the only place where that is done: [..., C, H, W] -> [...]."""
    return values.sum(dim=(-3, -2, -1))


class PixelDistribution(torch.distributions.Distribution):
    """Independent pixels. Batch shape [...], event shape [C, H, W].

    `log_prob` takes x of event shape with any leading dimensions that broadcast against the batch shape: several
    decodings of one image are scored at once. Arguments are never validated, since looking at values would make the
    device wait.
    """

    arg_constraints: dict[str, torch.distributions.constraints.Constraint] = {}

    def __init__(self, shape: torch.Size) -> None:
        super().__init__(batch_shape=shape[:-3], event_shape=shape[-3:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats of each image, [...]."""
        return sum_event(self.log_prob_of_pixels(value))

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        """Nats of each channel of each pixel, [..., C, H, W]."""
        raise NotImplementedError

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        """Draws [*sample_shape, ..., C, H, W] within the support: of an open interval, never its ends in float32."""
        raise NotImplementedError(f"{type(self).__name__} has no sample(), which draws with noise need")

    def cdf(self, value: Tensor) -> Tensor:
        """P(X <= x) of each channel of each pixel, [..., C, H, W]; not there for all."""
        raise NotImplementedError

    def cdf_below(self, value: Tensor) -> Tensor:
        """P(X < x): for a density the same as `cdf`."""
        return self.cdf(value)

    @property
    def parameter(self) -> Tensor:
        """What tutorials draw for the image, in [0, 1]: the mean where there is nothing else."""
        return self.mean


class Likelihood(nn.Module):
    """Base of all likelihoods.

    Args:
        image_shape: (channels, height, width) of the images.

    Attributes:
        support: the values an image may take: binary {0, 1}, unit_interval [0, 1], open_unit_interval (0, 1), real,
            uint8 (k/255).
        kind: density; mass; or pseudo, which is no probability of the data it is used on and is never ranked.
        mean_error: the mean per-pixel error whose multiple this likelihood's distortion is, up to a constant:
            mse, mae, bce; None if there is none.
        formula: -log p of one channel of a pixel in nats, for people to read; empty if there is nothing short.
    """

    support: Support
    kind: Kind
    mean_error: Literal["mse", "mae", "bce"] | None = None
    formula: str = ""

    def __init__(self, *, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape = image_shape

    def out_channels(self, image_channels: int) -> int:
        """Number of channels the decoder must put out."""
        return image_channels

    def forward(self, h: Tensor, x: Tensor | None = None) -> PixelDistribution:
        """Decoder output [..., out_channels, H, W] -> distribution with batch shape [...].

        x [..., C, H, W] is looked at only by scales that are computed from the error, and only in training mode.
        """
        raise NotImplementedError

    def bounds(self) -> dict[str, float]:
        """Every clip that an unbounded log-probability depends on, to be told with the number."""
        return {}

    def mean_error_weight(self, distribution: PixelDistribution) -> Tensor | None:
        """w with distortion = w · mean_error + const., averaged over the batch; None where there is no such w.

        The loss divided by w is the one written with that mean error, in which the rate's weight is beta / w.
        """
        return None
