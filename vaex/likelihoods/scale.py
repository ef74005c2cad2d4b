"""Scale rules: where the scale of a location-scale likelihood comes from. Any family takes any rule.

All work in log scale. Learned and predicted scales have a soft floor, floor + softplus(raw - floor) in log scale, after
sigma-VAE (Rybkin et al. 2021): the likelihood of a pixel that is predicted exactly has no bound otherwise. An image of
256 grey levels carries no information below one level, 1/255.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Scale(nn.Module):
    """Base of all scale rules."""

    def out_channels(self, image_channels: int) -> int:
        """Number of channels asked of the decoder, beside the location's."""
        return 0

    def forward(self, h: Tensor) -> Tensor:
        """The decoder's channels for the scale [..., out_channels, H, W] -> log scale, broadcastable to [..., C, H, W].

        The last three dimensions are always there; each is 1 where the scale doesn't vary along it.
        """
        raise NotImplementedError


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"likelihood.scale.{name}={value}: must be a finite number > 0, in units of x in [0, 1]")
    return value


class SoftFloor(nn.Module):
    """raw -> log scale > log floor; at raw = 0 it is exactly log init."""

    def __init__(self, *, floor: float, init: float) -> None:
        super().__init__()
        _positive("floor", floor)
        if _positive("init", init) <= floor:
            raise ValueError(f"likelihood.scale.init={init}: must be above likelihood.scale.floor={floor}")
        self.log_floor = math.log(floor)
        gap = math.log(init) - self.log_floor
        self.offset = gap + math.log(-math.expm1(-gap))  # softplus(offset) = gap

    def forward(self, raw: Tensor) -> Tensor:
        return self.log_floor + F.softplus(raw + self.offset)


class Fixed(Scale):
    """One number, given. For a Gaussian, value² = 1/2 makes the distortion a plain sum of squares."""

    log_scale: Tensor

    def __init__(self, *, image_shape: tuple[int, int, int], value: float) -> None:
        super().__init__()
        self.register_buffer("log_scale", torch.full((1, 1, 1), math.log(_positive("value", value))), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.log_scale


class Shared(Scale):
    """One learned number for all images, channels and pixels."""

    def __init__(self, *, image_shape: tuple[int, int, int], floor: float, init: float) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(1, 1, 1))
        self.soft_floor = SoftFloor(floor=floor, init=init)

    def forward(self, h: Tensor) -> Tensor:
        log_scale: Tensor = self.soft_floor(self.raw)
        return log_scale


class PerPixel(Scale):
    """Predicted by the decoder for every channel and pixel of every image."""

    def __init__(self, *, image_shape: tuple[int, int, int], floor: float, init: float) -> None:
        super().__init__()
        self.soft_floor = SoftFloor(floor=floor, init=init)

    def out_channels(self, image_channels: int) -> int:
        return image_channels

    def forward(self, h: Tensor) -> Tensor:
        log_scale: Tensor = self.soft_floor(h)
        return log_scale
