"""Fully connected encoder and decoder for images of any size."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vaex.architectures import base
from vaex.architectures.activation import activation_class


def hidden_layers(in_features: int, hidden: Sequence[int], activation: str) -> tuple[nn.Sequential, int]:
    """A linear layer and an activation for each width in `hidden`; and the number of features that they return."""
    if any(width < 1 for width in hidden):
        raise ValueError(f"architecture.hidden={list(hidden)}: every width must be >= 1")
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), activation_class(activation)()]
        in_features = width
    return nn.Sequential(*layers), in_features


class Encoder(base.Encoder):
    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        out_features: int,
        condition_features: int = 0,
        hidden: Sequence[int],
        activation: str,
    ) -> None:
        super().__init__()
        self.layers, features = hidden_layers(math.prod(image_shape) + condition_features, hidden, activation)
        self.output = nn.Linear(features, out_features)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = x.flatten(1)
        if condition is not None:
            h = torch.cat([h, condition], dim=1)
        out: Tensor = self.output(self.layers(h))
        return out


class Decoder(base.Decoder):
    """`hidden` is in the order of the encoder; the decoder uses it in reverse."""

    def __init__(
        self,
        *,
        in_features: int,
        image_shape: tuple[int, int, int],
        out_channels: int,
        hidden: Sequence[int],
        activation: str,
    ) -> None:
        super().__init__()
        self.out_shape = (out_channels, *image_shape[1:])
        self.layers, features = hidden_layers(in_features, hidden[::-1], activation)
        self.output = nn.Linear(features, math.prod(self.out_shape))

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.output(self.layers(z))
        return out.view(-1, *self.out_shape)
