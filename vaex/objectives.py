"""What is minimised. An objective takes a model and a batch and returns `Terms`. Nats per image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaex.likelihoods.base import PixelDistribution
from vaex.model import Autoencoder, Posterior, log_prior_over_posterior


@dataclass(frozen=True)
class Batch:
    x: Tensor  # [B, C, H, W] float32 in [0, 1]: what is scored
    input: Tensor  # [B, C, H, W]: what the encoder sees; x itself unless corrupted
    labels: Tensor  # [B] int64
    first: int = 0  # of a part: place of these images in the whole batch
    whole: int | None = None  # of a part: images in the whole batch

    def part(self, number: int, parts: int) -> "Batch":
        """One of as many equal parts, the images in order."""
        size = len(self.x) // parts
        rows = slice(number * size, (number + 1) * size)
        return Batch(self.x[rows], self.input[rows], self.labels[rows], rows.start, len(self.x))

    def noise(self, samples: int, latent_dim: int) -> Tensor:
        """Draws from N(0, 1), [samples, B, latent_dim]. A part draws for the whole batch, and takes its own."""
        drawn = torch.randn(samples, self.whole or len(self.x), latent_dim, device=self.x.device)
        return drawn[:, self.first : self.first + len(self.x)]


@dataclass(frozen=True)
class Terms:
    loss: Tensor  # []: minimised
    distortion: Tensor  # [B]: -E_q log p(x|z)
    rate: Tensor | None  # [B, latent_dim]: KL(q(z|x) || p(z)) of each latent; None without a posterior
    posterior: Posterior
    distribution: PixelDistribution  # p(x|z), batch shape [samples, B]


class Objective(nn.Module):
    """Base of all objectives.

    Attributes:
        stochastic: whether the encoder must give a distribution.
        samples: draws of z for each image.
    """

    stochastic: bool
    samples: int = 1

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor | None) -> Terms:
        """`step`: taken so far, []. None: with everything warmed up, as in evaluation."""
        raise NotImplementedError


class AE(Objective):
    """Deterministic autoencoder under any likelihood: the distortion of the code."""

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
        self.samples = _at_least_one(samples)
        if warmup < 0:
            raise ValueError(f"objective.warmup={warmup}: must be >= 0 optimizer steps")
        if not (math.isfinite(free_bits) and free_bits >= 0):
            raise ValueError(f"objective.free_bits={free_bits}: must be a finite number >= 0, in nats for each latent")
        self.register_buffer("beta", torch.tensor(beta), persistent=False)
        self.warmup, self.free_bits = warmup, free_bits

    def loss(self, distortion: Tensor, rate: Tensor, step: Tensor | None = None) -> Tensor:
        """Mean distortion [] and mean rate of each latent [latent_dim] -> []."""
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

    The gradient is that of the bound through the reparametrised z; or, for the encoder, the doubly reparametrised one,
    Tucker et al. 2019, eq. 8: Σ_k w̃_k² ∂log w_k/∂z_k ∂z_k/∂φ with w̃ the normalised weights, q's density held fixed. The
    two have one expectation; the second costs another pass through the decoder.

    The terms' distortion is the mean over the draws, so that their ELBO is the model's, as an objective=vae reports it.

    Args:
        samples: K, draws of z for each image.
        doubly_reparametrized: which gradient.

    Raises:
        ValueError: samples < 1.
    """

    stochastic = True

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
            z = z.detach() + weights[..., None] * (z - z.detach())  # z itself, its gradient times w̃
            log_var = log_var.detach()
            standardized = noise + (z - z.detach()) / posterior.std.detach()  # the noise, as a function of z alone
        distribution = model.decode(z, batch.labels, batch.x)
        log_likelihood = distribution.log_prob(batch.x)
        log_weights = log_likelihood + log_prior_over_posterior(z, log_var, standardized)  # [K, B]
        bound = torch.logsumexp(log_weights, dim=0) - math.log(self.samples)
        return Terms(-bound.mean(), -log_likelihood.mean(0), posterior.rate(), posterior, distribution)


def _at_least_one(samples: int) -> int:
    if samples < 1:
        raise ValueError(f"objective.samples={samples}: must be >= 1")
    return samples
