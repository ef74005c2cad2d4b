"""A hierarchical VAE: groups of latents at several resolutions, inferred and generated from the coarsest to the finest.

The encoder computes activations at every resolution. The decoder goes through the groups in order, and the posterior of
each depends on these activations and on the latents of all groups before it (Sønderby et al. 2016; Kingma et al. 2016).
Residual blocks have no norm, and their last layer starts small (Child 2021).

The latents are standardized: p(z) is N(0, I) for all groups together. In the papers the prior of a group is
N(m(z_<), diag s(z_<)²), with z_< the latents of the groups before it. Here the decoder multiplies z by s(z_<) and its
residual blocks add m(z_<). The densities differ by the determinant of a map, so that the model, its rate and its ELBO
are the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vaex.architectures import base
from vaex.architectures.activation import activation_class
from vaex.architectures.conv import channels_last, halved_sizes, with_condition

LARGEST_LOG_SCALE = 10.0  # of a standard deviation, to either side; float32 holds the square of its exponential


@dataclass(frozen=True)
class Style:
    """What all branches of a network have in common.

    Attributes:
        activation: its name.
        recompute: whether the backward pass computes the activations inside a branch again, so that they need not be
            kept (Chen et al. 2016).
    """

    activation: str
    recompute: bool


class Branch(nn.Module):
    """Activations and convolutions with half as many channels inside: [N, in, H, W] -> [N, out, H, W].

    Args:
        start: factor on the initial weights of the last layer.
    """

    def __init__(
        self, in_channels: int, out_channels: int, size: tuple[int, int], style: Style, start: float = 1.0
    ) -> None:
        super().__init__()
        inside = max(1, in_channels // 2)
        kernel = 3 if min(size) > 2 else 1  # on smaller maps most of a 3 × 3 kernel would lie outside
        layers: list[nn.Module] = []
        for channels, outputs, extent in (
            (in_channels, inside, 1),
            (inside, inside, kernel),
            (inside, inside, kernel),
            (inside, out_channels, 1),
        ):
            convolution = nn.Conv2d(channels, outputs, extent, padding=extent // 2)
            layers += [activation_class(style.activation)(), convolution]
        with torch.no_grad():
            for parameter in convolution.parameters():
                parameter.mul_(start)
        self.layers, self.recompute = nn.Sequential(*layers), style.recompute

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            again: Tensor = checkpoint(self.layers, x, use_reentrant=False, preserve_rng_state=False)
            return again
        out: Tensor = self.layers(x)
        return out


class Block(nn.Module):
    """x + branch(x), [N, width, H, W] -> [N, width, H, W].

    Args:
        total: number of blocks in the network: the sum of all branches then starts with the variance of one.
    """

    def __init__(self, width: int, size: tuple[int, int], style: Style, total: int) -> None:
        super().__init__()
        self.branch = Branch(width, width, size, style, start=1 / math.sqrt(total))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


def level_sizes(image_shape: tuple[int, int, int], widths: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width of each level, the finest first: half of the image's, a quarter, …"""
    return halved_sizes(image_shape, widths)[1:]


