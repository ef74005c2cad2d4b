"""The importance-weighted autoencoder."""

import math

import torch
from torch import Tensor

from vaex.model import Autoencoder, log_prior_over_posterior
from vaex.objectives.base import Batch, Objective, Terms, at_least_one


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
        self.samples, self.doubly_reparametrized = at_least_one(samples), doubly_reparametrized

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
