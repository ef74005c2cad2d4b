"""Scale rules: how the scale of a likelihood is determined. The density of every location-scale family accepts every
rule, and bins accept every rule but the optimal ones.

All rules return a log scale. Learned and predicted scales have a soft floor, log floor + softplus(raw - log floor), as
in sigma-VAE (Rybkin et al. 2021); without a floor the likelihood of an exactly predicted pixel is unbounded. If no
floor is given, the likelihood sets that of its family (vaex.likelihoods.floor).

An optimal scale maximizes the likelihood of the error: sigma* = √MSE for a Gaussian, b* = MAE for a Laplace. It is a
function of x, so the log-probability under it is not a bound on log p(x); sigma-VAE trains this way. In evaluation mode
no scale depends on x: an optimal scale is then the value that `freeze` set last, or before the first call of `freeze`
the running mean over the training batches.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# (error x - loc [..., C, H, W], dimensions) -> the log scale of highest likelihood that is shared over `dimensions`,
# which the result keeps with size 1.
OptimalLogScale = Callable[[Tensor, tuple[int, ...]], Tensor]

NO_FLOOR = "likelihood.scale.floor=null: the likelihood must call scale.resolve_floor(); or set a number"


class LikelihoodScale(nn.Module):
    """Base class of scale rules.

    The constructor of a rule may ask for `image_shape`; all its other arguments come from the YAML file.

    Attributes:
        depends_on_x: whether the scale in training mode is computed from the error x - loc.
        learned: whether the scale changes because the optimizer changes weights.
        warning: what a user should know before trusting the numbers of a run with this rule.
        floor: lowest scale; None if there is none, or until `resolve_floor` sets it.
        lr: learning rate of the scale's own parameters; None for that of the networks.
    """

    depends_on_x: ClassVar[bool] = False
    learned: ClassVar[bool] = True
    warning: ClassVar[str | None] = None
    floor: float | None = None
    lr: float | None = None

    def resolve_floor(self, default: Callable[[], float]) -> None:
        """Set the floor to `default()` if the config has left it open (null). A rule without a floor does nothing."""

    def out_channels(self, image_channels: int) -> int:
        """Number of decoder channels that the rule needs in addition to those of the location."""
        return 0

    def forward(self, h: Tensor, error: Tensor | None, optimal_log_scale: OptimalLogScale) -> Tensor:
        """Log scale, broadcastable to [..., C, H, W]. Its last three dimensions exist and are 1 where it is constant.

        Args:
            h: the decoder's channels for the scale, [..., out_channels, H, W].
            error: x - loc, [..., C, H, W]; None without x or if depends_on_x is false.
            optimal_log_scale: the family's log scale of highest likelihood.
        """
        raise NotImplementedError

    def freeze(self, error: Tensor, optimal_log_scale: OptimalLogScale) -> None:
        """Set the scale of evaluation mode from errors of training images, [N, C, H, W]; by default do nothing."""


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"likelihood.scale.{name}={value}: must be a finite number > 0, in units of x in [0, 1]")
    return value


class SoftFloor(nn.Module):
    """Maps a real number to a log scale above log(floor); 0 is mapped to log(init) exactly."""

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


class Fixed(LikelihoodScale):
    """A constant. For a Gaussian, value² = 1/2 makes the distortion a plain sum of squares."""

    learned = False
    log_scale: Tensor

    def __init__(self, *, image_shape: tuple[int, int, int], value: float) -> None:
        super().__init__()
        self.register_buffer("log_scale", torch.full((1, 1, 1), math.log(_positive("value", value))), persistent=False)

    def forward(self, h: Tensor, error: Tensor | None, optimal_log_scale: OptimalLogScale) -> Tensor:
        return self.log_scale


class SoftFloorScale(LikelihoodScale):
    """Base class of learned and predicted scales, which have a soft floor.

    Args:
        image_shape: (channels, height, width).
        floor: lowest scale; None for the family's.
        init: the scale at the start of training, where `unbounded` is 0.
    """

    def __init__(self, *, image_shape: tuple[int, int, int], floor: float | None, init: float) -> None:
        super().__init__()
        self.init = _positive("init", init)
        self.soft_floor: SoftFloor | None = None
        if floor is not None:
            self.resolve_floor(lambda: floor)

    def resolve_floor(self, default: Callable[[], float]) -> None:
        if self.floor is None:
            self.floor = default()
            self.soft_floor = SoftFloor(floor=self.floor, init=self.init)

    def unbounded(self, h: Tensor) -> Tensor:
        """The real numbers to which the soft floor is applied."""
        raise NotImplementedError

    def forward(self, h: Tensor, error: Tensor | None, optimal_log_scale: OptimalLogScale) -> Tensor:
        if self.soft_floor is None:
            raise ValueError(NO_FLOOR)
        log_scale: Tensor = self.soft_floor(self.unbounded(h))
        return log_scale


class LearnedScale(SoftFloorScale):
    """Base class of scales that are parameters, not predicted by the decoder.

    Args:
        lr: learning rate of the log scale, of its own because Adam moves every parameter by about the learning rate in
            a step, and a rate that suits the networks' weights moves a scale too slowly; None for theirs.
    """

    def __init__(
        self, *, image_shape: tuple[int, int, int], floor: float | None, init: float, lr: float | None = None
    ) -> None:
        super().__init__(image_shape=image_shape, floor=floor, init=init)
        if lr is not None and not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"likelihood.scale.lr={lr}: must be a finite number > 0, or null for optimizer.lr")
        self.lr = lr
        self.raw = nn.Parameter(torch.zeros(self.raw_shape(image_shape)))

    def raw_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Shape of the parameter."""
        raise NotImplementedError

    def unbounded(self, h: Tensor) -> Tensor:
        return self.raw


