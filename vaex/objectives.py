"""What is minimised. An objective takes a model and a batch and returns `Terms`. Nats per image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaex.likelihoods.base import PixelDistribution
from vaex.model import Autoencoder, Posterior


@dataclass(frozen=True)
class Batch:
    x: Tensor  # [B, C, H, W] float32 in [0, 1]: what is scored
    input: Tensor  # [B, C, H, W]: what the encoder sees; x itself unless corrupted
    labels: Tensor  # [B] int64


@dataclass(frozen=True)
class Terms:
    loss: Tensor  # []: minimised
    distortion: Tensor  # [B]: -E_q log p(x|z)
    rate: Tensor | None  # [B, latent_dim]: KL(q(z|x) || p(z)) of each latent; None without a posterior
    posterior: Posterior
    distribution: PixelDistribution  # p(x|z), batch shape [samples, B]


class Objective(nn.Module):
    """Base of all objectives. `stochastic`: whether the encoder must give a distribution."""

    stochastic: bool

    def loss(self, distortion: Tensor, rate: Tensor | None, step: Tensor | None = None) -> Tensor:
        """Mean distortion [] and mean rate of each latent [latent_dim] -> loss []. Without a step: fully warmed up."""
        raise NotImplementedError

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor) -> Terms:
        raise NotImplementedError


class AE(Objective):
    """Deterministic autoencoder under any likelihood: the distortion of the code."""

    stochastic = False

    def loss(self, distortion: Tensor, rate: Tensor | None, step: Tensor | None = None) -> Tensor:
        return distortion

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor) -> Terms:
        code = model.encode(batch.input, batch.labels)
        distribution = model.decode(code.mean, batch.labels, batch.x)
        distortion = -distribution.log_prob(batch.x)
        return Terms(self.loss(distortion.mean(), None), distortion, None, code, distribution)


class VAE(Objective):
    """distortion + beta · rate. Kingma & Welling 2014, eq. 7 (beta = 1); Higgins et al. 2017, eq. 4.

    Args:
        beta: weight of the rate.
        samples: Monte Carlo draws of z for each image.
        warmup: steps over which beta grows linearly from 0; 0 for none.
        free_bits: nats below which a latent's mean rate costs nothing more. Kingma et al. 2016, eq. 15.

    Raises:
        ValueError: a value out of its range.
    """

    stochastic = True
    beta: Tensor

    def __init__(self, *, beta: float, samples: int, warmup: int, free_bits: float) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"objective.samples={samples}: must be >= 1")
        if warmup < 0:
            raise ValueError(f"objective.warmup={warmup}: must be >= 0 optimizer steps")
        if not (math.isfinite(free_bits) and free_bits >= 0):
            raise ValueError(f"objective.free_bits={free_bits}: must be a finite number >= 0, in nats for each latent")
        self.register_buffer("beta", torch.tensor(beta), persistent=False)
        self.samples, self.warmup, self.free_bits = samples, warmup, free_bits

    def loss(self, distortion: Tensor, rate: Tensor | None, step: Tensor | None = None) -> Tensor:
        assert rate is not None
        beta = self.beta
        if self.warmup and step is not None:
            beta = beta * (step / self.warmup).clamp(max=1)
        if self.free_bits:
            rate = rate.clamp(min=self.free_bits)
        return distortion + beta * rate.sum()

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor) -> Terms:
        posterior = model.encode(batch.input, batch.labels)
        z = posterior.rsample(self.samples)  # [L, B, latent_dim]
        distribution = model.decode(z, batch.labels, batch.x)
        distortion = -distribution.log_prob(batch.x).mean(0)
        rate = posterior.rate()
        return Terms(self.loss(distortion.mean(), rate.mean(0), step), distortion, rate, posterior, distribution)
