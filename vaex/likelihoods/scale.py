"""Scale rules: where the scale of a location-scale likelihood comes from. Any family takes any rule.

All work in log scale. Learned and predicted scales have a soft floor, floor + softplus(raw - floor), after sigma-VAE
(Rybkin et al. 2021): the likelihood of a pixel that is predicted exactly has no bound otherwise. An image of 256 grey
levels carries no information below one level, 1/255.

An optimal scale is the one of highest likelihood given the error: sigma* = √MSE for a Gaussian, b* = MAE for a
Laplace. It is a function of x, so that its log-probability is no bound on log p(x); that is how a sigma-VAE trains. In
evaluation mode a scale never looks at x: it is then the one that was last set by `freeze`, or the running mean of the
training batches until then.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# (error x - loc [..., C, H, W], dimensions) -> log scale of highest likelihood, over those dimensions, which are kept.
Optimum = Callable[[Tensor, tuple[int, ...]], Tensor]


class Scale(nn.Module):
    """Base of all scale rules.

    Class attributes:
        depends_on_x: whether it is computed from the error.
        warning: what a user should know before trusting its numbers.
    """

    depends_on_x: ClassVar[bool] = False
    warning: ClassVar[str | None] = None
    floor: float | None = None  # lowest scale, where there is one

    def out_channels(self, image_channels: int) -> int:
        """Number of channels asked of the decoder, beside the location's."""
        return 0

    def forward(self, h: Tensor, error: Tensor | None, optimum: Optimum) -> Tensor:
        """Log scale, broadcastable to [..., C, H, W]; its last three dimensions are there, 1 where it doesn't vary.

        Args:
            h: the decoder's channels for the scale, [..., out_channels, H, W].
            error: x - loc [..., C, H, W], or None when there is no x.
            optimum: the family's log scale of highest likelihood.
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

    def forward(self, h: Tensor, error: Tensor | None, optimum: Optimum) -> Tensor:
        return self.log_scale


class LearnedScale(Scale):
    """A learned parameter above a soft floor."""

    def __init__(self, *, image_shape: tuple[int, int, int], floor: float, init: float) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(self.shape(image_shape)))
        self.floor = floor
        self.soft_floor = SoftFloor(floor=floor, init=init)

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        raise NotImplementedError

    def forward(self, h: Tensor, error: Tensor | None, optimum: Optimum) -> Tensor:
        log_scale: Tensor = self.soft_floor(self.raw)
        return log_scale


class Shared(LearnedScale):
    """One learned number for all images, channels and pixels."""

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return (1, 1, 1)


class PerDimension(LearnedScale):
    """One learned number for each channel and pixel, the same for all images."""

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return image_shape


class PerPixel(Scale):
    """Predicted by the decoder for every channel and pixel of every image."""

    def __init__(self, *, image_shape: tuple[int, int, int], floor: float, init: float) -> None:
        super().__init__()
        self.floor = floor
        self.soft_floor = SoftFloor(floor=floor, init=init)

    def out_channels(self, image_channels: int) -> int:
        return image_channels

    def forward(self, h: Tensor, error: Tensor | None, optimum: Optimum) -> Tensor:
        log_scale: Tensor = self.soft_floor(h)
        return log_scale


class PerImage(Scale):
    """Predicted by the decoder for every image: the mean over pixels of one more channel."""

    def __init__(self, *, image_shape: tuple[int, int, int], floor: float, init: float) -> None:
        super().__init__()
        self.floor = floor
        self.soft_floor = SoftFloor(floor=floor, init=init)

    def out_channels(self, image_channels: int) -> int:
        return 1

    def forward(self, h: Tensor, error: Tensor | None, optimum: Optimum) -> Tensor:
        log_scale: Tensor = self.soft_floor(h.mean(dim=(-3, -2, -1), keepdim=True))
        return log_scale


class OptimalScale(Scale):
    """Computed from the error in training mode, with a hard floor.

    The gradient does not go through it: at the optimum the derivative with respect to the scale is zero, so that it
    would add nothing.
    """

    depends_on_x = True
    frozen: Tensor
    batches: Tensor

    def __init__(self, *, image_shape: tuple[int, int, int], floor: float) -> None:
        super().__init__()
        self.floor = _positive("floor", floor)
        self.register_buffer("frozen", torch.zeros(self.frozen_shape(image_shape)))  # log scale, for evaluation
        self.register_buffer("batches", torch.zeros(()))  # that went into its running mean

    def frozen_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return (1, 1, 1)

    def training_dimensions(self, error: Tensor) -> tuple[int, ...]:
        """Over which the training scale is shared."""
        raise NotImplementedError

    def frozen_dimensions(self, error: Tensor) -> tuple[int, ...]:
        """Over which the evaluation scale is shared: it may not tell one image from another."""
        return tuple(range(error.ndim))

    def forward(self, h: Tensor, error: Tensor | None, optimum: Optimum) -> Tensor:
        if error is None or not self.training:
            return self.frozen
        with torch.no_grad():
            self.batches += 1
            best = self._floored(optimum(error, self.frozen_dimensions(error))).view_as(self.frozen)
            self.frozen.lerp_(best, torch.clamp(1 / self.batches, min=0.01))
            if self.training_dimensions(error) == self.frozen_dimensions(error):
                return best
            return self._floored(optimum(error, self.training_dimensions(error)))

    @torch.no_grad()
    def freeze(self, error: Tensor, optimum: Optimum) -> None:
        """Set the evaluation scale from errors of training images [N, C, H, W]."""
        self.frozen.copy_(self._floored(optimum(error, self.frozen_dimensions(error))).view_as(self.frozen))

    def _floored(self, log_scale: Tensor) -> Tensor:
        assert self.floor is not None
        return log_scale.clamp(min=math.log(self.floor))


class Optimal(OptimalScale):
    """One value over batch, channels and pixels. Rybkin et al. 2021 (sigma-VAE), eq. 6."""

    def training_dimensions(self, error: Tensor) -> tuple[int, ...]:
        return tuple(range(error.ndim))


class OptimalPerImage(OptimalScale):
    """One value for each image in training; in evaluation one for all."""

    warning = "its training loss gives each image the scale of its own error, which no model of new images can do"

    def training_dimensions(self, error: Tensor) -> tuple[int, ...]:
        return (-3, -2, -1)


class OptimalPerPixel(OptimalScale):
    """One value for each channel and pixel of each image in training; in evaluation one for each channel and pixel."""

    warning = "its training loss is Σ log |x - mean|, which has no lower bound but the floor's: for study only"

    def frozen_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return image_shape

    def training_dimensions(self, error: Tensor) -> tuple[int, ...]:
        return ()

    def frozen_dimensions(self, error: Tensor) -> tuple[int, ...]:
        return tuple(range(error.ndim - 3))