class Shared(LearnedScale):
    """One learned number for all images, channels and pixels."""

    def raw_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return (1, 1, 1)


class PerDimension(LearnedScale):
    """One learned number for each channel of each pixel, shared by all images."""

    def raw_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return image_shape


class PerPixel(SoftFloorScale):
    """Predicted by the decoder for each channel of each pixel of each image."""

    def out_channels(self, image_channels: int) -> int:
        return image_channels

    def unbounded(self, h: Tensor) -> Tensor:
        return h


class PerImage(SoftFloorScale):
    """Predicted by the decoder for each image: the mean over the pixels of one additional channel."""

    def out_channels(self, image_channels: int) -> int:
        return 1

    def unbounded(self, h: Tensor) -> Tensor:
        return h.mean(dim=(-3, -2, -1), keepdim=True)


class OptimalScale(LikelihoodScale):
    """Base class of scales that are computed from the error in training mode, with a hard floor.

    No gradient flows through the scale: at the optimum the derivative with respect to the scale is zero, so it would
    contribute nothing.
    """

    depends_on_x = True
    learned = False
    frozen: Tensor
    batches: Tensor

    def __init__(self, *, image_shape: tuple[int, int, int], floor: float | None) -> None:
        super().__init__()
        self.floor = None if floor is None else _positive("floor", floor)
        self.register_buffer("frozen", torch.zeros(self.frozen_shape(image_shape)))  # log scale of evaluation mode
        self.register_buffer("batches", torch.zeros(()))  # number of batches in the running mean `frozen`

    def resolve_floor(self, default: Callable[[], float]) -> None:
        if self.floor is None:
            self.floor = default()

    def frozen_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return (1, 1, 1)

    def training_dimensions(self, error: Tensor) -> tuple[int, ...]:
        """Dimensions that share a scale in training mode."""
        raise NotImplementedError

    def frozen_dimensions(self, error: Tensor) -> tuple[int, ...]:
        """Dimensions that share a scale in evaluation mode, which must include the batch."""
        return tuple(range(error.ndim))

    def forward(self, h: Tensor, error: Tensor | None, optimal_log_scale: OptimalLogScale) -> Tensor:
        if error is None or not self.training:
            return self.frozen
        with torch.no_grad():
            self.batches += 1
            best = self._floored(optimal_log_scale(error, self.frozen_dimensions(error))).view_as(self.frozen)
            # Not lerp_, which torch.func.vmap cannot vectorize.
            self.frozen.copy_(torch.lerp(self.frozen, best, torch.clamp(1 / self.batches, min=0.01)))
            if self.training_dimensions(error) == self.frozen_dimensions(error):
                return best
            return self._floored(optimal_log_scale(error, self.training_dimensions(error)))

    @torch.no_grad()
    def freeze(self, error: Tensor, optimal_log_scale: OptimalLogScale) -> None:
        best = optimal_log_scale(error, self.frozen_dimensions(error))
        self.frozen.copy_(self._floored(best).view_as(self.frozen))

    def _floored(self, log_scale: Tensor) -> Tensor:
        if self.floor is None:
            raise ValueError(NO_FLOOR)
        return log_scale.clamp(min=math.log(self.floor))


class Optimal(OptimalScale):
    """One value for the whole batch. Rybkin et al. 2021 (sigma-VAE), eq. 6."""

    def training_dimensions(self, error: Tensor) -> tuple[int, ...]:
        return tuple(range(error.ndim))


class OptimalPerImage(OptimalScale):
    """One value for each image in training, and one for all images in evaluation."""

    warning = "the training loss gives each image the scale of its own error, which no model can do for new images"

    def training_dimensions(self, error: Tensor) -> tuple[int, ...]:
        return (-3, -2, -1)


class OptimalPerPixel(OptimalScale):
    """One value for each channel and pixel: of each image in training, shared by all images in evaluation."""

    warning = "the training loss is Σ log |x - mean|, which only the floor bounds from below: for study only"

    def frozen_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return image_shape

    def training_dimensions(self, error: Tensor) -> tuple[int, ...]:
        return ()

    def frozen_dimensions(self, error: Tensor) -> tuple[int, ...]:
        return tuple(range(error.ndim - 3))