class Encoder(base.Encoder):
    """Activations of all levels, the finest first, flattened with the channels last, and the condition.

    Args:
        widths: channels of each level; each has half the height and width of the one before it, the first of the image.
        depth: number of blocks of a level.
        recompute: see Style.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        condition_features: int = 0,
        widths: Sequence[int],
        depth: int,
        activation: str,
        recompute: bool,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"architecture.depth={depth}: must be >= 1 block in a level")
        style = Style(activation, recompute)
        levels = []
        channels = image_shape[0] + condition_features
        for size, width in zip(level_sizes(image_shape, widths), widths, strict=True):
            blocks = [Block(width, size, style, depth * len(widths)) for _ in range(depth)]
            levels.append(nn.Sequential(nn.Conv2d(channels, width, 4, stride=2, padding=1), *blocks))
            channels = width
        self.levels = nn.ModuleList(levels)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = with_condition(x, condition)
        activations = []
        for level in self.levels:
            h = level(h)
            activations.append(flat(h))
        return torch.cat(activations if condition is None else [*activations, condition], dim=1)


class Group(nn.Module):
    """A group of latents, [N, channels, H, W].

    Args:
        width: channels of the decoder's state at this level.
        channels: latents at each position.
        level: its level, 0 for the finest.
        size: height and width of the level.
        style: of all branches.
        first: whether this is the first group, whose prior has a fixed scale of 1.
        depth: number of residual blocks after the latents.
        total: number of blocks in the decoder.
    """

    def __init__(
        self,
        *,
        width: int,
        channels: int,
        level: int,
        size: tuple[int, int],
        style: Style,
        first: bool,
        depth: int,
        total: int,
    ) -> None:
        super().__init__()
        self.level, self.shape = level, (*size, channels)
        self.prior = None if first else Branch(width, width + channels, size, style, start=1 / math.sqrt(total))
        # The posterior is the prior at first: the rate is 0, as it is where a model ignores z.
        self.posterior = Branch(2 * width, 2 * channels, size, style, start=0.0)
        self.project = nn.Conv2d(channels, width, 1)
        self.blocks = nn.Sequential(*(Block(width, size, style, total) for _ in range(depth)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix + "block.")]:  # of older versions
            state_dict[f"{prefix}blocks.0.{key.removeprefix(prefix + 'block.')}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @property
    def latents(self) -> int:
        """Number of latents of the group."""
        return math.prod(self.shape)

    def before(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """The state with the shift of the prior, and the scale of its latents; None for 1."""
        if self.prior is None:
            return h, None
        shift, log_scale = torch.split(self.prior(h), [h.shape[1], self.shape[2]], dim=1)
        return h + shift, torch.exp(bounded(log_scale.float()))

    def infer(self, h: Tensor, activation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z|x, z_<), each [N, channels, H, W] float32."""
        mean, log_std = self.posterior(torch.cat([h, activation], dim=1)).float().chunk(2, dim=1)
        return mean, bounded(log_std)

    def after(self, h: Tensor, scale: Tensor | None, z: Tensor) -> Tensor:
        """The state that knows the latents z [N, channels, H, W]."""
        out: Tensor = self.blocks(h + self.project(z if scale is None else scale * z))
        return out


def bounded(log_scale: Tensor) -> Tensor:
    """About the same number where it is small, and never beyond ±LARGEST_LOG_SCALE."""
    return LARGEST_LOG_SCALE * torch.tanh(log_scale / LARGEST_LOG_SCALE)


@dataclass(frozen=True)
class Pass:
    """What the decoder computes while it infers K samples of z for B images.

    Attributes:
        noise: from N(0, I), [K, B, latent_dim].
        z: the samples, [K, B, latent_dim].
        log_std: of each latent given those before it, [K, B, latent_dim].
        rates: KL(q(z_l|x, z_<) || N(0, I)) of each group, in closed form given the groups before it, [K, B, groups].
        output: the decoder's output for z, [K, B, out_channels, H, W].
    """

    noise: Tensor
    z: Tensor
    log_std: Tensor
    rates: Tensor
    output: Tensor


