"""The autoencoder: encoder, posterior q(z|x), prior N(0, I), decoder, likelihood p(x|z), and optionally a condition.

Encoder and decoder may run in bfloat16 while training; everything after them is float32, and evaluation is all float32.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaex.likelihoods.base import Likelihood, PixelDistribution


@dataclass(frozen=True)
class Posterior:
    """q(z|x) = N(mean, diag exp(log_var)): both [B, latent_dim], float32. A log_var of -inf is a point mass."""

    mean: Tensor
    log_var: Tensor

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.log_var)

    def at(self, noise: Tensor) -> Tensor:
        """Reparametrised draws, of noise from N(0, 1) [samples, B, latent_dim]."""
        return self.mean + self.std * noise

    def rsample(self, samples: int) -> Tensor:
        """Reparametrised draws, [samples, B, latent_dim]."""
        return self.at(torch.randn(samples, *self.mean.shape, device=self.mean.device))

    def rate(self) -> Tensor:
        """KL(q(z|x) || N(0, I)) of each latent, [B, latent_dim] nats. Kingma & Welling 2014, appendix B."""
        return 0.5 * (self.mean.square() + torch.expm1(self.log_var) - self.log_var)


def log_prior_over_posterior(z: Tensor, log_var: Tensor, standardized: Tensor) -> Tensor:
    """log p(z) - log q(z|x), [K, B] nats, with z and `standardized` = (z - mean) / std [K, B, latent_dim].

    The two log 2π cancel.
    """
    return 0.5 * (standardized.square() + log_var - z.square()).sum(-1)


class Autoencoder(nn.Module):
    """An encoder and a decoder around a latent z of `latent_dim` numbers.

    Args:
        encoder: (x [B, C, H, W], condition) -> [B, 2 · latent_dim]: the posterior's mean and log variance; or
            [B, latent_dim] when `stochastic` is False: the code itself.
        decoder: [N, latent_dim + classes] -> [N, likelihood's out_channels, H, W].
        likelihood: makes a distribution over images of the decoder's output.
        latent_dim: size of z.
        classes: number of classes whose one-hot labels are joined to the encoder's input and to z; 0 for none.
        stochastic: whether the encoder gives a distribution.
        bf16: run encoder and decoder in bfloat16 in training mode.
    """

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
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latent_dim, self.classes = latent_dim, classes
        self.stochastic, self.bf16 = stochastic, bf16

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Posterior:
        """Images [B, C, H, W] in [0, 1], labels int64 [B] if conditional -> q(z|x)."""
        with self._precision(x.device):
            code = self.encoder(x, self._one_hot(labels)).float()
        if not self.stochastic:
            return Posterior(code, torch.full_like(code, -torch.inf))
        mean, log_var = code.chunk(2, dim=1)
        return Posterior(mean, log_var)

    def decode(self, z: Tensor, labels: Tensor | None = None, x: Tensor | None = None) -> PixelDistribution:
        """z [..., B, latent_dim], labels int64 [B] if conditional -> p(x|z) with batch shape [..., B].

        `x` goes to the likelihood, for scales that are computed from the error.
        """
        condition = self._one_hot(labels)
        if condition is not None:
            z = torch.cat([z, condition.expand(*z.shape[:-1], -1)], dim=-1)
        with self._precision(z.device):
            h = self.decoder(z.flatten(0, -2)).float()
        distribution: PixelDistribution = self.likelihood(h.unflatten(0, z.shape[:-1]), x)
        return distribution

    @torch.no_grad()
    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The decoder's mean at the posterior's mean, [B, C, H, W]."""
        return self.decode(self.encode(x, labels).mean, labels, x).mean

    @torch.no_grad()
    def sample(self, count: int, labels: Tensor | None = None) -> Tensor:
        """The decoder's mean at `count` draws from the prior, [count, C, H, W]."""
        z = torch.randn(count, self.latent_dim, device=self.device)
        return self.decode(z, labels).mean

    def _one_hot(self, labels: Tensor | None) -> Tensor | None:
        if not self.classes:
            return None
        if labels is None:
            raise ValueError("this model is conditional: give labels, int64 [B]")
        return F.one_hot(labels, self.classes).float()

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16 and self.training)
