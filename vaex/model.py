"""The autoencoder: encoder, posterior q(z|x), prior p(z), decoder, likelihood p(x|z) and an optional condition.

The encoder sees x less the mean image, and a constant offset is added to the decoder's output, so that the model begins
as the best one that ignores z (see vaex.start).

The encoder and the decoder may run in bfloat16 during training, except for their last layers. Everything else runs in
float32, as does all of evaluation.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaex.architectures.base import float32_layers
from vaex.latents.posterior import Diagonal, DiagonalGaussian, Posterior, PosteriorFamily
from vaex.latents.prior import LatentDistribution, Prior, Standard
from vaex.likelihoods.base import Likelihood, PixelDistribution


@dataclass(frozen=True)
class Latents:
    """Samples of z for B images, and what the bound needs to know of them. Nats.

    Attributes:
        posterior: q(z|x).
        prior: p(z).
        noise: from N(0, I), [K, B, latent_dim].
        z: samples of q(z|x), one for each noise, [K, B, latent_dim].
        rate: KL(q(z|x) || p(z)), [B, groups]: of each latent if they are independent in both distributions, of each
            group of a hierarchical model, else as a whole. Without a closed form it is an estimate from these samples.
        group_sizes: number of latents in each of these groups: [groups], or a number for all.
    """

    posterior: Posterior
    prior: LatentDistribution
    noise: Tensor
    z: Tensor
    rate: Tensor
    group_sizes: Tensor | int
    known_log_ratio: Tensor | None = None

    def log_ratio(self) -> Tensor:
        """log p(z) - log q(z|x), [K, B]."""
        if self.known_log_ratio is not None:
            return self.known_log_ratio
        return self.prior.log_ratio(self.posterior, self.z, self.noise)


def _in_float32(forward: Callable[..., Tensor], features: Tensor, *arguments: Any, **options: Any) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        return forward(features.float(), *arguments, **options)


class Autoencoder(nn.Module):
    """An encoder and a decoder around a latent vector z.

    Args:
        encoder: maps x [B, C, H, W] and the condition to the features of the posterior, [B, posterior.features]; or to
            the code itself, [B, latent_dim], if `stochastic` is False.
        decoder: maps [N, latent_dim + classes] to [N, out_channels of the likelihood, H, W].
        likelihood: turns the decoder's output into a distribution over images.
        latent_dim: size of z.
        classes: number of classes whose one-hot labels are concatenated to the encoder's input and to z; 0 for an
            unconditional model.
        stochastic: whether the encoder returns a distribution.
        bf16: whether the encoder and the decoder run in bfloat16 in training mode, except for their `output_layer`.
        posterior: the family of q(z|x); None for Gaussians with independent latents.
        prior: p(z); None for N(0, I).

    Attributes:
        center: subtracted from the encoder's input, [C, H, W]; zero unless vaex.start sets it.
        offset: added to the decoder's output, [out_channels of the likelihood, H, W]; zero unless vaex.start sets it.
        image_shape: (C, H, W) of the images if the methods are to check what they are given, as those of a model from
            `vaex.load` do; None in training, where it would make the device wait.
    """

    image_shape: tuple[int, int, int] | None = None
    center: Tensor
    offset: Tensor

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        classes: int = 0,
        stochastic: bool = True,
        bf16: bool = False,
        posterior: PosteriorFamily | None = None,
        prior: Prior | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latent_dim, self.classes = latent_dim, classes
        self.stochastic, self.bf16 = stochastic, bf16
        self.posterior = posterior or Diagonal(latent_dim=latent_dim)
        self.prior = prior or Standard(latent_dim=latent_dim)
        channels, height, width = likelihood.image_shape
        self.register_buffer("center", torch.zeros(likelihood.image_shape))
        self.register_buffer("offset", torch.zeros(likelihood.out_channels(channels), height, width))
        for layer in [*float32_layers(encoder), *float32_layers(decoder)] if bf16 else ():
            # bfloat16 has a step of one gray level at a location of 1/2, and would round mean and log_var as coarsely.
            layer.forward = partial(_in_float32, layer.forward)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Posterior:
        """q(z|x) of images [B, C, H, W] in [0, 1], with labels int64 [B] if the model is conditional.

        Raises:
            ValueError: the images or labels are not such, if `image_shape` is set; or labels are missing.
        """
        if self.image_shape:
            self._check("x", x, self.image_shape, 4)
            if not 0 <= x.min() <= x.max() <= 1:
                raise ValueError(
                    f"x: must be from 0 to 1, not from {x.min():g} to {x.max():g}; divide 8-bit pixels by 255"
                )
        condition = self._one_hot(labels, len(x))
        x = x - self.center
        with self._precision(x.device):
            code = (self.encoder(x) if condition is None else self.encoder(x, condition)).float()
        if not self.stochastic:
            return DiagonalGaussian(code, torch.full_like(code, -torch.inf))
        posterior: Posterior = self.posterior(code)
        return posterior

    @property
    def has_rate_per_latent(self) -> bool:
        """Whether each latent has a rate of its own: the latents are independent in both distributions."""
        return self.prior.is_standard and self.posterior.is_diagonal

    @property
    def estimates_rate(self) -> bool:
        """Whether the rate is estimated from samples of z, because it has no closed form."""
        return self.stochastic and not (self.prior.is_standard and self.posterior.is_gaussian)

    def latent_prior(self) -> LatentDistribution:
        """p(z)."""
        prior: LatentDistribution = self.prior(self.encode)
        return prior

    def infer(self, x: Tensor, labels: Tensor | None, noise: Tensor) -> Latents:
        """Samples of z from q(z|x), for noise from N(0, I) [K, B, latent_dim].

        Raises:
            ValueError: as `encode`.
        """
        posterior, prior = self.encode(x, labels), self.latent_prior()
        with self._precision(x.device) if self.posterior.runs_decoder else nullcontext():
            z = posterior.at(noise)
        rate, log_ratio = prior.rate(posterior), None
        if rate is None and self.prior.is_standard:
            rate = posterior.standard_rate(noise)
        if rate is None:
            log_prior = prior.log_prob(z)
            log_ratio = log_prior - posterior.log_prob(noise)
            rate = (posterior.path_log_prob(noise) - log_prior).mean(0)[:, None]
        return Latents(posterior, prior, noise, z, rate, self.posterior.group_sizes(rate.shape[1]), log_ratio)

    def decode_latents(
        self, latents: Latents, labels: Tensor | None = None, x: Tensor | None = None
    ) -> PixelDistribution:
        """p(x|z) of the samples of `infer`, with batch shape [K, B]. See `decode`."""
        output = latents.posterior.output(latents.noise)
        return self.decode(latents.z, labels, x) if output is None else self.distribution(output, x)

    def decode(self, z: Tensor, labels: Tensor | None = None, x: Tensor | None = None) -> PixelDistribution:
        """p(x|z) with batch shape [..., B].

        Args:
            z: [..., B, latent_dim].
            labels: int64 [B], if the model is conditional.
            x: the images, for a likelihood whose scale is computed from the error in training.

        Raises:
            ValueError: z or the labels are not such, if `image_shape` is set; or labels are missing.
        """
        if self.image_shape:
            self._check("z", z, (self.latent_dim,))
        condition = self._one_hot(labels, z.shape[-2])
        if condition is not None:
            z = torch.cat([z, condition.expand(*z.shape[:-1], -1)], dim=-1)
        with self._precision(z.device):
            output = self.decoder(z.flatten(0, -2)).float()
        return self.distribution(output.unflatten(0, z.shape[:-1]), x)

    def distribution(self, output: Tensor, x: Tensor | None = None) -> PixelDistribution:
        """p(x|z) of the decoder's output [..., B, out_channels, H, W]; x as for `decode`."""
        distribution: PixelDistribution = self.likelihood(output + self.offset, x)
        return distribution

    @torch.no_grad()
    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean of p(x|z) at the mean of q(z|x), [B, C, H, W]."""
        return self.decode(self.encode(x, labels).mean, labels, x).mean

    @torch.no_grad()
    def sample(self, count: int, labels: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """The mean of p(x|z) at `count` samples of z from the prior, [count, C, H, W].

        Args:
            temperature: factor on the standard deviations of the prior or of its components; of a flow on those of the
                noise that it transforms.
        """
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"count={count}: must be a number of images, >= 1")
        z = self.latent_prior().sample(count, temperature=temperature)
        return self.decode(z, labels).mean

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name in ("center", "offset"):  # older versions had none
            state_dict.setdefault(prefix + name, torch.zeros_like(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _check(self, name: str, value: Tensor, shape: tuple[int, ...], dimensions: int | None = None) -> None:
        """Raises ValueError unless this is a batch of finite float32 tensors of this shape on the model's device."""
        batch = "B" if dimensions else "..., B"
        needed = f"{name}: must be a float32 tensor [{batch}, {', '.join(map(str, shape))}] on {self.device}"
        if not isinstance(value, Tensor):
            raise ValueError(f"{needed}, not a {type(value).__name__}")
        fits = value.shape[-len(shape) :] == shape and value.ndim > len(shape) and value.numel() > 0
        if not fits or value.ndim > (dimensions or value.ndim) or value.dtype != torch.float32:
            raise ValueError(f"{needed}, not {str(value.dtype).removeprefix('torch.')} {list(value.shape)}")
        if value.device != self.device:
            raise ValueError(f"{needed}, not on {value.device}")
        if not value.isfinite().all():
            raise ValueError(f"{name}: must be finite, and contains NaN or infinity")

    def _one_hot(self, labels: Tensor | None, count: int) -> Tensor | None:
        if not self.classes:
            return None
        if labels is None:
            raise ValueError("this model is conditional: pass labels, int64 [B]")
        if self.image_shape and (
            not isinstance(labels, Tensor)
            or (labels.dtype, labels.shape, labels.device) != (torch.int64, (count,), self.device)
            or not bool(((labels >= 0) & (labels < self.classes)).all())
        ):
            raise ValueError(
                f"labels: must be an int64 tensor [{count}] on {self.device}, each from 0 to {self.classes - 1}"
            )
        return F.one_hot(labels, self.classes).float()

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16 and self.training)
