"""Strided convolutions, after Burgess et al. 2018 (kernel 4, stride 2), for images of any size and number of channels.

Each layer halves height and width, rounding down; the decoder undoes it exactly, odd sizes too. There is no BatchNorm:
a run resumes exactly and runs of a sweep can be stacked. Inside, tensors lie in memory channels last, which convolves
faster.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vaex.architectures.activation import activation_class


def halved_sizes(
    image_shape: tuple[int, int, int], widths: Sequence[int], *, unhalved: int = 0
) -> list[tuple[int, int]]:
    """Height and width before the first halving and after each one.

    Args:
        image_shape: (channels, height, width).
        widths: of the layers, of which the first `unhalved` keep the size.

    Raises:
        ValueError: there are no widths, or the image is too small to be halved that often.
    """
    _, height, width = image_shape
    if not widths or min(widths) < 1:
        raise ValueError(f"architecture.widths={list(widths)}: must be one or more numbers of channels >= 1")
    halvings = len(widths) - unhalved
    most = min(height, width).bit_length() - 1
    if halvings > most:
        raise ValueError(
            f"architecture.widths has {len(widths)} layers, which need images of at least {2**halvings} × "
            f"{2**halvings} pixels; these are {height} × {width}: give at most {most + unhalved} widths"
        )
    return [(height >> n, width >> n) for n in range(halvings + 1)]


class Encoder(nn.Module):
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
        x = x.contiguous(memory_format=torch.channels_last)
        if condition is not None:  # one constant plane a class
            x = torch.cat([x, condition[:, :, None, None].expand(-1, -1, *x.shape[-2:])], dim=1)
        out: Tensor = self.output(self.hidden(self.convolutions(x).flatten(1)))
        return out


class Decoder(nn.Module):
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
        out: Tensor = self.convolutions(start.contiguous(memory_format=torch.channels_last))
        return out
