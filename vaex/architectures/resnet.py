"""Residual blocks with norm and activation first (He et al. 2016b), for images of any size and number of channels.

Between stages a convolution halves height and width, rounding down; the decoder undoes it exactly, odd sizes too.
GroupNorm (Wu & He 2018) rather than BatchNorm: an image's numbers don't depend on the rest of its batch, so a run
resumes exactly and runs of a sweep can be stacked. Without any norm the rate collapses to 0. Inside, tensors lie in
memory channels last, which convolves faster.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vaex.architectures.activation import activation_class
from vaex.architectures.conv import halved_sizes


class Block(nn.Module):
    """x + branch(x), [B, width, H, W] -> the same."""

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
    """Raises ValueError for stages without blocks, or channels that can't be shared among the groups."""
    if depth < 1:
        raise ValueError(f"architecture.depth={depth}: must be >= 1 block in a stage")
    common = math.gcd(*widths)
    if groups < 1 or common % groups:
        fitting = [count for count in range(1, common + 1) if common % count == 0]
        raise ValueError(
            f"architecture.groups={groups}: must divide each of architecture.widths={list(widths)}; "
            f"{', '.join(map(str, fitting))} would"
        )


class Encoder(nn.Module):
    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        out_features: int,
        condition_features: int = 0,
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
        self.output = nn.Linear(widths[-1] * height * width, out_features)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if condition is not None:  # one constant plane a class
            x = torch.cat([x, condition[:, :, None, None].expand(-1, -1, *x.shape[-2:])], dim=1)
        out: Tensor = self.output(self.stages(x).flatten(1))
        return out


class Decoder(nn.Module):
    """`widths` is in the encoder's order; the decoder goes through it backwards."""

    def __init__(
        self,
        *,
        in_features: int,
        image_shape: tuple[int, int, int],
        out_channels: int,
        widths: Sequence[int],
        depth: int,
        groups: int,
        activation: str,
    ) -> None:
        super().__init__()
        sizes = halved_sizes(image_shape, widths, unhalved=1)[::-1]
        check_blocks(widths, depth, groups)
        widths = widths[::-1]
        self.start_shape = (widths[0], *sizes[0])
        self.input = nn.Linear(in_features, widths[0] * sizes[0][0] * sizes[0][1])
        layers: list[nn.Module] = []
        for n, channels in enumerate(widths):
            if n > 0:  # a 1 × 1 convolution gives the same before the upsampling as after it, at a quarter of the work
                layers += [nn.Conv2d(widths[n - 1], channels, 1), nn.Upsample(sizes[n])]
            layers += [Block(channels, groups, activation) for _ in range(depth)]
        output = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.stages = nn.Sequential(*layers, *normalized(widths[-1], groups, activation), output)
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor) -> Tensor:
        start = self.input(z).unflatten(1, self.start_shape)
        out: Tensor = self.stages(start.contiguous(memory_format=torch.channels_last))
        return out
