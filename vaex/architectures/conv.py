"""Strided convolutions, after Burgess et al. 2018 (kernel 4, stride 2), for images of any size and number of channels.

Each layer halves height and width, rounding down; the decoder restores the exact sizes, including odd ones. There is no
BatchNorm, so that a run resumes exactly and the runs of a sweep can be stacked. Tensors inside the networks are stored
channels last, which makes convolutions faster.
"""

import math
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


def check_latent_shape(latent_shape: Sequence[int], size: tuple[int, int]) -> None:
    """Raises ValueError unless the latents have the height and width of the network's smallest activations."""
    if tuple(latent_shape[1:]) != size:
        raise ValueError(
            f"latent_shape={list(latent_shape)}: must be [channels,{size[0]},{size[1]}], as the network's smallest "
            f"activations are {size[0]} × {size[1]}; other architecture.widths halve the image more or less often"
        )


def spatial_output(channels: int, out_features: int, latent_shape: Sequence[int]) -> nn.Conv2d:
    """The last layer of an encoder with spatial latents: the same features of z for each position.

    Raises:
        ValueError: the posterior needs features that belong to no position.
    """
    latents, positions = math.prod(latent_shape), latent_shape[1] * latent_shape[2]
    if out_features not in (latents, 2 * latents):
        raise ValueError(
            f"latent_shape={list(latent_shape)}: needs posterior=diagonal, which has features for each latent"
        )
    return nn.Conv2d(channels, out_features // positions, 1)


def spatial_input(in_features: int, channels: int, latent_shape: Sequence[int]) -> nn.Conv2d:
    """The first layer of a decoder with spatial latents, from `spatial_latents`."""
    classes = in_features - math.prod(latent_shape)
    return nn.Conv2d(latent_shape[0] + classes, channels, 1)


def spatial_latents(z: Tensor, latent_shape: Sequence[int]) -> Tensor:
    """z and the condition, [N, latents + classes] -> [N, channels + classes, height, width], channels last."""
    channels, height, width = latent_shape
    latents, condition = torch.split(z, [channels * height * width, z.shape[1] - channels * height * width], dim=1)
    planes = condition[:, :, None, None].expand(-1, -1, height, width)
    return channels_last(torch.cat([latents.reshape(-1, channels, height, width), planes], dim=1))


class Encoder(base.Encoder):
    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        out_features: int,
        condition_features: int = 0,
        latent_shape: Sequence[int] | None = None,
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
        self.spatial = latent_shape is not None
        layer: nn.Module
        if latent_shape:
            check_latent_shape(latent_shape, (height, width))
            layer = nn.Conv2d(channels, hidden, 1)
        else:
            layer = nn.Linear(channels * height * width, hidden)
        self.hidden = nn.Sequential(layer, activation_class(activation)())
        self.output = (
            spatial_output(hidden, out_features, latent_shape) if latent_shape else nn.Linear(hidden, out_features)
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        features: Tensor = self.convolutions(with_condition(x, condition))
        out: Tensor = self.output(self.hidden(features if self.spatial else features.flatten(1)))
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
        hidden: int,
        activation: str,
    ) -> None:
        super().__init__()
        sizes = halved_sizes(image_shape, widths)[::-1]
        channels = [*widths[::-1], out_channels]
        self.start_shape, self.latent_shape = (channels[0], *sizes[0]), latent_shape
        first: nn.Module
        last: nn.Module
        if latent_shape:
            check_latent_shape(latent_shape, sizes[0])
            first = spatial_input(in_features, hidden, latent_shape)
            last = nn.Conv2d(hidden, channels[0], 1)
        else:
            first, last = nn.Linear(in_features, hidden), nn.Linear(hidden, channels[0] * sizes[0][0] * sizes[0][1])
        self.hidden = nn.Sequential(first, activation_class(activation)(), last)
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
        if self.latent_shape:
            start = self.hidden(spatial_latents(z, self.latent_shape))
        else:
            start = channels_last(self.hidden(z).unflatten(1, self.start_shape))
        out: Tensor = self.convolutions(start)
        return out
