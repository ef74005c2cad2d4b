"""The importance-weighted autoencoder."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from vaex.latents.posterior import DiagonalGaussian
from vaex.model import Autoencoder, Latents
from vaex.objectives.base import Batch, Objective, Terms, at_least_one

# The smallest weight of a sample in the decoder's gradient; the gradients of its layers are still normal numbers.
SMALLEST_WEIGHT = 1e-20


class IWAE(Objective):
    """-log (1/K) Σ_k w_k with w_k = p(x|z_k) p(z_k) / q(z_k|x). Burda et al. 2016, eq. 8.

    The gradient is that of the bound, through the reparametrized z. With `doubly_reparametrized` the encoder's gradient
    is Tucker et al. 2019, eq. 8: Σ_k w̃_k² ∂log w_k/∂z_k ∂z_k/∂φ, where w̃ are the normalized weights and the density of
    q is held fixed. Both have the same expectation; the second costs another pass through the decoder.

    With `groups` the loss is the mean of that many such bounds, each from K samples of its own (MIWAE). With `elbo` it
    is elbo · (-ELBO) + (1 - elbo) · that mean, with the ELBO of the same samples (CIWAE). Both raise the signal of
    the encoder's gradient. Rainforth et al. 2018, section 5.

    With `partial` (PIWAE, in the same section) the encoder is trained on the mean of the groups' bounds. The decoder
    and a learned prior are trained on the one bound of all groups' samples, which is tighter, and which is the value of
    the loss. This costs another pass through the decoder.

    The distortion in the terms is the mean over samples, so that the ELBO of the terms is the model's ELBO, as
    objective=vae reports it.

    Args:
        samples: K, the number of samples of z for each image and group.
        doubly_reparametrized: whether to use the doubly reparametrized gradient.
        groups: number of bounds whose mean is taken.
        elbo: weight of the ELBO, from 0 to 1.
        partial: whether the decoder is trained on a bound of its own.

    Raises:
        ValueError: if a value is out of range, or two of the options exclude each other.
    """

    stochastic = True
    weighs_samples = True

    def __init__(
        self,
        *,
        samples: int,
        doubly_reparametrized: bool,
        groups: int = 1,  # older runs have no value for this and the next
        elbo: float = 0.0,
        partial: bool = False,
    ) -> None:
        super().__init__()
        if groups < 1:
            raise ValueError(f"objective.groups={groups}: must be >= 1")
        if not 0 <= elbo <= 1:
            raise ValueError(f"objective.elbo={elbo}: must be from 0 to 1")
        if elbo and doubly_reparametrized:
            raise ValueError("objective.doubly_reparametrized=true: is a gradient of the bound without objective.elbo")
        if partial and (elbo or doubly_reparametrized):
            raise ValueError(
                "objective.partial=true: is another gradient than those of objective.elbo and "
                "objective.doubly_reparametrized; leave them out"
            )
        if partial and groups == 1:
            raise ValueError("objective.partial=true: is the plain bound with objective.groups=1; use several groups")
        self.groups, self.elbo, self.partial = groups, elbo, partial
        bounds = (
            f"the mean of {groups} bounds of {samples} samples of z each" if groups > 1 else f"{samples} samples of z"
        )
        if partial:
            bounds = f"encoder: {bounds}; decoder: one bound of all {groups * samples}"
        self.formula = f"importance-weighted, {bounds}" + (f", and {elbo:g} · ELBO" if elbo else "")
        self.formula += ", doubly reparametrized gradient" if doubly_reparametrized else ""
        self.needs_diagonal, self.separates_decoder = doubly_reparametrized, partial
        self.samples, self.doubly_reparametrized = groups * at_least_one(samples), doubly_reparametrized

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor | None) -> Terms:
        latents = model.infer(batch.input, batch.labels, batch.noise(self.samples, model.latent_dim))
        posterior = latents.posterior
        if self.partial:
            return self._partial(model, batch, latents)
        if not self.doubly_reparametrized:
            distribution = model.decode_latents(latents, batch.labels, batch.x)
        else:
            assert isinstance(posterior, DiagonalGaussian)  # `needs_diagonal`
            with torch.no_grad():
                log_likelihood = model.decode(latents.z, batch.labels, batch.x).log_prob(batch.x)
                weights = self._grouped(log_likelihood + latents.log_ratio()).softmax(1).flatten(0, 1)
            z = latents.z
            z = z.detach() + weights[..., None] * (z - z.detach())  # the value of z, with its gradient times w̃
            # q is held fixed, and the noise is computed from z alone.
            fixed = DiagonalGaussian(posterior.mean.detach(), posterior.log_var.detach())
            noise = latents.noise + (z - z.detach()) / fixed.std
            latents = replace(latents, posterior=fixed, z=z, noise=noise, known_log_ratio=None)
            distribution = model.decode(latents.z, batch.labels, batch.x)
        log_likelihood = distribution.log_prob(batch.x)
        log_weights = log_likelihood + latents.log_ratio()  # [groups · K, B]
        grouped = self._grouped(log_weights)
        bound = (torch.logsumexp(grouped, dim=1) - math.log(grouped.shape[1])).mean()
        if self.elbo:
            bound = self.elbo * log_weights.mean() + (1 - self.elbo) * bound
        return Terms(-bound, -log_likelihood.mean(0), latents.rate, posterior, distribution)

    def _partial(self, model: Autoencoder, batch: Batch, latents: Latents) -> Terms:
        """Gradients of one bound for the decoder and of the mean of the groups' bounds for the encoder."""
        z, log_ratio = latents.z, latents.log_ratio()
        log_q = latents.prior.log_prob(z) - log_ratio
        with torch.no_grad():
            log_weights = model.decode(z, batch.labels, batch.x).log_prob(batch.x) + log_ratio
            of_encoder = self._grouped(log_weights).softmax(1).flatten(0, 1) / self.groups
            of_decoder = log_weights.softmax(0).clamp(min=SMALLEST_WEIGHT)
        # The decoder's gradient has the weights `of_decoder`, and becomes one with `of_encoder` as it goes on into z.
        z = z.detach() + (of_encoder / of_decoder)[..., None] * (z - z.detach())
        distribution = model.decode(z, batch.labels, batch.x)
        log_likelihood = distribution.log_prob(batch.x)
        gradients = of_decoder * (log_likelihood + latents.prior.log_prob(z)) - of_encoder * log_q
        gradients = gradients.sum(0).mean()
        bound = (torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))).mean()
        loss = -(bound + gradients - gradients.detach())
        return Terms(loss, -log_likelihood.mean(0), latents.rate, latents.posterior, distribution)

    def _grouped(self, log_weights: Tensor) -> Tensor:
        """[groups · K, B] -> [groups, K, B]."""
        return log_weights.view(self.groups, -1, log_weights.shape[1])