class Decoder(base.Decoder):
    """From latents to images, and from an encoder's activations to latents.

    Args:
        condition_features: number of classes of a conditional model, else 0.
        widths: channels of each level, as in the encoder.
        groups: number of groups of latents of each level, the finest first.
        depth: number of residual blocks after each group, and in each level without groups; None as in older runs, for
            one block after each group and none in levels without groups.
        latent_channels: latents of a group at each position.
        recompute: see Style.

    Attributes:
        latent_dim: number of latents of all groups.
        features: number of features that the encoder returns.

    Raises:
        ValueError: if the groups do not fit the levels, or there are none; or if the depth is below 1.
    """

    defines_latents = True

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        out_channels: int,
        condition_features: int = 0,
        widths: Sequence[int],
        groups: Sequence[int],
        latent_channels: int,
        activation: str,
        recompute: bool,
        depth: int | None = None,
    ) -> None:
        super().__init__()
        sizes = level_sizes(image_shape, widths)
        if len(groups) != len(widths) or min(groups) < 0 or not sum(groups):
            raise ValueError(
                f"architecture.groups={list(groups)}: must be a number of groups >= 0 for each of the {len(widths)} "
                "levels of architecture.widths, and not 0 for all"
            )
        if depth is not None and depth < 1:
            raise ValueError(f"architecture.decoder_depth={depth}: must be >= 1 block after each group of latents")
        depth, without_groups = (1, 0) if depth is None else (depth, depth)  # blocks after a group; in a level without
        style, total = Style(activation, recompute), depth * sum(groups) + without_groups * list(groups).count(0)
        self.condition_features = condition_features
        self.start = nn.Parameter(torch.zeros(widths[-1], *sizes[-1]))
        self.condition = nn.Linear(condition_features, widths[-1]) if condition_features else None
        path: list[nn.Module] = []
        self.groups: list[Group] = []
        for level in reversed(range(len(widths))):
            if level < len(widths) - 1:  # a 1 × 1 convolution commutes with upsampling, and before it takes less work
                path += [nn.Conv2d(widths[level + 1], widths[level], 1), nn.Upsample(sizes[level])]
            for _ in range(groups[level]):
                group = Group(
                    width=widths[level],
                    channels=latent_channels,
                    level=level,
                    size=sizes[level],
                    style=style,
                    first=not self.groups,
                    depth=depth,
                    total=total,
                )
                path.append(group)
                self.groups.append(group)
            if not groups[level]:
                path += [Block(widths[level], sizes[level], style, total) for _ in range(without_groups)]
        self.path = nn.ModuleList(path)
        self.activation_shapes = [(*size, width) for size, width in zip(sizes, widths, strict=True)]
        self.latent_dim = sum(group.latents for group in self.groups)
        self.features = sum(map(math.prod, self.activation_shapes)) + condition_features
        inside, odd = max(1, widths[0] // 2), (image_shape[1] % 2, image_shape[2] % 2)
        self.output = nn.Sequential(
            activation_class(activation)(),
            nn.ConvTranspose2d(widths[0], inside, 4, stride=2, padding=1, output_padding=odd),
            activation_class(activation)(),
            nn.Conv2d(inside, out_channels, 3, padding=1),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor) -> Tensor:
        """z [N, latent_dim + condition_features] -> [N, out_channels, H, W]."""
        *parts, condition = torch.split(z, [*(group.latents for group in self.groups), self.condition_features], dim=1)
        return self._descend(len(z), condition, lambda n, group, h: channels_first(parts[n], group.shape))

    def inner_outputs(self) -> list[nn.Module]:
        branches = [branch for group in self.groups for branch in (group.prior, group.posterior) if branch]
        return [branch.layers[-1] for branch in branches]

    def infer(self, features: Tensor, noise: Tensor) -> Pass:
        """Samples of z for B images, from noise [K, B, latent_dim] and what the encoder returned, [B, `features`]."""
        samples = len(noise)
        features = features.expand(samples, -1, -1).flatten(0, 1)
        sizes = [*map(math.prod, self.activation_shapes), self.condition_features]
        *levels, condition = torch.split(features, sizes, dim=1)
        activations = [
            channels_first(level, shape) for level, shape in zip(levels, self.activation_shapes, strict=True)
        ]
        noises = torch.split(noise.flatten(0, 1), [group.latents for group in self.groups], dim=1)
        z, log_stds, rates = [], [], []

        def sample(n: int, group: Group, h: Tensor) -> Tensor:
            mean, log_std = group.infer(h, activations[group.level])
            std = torch.exp(log_std)
            value = mean + std * channels_first(noises[n], group.shape)
            z.append(flat(value))
            log_stds.append(flat(log_std))
            rates.append((0.5 * (mean.square() + std.square() - 1) - log_std).sum((1, 2, 3)))
            return value

        output = self._descend(len(features), condition, sample).float()
        columns = torch.cat(z, dim=1), torch.cat(log_stds, dim=1), torch.stack(rates, dim=1), output
        return Pass(noise, *(values.reshape(samples, -1, *values.shape[1:]) for values in columns))

    def _descend(self, count: int, condition: Tensor, latents: Callable[[int, Group, Tensor], Tensor]) -> Tensor:
        """From the coarsest level to the image, [N, out_channels, H, W].

        Args:
            count: N, number of samples.
            condition: one-hot labels, [N, condition_features].
            latents: returns the latents of the nth group, for the state before it.
        """
        h = channels_last(self.start.expand(count, -1, -1, -1))
        if self.condition is not None:
            h = h + self.condition(condition)[:, :, None, None]
        n = 0
        for module in self.path:
            if isinstance(module, Group):
                h, scale = module.before(h)
                h = module.after(h, scale, latents(n, module, h))
                n += 1
            else:
                h = module(h)
        out: Tensor = self.output(h)
        return out


def channels_first(values: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[N, H · W · C] -> [N, C, H, W], with the channels last in memory as before. `shape` is (H, W, C)."""
    return values.reshape(-1, *shape).permute(0, 3, 1, 2)


def flat(values: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H · W · C]."""
    return values.permute(0, 2, 3, 1).flatten(1)
