"""Objectives: functions of a model and a batch that return the loss and its terms. Nats per image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaex.data.noise import normal
from vaex.likelihoods.base import PixelDistribution
from vaex.model import Autoencoder, Posterior, log_prior_over_posterior


@dataclass(frozen=True)
class Batch:
    """Images on the device, or one process's part of them.

    Attributes:
        x: the images that are scored, [B, C, H, W] float32 in [0, 1].
        input: the encoder's input, [B, C, H, W]; x itself unless it is corrupted.
        labels: [B] int64.
        start: index of the first image within the whole batch.
        whole_size: number of images in the whole batch; None if this is the whole batch.
    """

    x: Tensor
    input: Tensor
    labels: Tensor
    start: int = 0
    whole_size: int | None = None

    def part(self, number: int, parts: int) -> "Batch":
        """Part `number` of `parts` equal parts, with the images in order."""
        size = len(self.x) // parts
        rows = slice(number * size, (number + 1) * size)
        return Batch(self.x[rows], self.input[rows], self.labels[rows], rows.start, len(self.x))

    def noise(self, samples: int, latent_dim: int) -> Tensor:
        """Samples from N(0, 1), [samples, B, latent_dim].

        A part draws noise for the whole batch and keeps its own rows, so that the noise of an image does not depend on
        the number of parts.
        """
        noise = normal(samples, self.whole_size or len(self.x), latent_dim, device=self.x.device)
        return noise[:, self.start : self.start + len(self.x)]


@dataclass(frozen=True)
class Terms:
    """The terms of an objective for a batch of B images.

    Attributes:
        loss: the scalar that is minimized, [].
        distortion: -E_q log p(x|z), [B].
        rate: KL(q(z|x) || p(z)) of each latent, [B, latent_dim]; None without a posterior distribution.
        posterior: q(z|x).
        distribution: p(x|z), with batch shape [samples, B], or [B] without a posterior distribution.
    """

    loss: Tensor
    distortion: Tensor
    rate: Tensor | None
    posterior: Posterior
    distribution: PixelDistribution


class Objective(nn.Module):
    """Base class of objectives.

    Attributes:
        stochastic: whether the encoder must return a distribution.
        samples: number of samples of z for each image.
        weighs_samples: whether samples of z are weighted by p(x|z), which then may not be computed from x itself.
        linear_in_batch: whether the loss of a batch is the mean of the losses of its equal parts.
        beta: weight of the rate, []; None for an objective without such a weight.
    """

    stochastic: bool
    samples: int = 1
    weighs_samples: bool = False
    linear_in_batch: bool = True
    beta: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("beta", None, persistent=False)

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor | None) -> Terms:
        """The terms of a batch.

        Args:
            model: on the batch's device.
            batch: B images.
            step: number of optimizer steps taken so far, []; None to evaluate with every warm-up completed.
        """
        raise NotImplementedError


class AE(Objective):
    """Deterministic autoencoder: the loss is the distortion of the code, under any likelihood."""

    stochastic = False

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor | None) -> Terms:
        code = model.encode(batch.input, batch.labels)
        distribution = model.decode(code.mean, batch.labels, batch.x)
        distortion = -distribution.log_prob(batch.x)
        return Terms(distortion.mean(), distortion, None, code, distribution)


class VAE(Objective):
    """distortion + beta · rate. Kingma & Welling 2014, eq. 7 (beta = 1); Higgins et al. 2017, eq. 4.

    Args:
        beta: weight of the rate.
        samples: number of Monte Carlo samples of z for each image.
        warmup: number of steps over which beta grows linearly from 0; 0 for no warm-up.
        free_bits: rate of each latent in nats, averaged over the batch, up to which it is not penalized. Kingma et al.
            2016, eq. 15.

    Raises:
        ValueError: if a value is out of range.
    """

    stochastic = True
    beta: Tensor

    def __init__(self, *, beta: float, samples: int, warmup: int, free_bits: float) -> None:
        super().__init__()
        self.samples = _at_least_one(samples)
        if warmup < 0:
            raise ValueError(f"objective.warmup={warmup}: must be >= 0 optimizer steps")
        if not (math.isfinite(free_bits) and free_bits >= 0):
            raise ValueError(f"objective.free_bits={free_bits}: must be a finite number >= 0, in nats for each latent")
        self.register_buffer("beta", torch.tensor(beta), persistent=False)
        self.warmup, self.free_bits = warmup, free_bits
        self.linear_in_batch = free_bits == 0  # free bits clamp the mean rate of the whole batch

    def loss(self, distortion: Tensor, rate: Tensor, step: Tensor | None = None) -> Tensor:
        """The loss [] of a mean distortion [] and the mean rate of each latent [latent_dim]."""
        beta = self.beta
        if self.warmup and step is not None:
            beta = beta * (step / self.warmup).clamp(max=1)
        if self.free_bits:
            rate = rate.clamp(min=self.free_bits)
        return distortion + beta * rate.sum()

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor | None) -> Terms:
        posterior = model.encode(batch.input, batch.labels)
        z = posterior.at(batch.noise(self.samples, model.latent_dim))  # [L, B, latent_dim]
        distribution = model.decode(z, batch.labels, batch.x)
        distortion = -distribution.log_prob(batch.x).mean(0)
        rate = posterior.rate()
        return Terms(self.loss(distortion.mean(), rate.mean(0), step), distortion, rate, posterior, distribution)


class IWAE(Objective):
    """-log (1/K) Σ_k w_k with w_k = p(x|z_k) p(z_k) / q(z_k|x). Burda et al. 2016, eq. 8.

    The gradient is that of the bound, through the reparametrized z. With `doubly_reparametrized` the encoder's gradient
    is Tucker et al. 2019, eq. 8: Σ_k w̃_k² ∂log w_k/∂z_k ∂z_k/∂φ, where w̃ are the normalized weights and the density of
    q is held fixed. Both have the same expectation; the second costs another pass through the decoder.

    The distortion in the terms is the mean over samples, so that the ELBO of the terms is the model's ELBO, as
    objective=vae reports it.

    Args:
        samples: K, the number of samples of z for each image.
        doubly_reparametrized: whether to use the doubly reparametrized gradient.

    Raises:
        ValueError: if samples < 1.
    """

    stochastic = True
    weighs_samples = True

    def __init__(self, *, samples: int, doubly_reparametrized: bool) -> None:
        super().__init__()
        self.samples, self.doubly_reparametrized = _at_least_one(samples), doubly_reparametrized

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor | None) -> Terms:
        posterior = model.encode(batch.input, batch.labels)
        noise = batch.noise(self.samples, model.latent_dim)
        z = posterior.at(noise)  # [K, B, latent_dim]
        log_var, standardized = posterior.log_var, noise
        if self.doubly_reparametrized:
            with torch.no_grad():
                log_likelihood = model.decode(z, batch.labels, batch.x).log_prob(batch.x)
                weights = torch.softmax(log_likelihood + log_prior_over_posterior(z, log_var, noise), dim=0)
            z = z.detach() + weights[..., None] * (z - z.detach())  # the value of z, with its gradient times w̃
            log_var = log_var.detach()
            standardized = noise + (z - z.detach()) / posterior.std.detach()  # the noise, from z alone
        distribution = model.decode(z, batch.labels, batch.x)
        log_likelihood = distribution.log_prob(batch.x)
        log_weights = log_likelihood + log_prior_over_posterior(z, log_var, standardized)  # [K, B]
        bound = torch.logsumexp(log_weights, dim=0) - math.log(self.samples)
        return Terms(-bound.mean(), -log_likelihood.mean(0), posterior.rate(), posterior, distribution)


def _at_least_one(samples: int) -> int:
    if samples < 1:
        raise ValueError(f"objective.samples={samples}: must be >= 1")
    return samples
