"""Pre-activation residual blocks (He et al. 2016b), for images of any size and number of channels.

Between stages a convolution halves height and width, rounding down; the decoder restores the exact sizes, including odd
ones. The norm is GroupNorm (Wu & He 2018) instead of BatchNorm: an image's output does not depend on the rest of its
batch, so that a run resumes exactly and the runs of a sweep can be stacked. Without any norm the rate collapses to 0.
Tensors inside the networks are stored channels last, which makes convolutions faster.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vaex.architectures import base
from vaex.architectures.activation import activation_class
from vaex.architectures.conv import (
    channels_last,
    check_latent_shape,
    halved_sizes,
    spatial_input,
    spatial_latents,
    spatial_output,
    with_condition,
)


class Block(nn.Module):
    """x + branch(x), [B, width, H, W] -> [B, width, H, W]."""

    def __init__(self, width: int, groups: int, activation: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [*normalized(width, groups, activation), nn.Conv2d(width, width, 3, padding=1)]
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


def normalized(width: int, groups: int, activation: str) -> list[nn.Module]:
    return [nn.GroupNorm(groups, width), activation_class(activation)()]


def check_blocks(widths: Sequence[int], depth: int, groups: int) -> None:
    """Raises ValueError if a stage has no block, or if the groups do not divide the number of channels."""
    if depth < 1:
        raise ValueError(f"architecture.depth={depth}: must be >= 1 block in a stage")
    divisor = math.gcd(*widths)
    if groups < 1 or divisor % groups:
        choices = [count for count in range(1, divisor + 1) if divisor % count == 0]
        raise ValueError(
            f"architecture.groups={groups}: must divide each of architecture.widths={list(widths)}; "
            f"possible are {', '.join(map(str, choices))}"
        )


class Encoder(base.Encoder):
    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        out_features: int,
        condition_features: int = 0,
        latent_shape: Sequence[int] | None = None,
        widths: Sequence[int],
        depth: int,
        groups: int,
        activation: str,
    ) -> None:
        super().__init__()
        height, width = halved_sizes(image_shape, widths, unhalved=1)[-1]
        check_blocks(widths, depth, groups)
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0] + condition_features, widths[0], 3, padding=1)]
        for n, channels in enumerate(widths):
            if n > 0:
                layers.append(nn.Conv2d(widths[n - 1], channels, 4, stride=2, padding=1))
            layers += [Block(channels, groups, activation) for _ in range(depth)]
        self.stages = nn.Sequential(*layers, *normalized(widths[-1], groups, activation))
        self.spatial = latent_shape is not None
        self.output: nn.Module
        if latent_shape:
            check_latent_shape(latent_shape, (height, width))
            self.output = spatial_output(widths[-1], out_features, latent_shape)
        else:
            self.output = nn.Linear(widths[-1] * height * width, out_features)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        features: Tensor = self.stages(with_condition(x, condition))
        out: Tensor = self.output(features if self.spatial else features.flatten(1))
        return out.flatten(1)


class Decoder(base.Decoder):
    """`widths` is in the order of the encoder; the decoder uses it in reverse."""

    def __init__(
        self,
        *,
        in_features: int,
        image_shape: tuple[int, int, int],
        out_channels: int,
        latent_shape: Sequence[int] | None = None,
        widths: Sequence[int],
        depth: int,
        groups: int,
        activation: str,
    ) -> None:
        super().__init__()
        sizes = halved_sizes(image_shape, widths, unhalved=1)[::-1]
        check_blocks(widths, depth, groups)
        widths = widths[::-1]
        self.start_shape, self.latent_shape = (widths[0], *sizes[0]), latent_shape
        self.input: nn.Module
        if latent_shape:
            check_latent_shape(latent_shape, sizes[0])
            self.input = spatial_input(in_features, widths[0], latent_shape)
        else:
            self.input = nn.Linear(in_features, widths[0] * sizes[0][0] * sizes[0][1])
        layers: list[nn.Module] = []
        for n, channels in enumerate(widths):
            if n > 0:  # a 1 × 1 convolution commutes with upsampling, and before it takes a quarter of the work
                layers += [nn.Conv2d(widths[n - 1], channels, 1), nn.Upsample(sizes[n])]
            layers += [Block(channels, groups, activation) for _ in range(depth)]
        output = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.stages = nn.Sequential(*layers, *normalized(widths[-1], groups, activation), output)
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor) -> Tensor:
        if self.latent_shape:
            start = self.input(spatial_latents(z, self.latent_shape))
        else:
            start = channels_last(self.input(z).unflatten(1, self.start_shape))
        out: Tensor = self.stages(start)
        return out
