"""Base classes of encoders and decoders, which say what vaex passes to a network and what it expects back.

vaex creates a network with the values of its YAML file, and with those of the arguments below that its constructor has
a parameter for. The last layer of both networks is linear: the posterior and the likelihood interpret its output.
"""

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def output_layer(network: nn.Module) -> nn.Module | None:
    """The layer whose output is the network's: the last linear or convolutional one that it registers, if any."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | _ConvNd)]
    return layers[-1] if layers else None


def float32_layers(network: nn.Module) -> list[nn.Module]:
    """The layers that precision=bf16 leaves in float32: the output layer, and those that the network names."""
    own = network.inner_outputs() if isinstance(network, Decoder) else []
    return [*filter(None, [output_layer(network)]), *own]


class Encoder(nn.Module):
    """Base class of encoders.

    Arguments that vaex passes to the constructor, if it has a parameter of that name:
        image_shape: (channels, height, width) of the images.
        out_features: number of features to return, twice `latent_dim` for a distribution of z.
        condition_features: number of classes of a conditional model, else 0. An encoder without this parameter can be
            used in unconditional models only.
        latent_shape: (channels, height, width) of z if it is spatial, else None. The features are then in the order
            [channels, height, width], first all means and then all log variances. A network without this parameter can
            be used for a vector z only.
    """

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images to features.

        Args:
            x: [B, C, H, W] float32 in [0, 1].
            condition: one-hot labels [B, condition_features]; passed only in a conditional model.

        Returns:
            [B, out_features].
        """
        raise NotImplementedError


class Decoder(nn.Module):
    """Base class of decoders.

    Arguments that vaex passes to the constructor, if it has a parameter of that name:
        in_features: number of features of z, including the one-hot label in a conditional model.
        image_shape: (channels, height, width) of the images.
        out_channels: number of channels to return, as the likelihood needs them.
        latent_shape: as for encoders; z is in the order [channels, height, width].

    Attributes:
        defines_latents: whether the decoder itself says how many latents there are and infers them, as that of a ladder
            does. It then has the arguments, attributes and methods of vaex.architectures.ladder.Decoder.
    """

    defines_latents: bool = False

    def forward(self, z: Tensor) -> Tensor:
        """z [B, in_features] -> [B, out_channels, H, W]."""
        raise NotImplementedError

    def inner_outputs(self) -> list[nn.Module]:
        """Layers besides the last one whose output parametrizes a distribution, which bfloat16 would round."""
        return []
