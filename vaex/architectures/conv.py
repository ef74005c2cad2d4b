"""Strided convolutions, after Burgess et al. 2018 (kernel 4, stride 2), for images of any size and number of channels.

Each layer halves height and width, rounding down; the decoder restores the exact sizes, including odd ones. There is no
BatchNorm, so that a run resumes exactly and the runs of a sweep can be stacked. Tensors inside the networks are stored
channels last, which makes convolutions faster.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vaex.architectures import base
from vaex.architectures.activation import activation_class


def halved_sizes(
    image_shape: tuple[int, int, int], widths: Sequence[int], *, unhalved: int = 0
) -> list[tuple[int, int]]:
    """Height and width of the image, and after each layer that halves them.

    Args:
        image_shape: (channels, height, width).
        widths: number of channels of each layer.
        unhalved: number of layers that keep the size.

    Raises:
        ValueError: there are no widths, or the image is too small to be halved so many times.
    """
    _, height, width = image_shape
    if not widths or min(widths) < 1:
        raise ValueError(f"architecture.widths={list(widths)}: must be one or more numbers of channels >= 1")
    halvings = len(widths) - unhalved
    max_halvings = min(height, width).bit_length() - 1
    if halvings > max_halvings:
        raise ValueError(
            f"architecture.widths has {len(widths)} layers, which need images of at least {2**halvings} × "
            f"{2**halvings} pixels; these are {height} × {width}: give at most {max_halvings + unhalved} widths"
        )
    return [(height >> n, width >> n) for n in range(halvings + 1)]


def channels_last(x: Tensor) -> Tensor:
    """x [B, C, H, W] in channels-last memory; a copy only if it is not."""
    # x.contiguous(memory_format=torch.channels_last) does the same, but not under torch.func.vmap.
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def with_condition(x: Tensor, condition: Tensor | None) -> Tensor:
    """Images, stored channels last, with a constant plane for each class: [B, C + condition_features, H, W]."""
    x = channels_last(x)
    if condition is None:
        return x
    return torch.cat([x, condition[:, :, None, None].expand(-1, -1, *x.shape[-2:])], dim=1)


class Encoder(base.Encoder):
    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        out_features: int,
        condition_features: int = 0,
        widths: Sequence[int],
        hidden: int,
        activation: str,
    ) -> None:
        super().__init__()
        height, width = halved_sizes(image_shape, widths)[-1]
        channels = image_shape[0] + condition_features
        layers: list[nn.Module] = []
        for out_channels in widths:
            layers += [nn.Conv2d(channels, out_channels, 4, stride=2, padding=1), activation_class(activation)()]
            channels = out_channels
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(channels * height * width, hidden), activation_class(activation)())
        self.output = nn.Linear(hidden, out_features)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        out: Tensor = self.output(self.hidden(self.convolutions(with_condition(x, condition)).flatten(1)))
        return out


class Decoder(base.Decoder):
    """`widths` is in the order of the encoder; the decoder uses it in reverse."""

    def __init__(
        self,
        *,
        in_features: int,
        image_shape: tuple[int, int, int],
        out_channels: int,
        widths: Sequence[int],
        hidden: int,
        activation: str,
    ) -> None:
        super().__init__()
        sizes = halved_sizes(image_shape, widths)[::-1]
        channels = [*widths[::-1], out_channels]
        self.start_shape = (channels[0], *sizes[0])
        self.hidden = nn.Sequential(
            nn.Linear(in_features, hidden),
            activation_class(activation)(),
            nn.Linear(hidden, channels[0] * sizes[0][0] * sizes[0][1]),
        )
        layers: list[nn.Module] = []
        for n in range(len(widths)):
            odd = (sizes[n + 1][0] % 2, sizes[n + 1][1] % 2)
            layers += [
                activation_class(activation)(),
                nn.ConvTranspose2d(channels[n], channels[n + 1], 4, stride=2, padding=1, output_padding=odd),
            ]
        self.convolutions = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor) -> Tensor:
        start = self.hidden(z).unflatten(1, self.start_shape)
        out: Tensor = self.convolutions(channels_last(start))
        return out
