"""Importance-weighted estimate of -log p(x), Burda et al. 2016, eq. 8. Nats per image, mean over the split.

For each image, log p̂(x) = logsumexp_k [log p(x|z_k) + log p(z_k) - log q(z_k|x)] - log K with z_k ~ q(z|x). Its
expectation grows with K towards log p(x) and never exceeds it: with finitely many samples the NLL is biased upwards.
How much depends on q. Papers draw from the encoder's; a q that is fitted to each image needs fewer samples (Cremer et
al. 2018 measure how far an encoder is from it).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vaex.data.noise import normal
from vaex.evaluation.measure import Evaluation
from vaex.evaluation.split import ToFloat, batches
from vaex.latents.posterior import DiagonalGaussian, FullGaussian, Posterior
from vaex.latents.prior import LatentDistribution
from vaex.model import Autoencoder

FIT_STEPS = 200  # of Adam
FIT_RATE = 0.2  # its learning rate, which falls linearly to 0, in standard deviations of the encoder's q
FIT_SAMPLES = 4  # of z in each step: two, and two with the opposite noise
FIT_DECODINGS = (FIT_STEPS + 2) * FIT_SAMPLES  # of each image, with those that compare the fit with the encoder's q


class Estimate(NamedTuple):
    """A mean over images of -log p̂(x), in nats."""

    nll: float
    stderr: float  # over images; nan for one image. It does not cover the bias of finitely many samples.
    halving: float  # how much higher the mean is with half the samples, which shows that bias; nan for one sample


def importance_nll(evaluation: Evaluation, to_float: ToFloat, samples: int, *, fitted: bool = False) -> Estimate:
    """The mean over test images of -log p̂(x), with noise that is the same in every call.

    Every K scores the same x, and the samples of a smaller K are the first of a larger one.

    Args:
        samples: K >= 1. `evaluation.batch_size` is the number of images times samples that are decoded at once, and
            `evaluation.poll` is called before each decoding. A fit decodes at least FIT_SAMPLES at once.
        fitted: whether to draw from a q that is fitted to each image (see `fit`), for which the encoder's must have
            independent latents; otherwise from the encoder's.
    """
    model, images, batch_size = evaluation.model, evaluation.images, evaluation.batch_size
    total, title, estimates = len(images) * (samples + fitted * FIT_DECODINGS), evaluation.title, []
    at_once = max(1, min(batch_size // FIT_SAMPLES, 2**24 // model.latent_dim**2)) if fitted else batch_size
    with tqdm(total=total, desc=title, unit=" samples", unit_scale=True, disable=None, leave=False) as bar:

        def decoding(count: int) -> None:
            evaluation.poll()
            bar.update(count)

        for batch in batches(model, images, to_float, batch_size=at_once):
            x, labels = batch.x, batch.labels
            posterior, prior = model.encode(x, labels), model.latent_prior()
            if fitted:
                assert isinstance(posterior, DiagonalGaussian)
                posterior = fit(model, posterior, x, labels, partial(decoding, FIT_SAMPLES * len(x)))
            # Log-weights are float32, as the likelihood is, but the sum over thousands of them is float64.
            log_sum = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
            drawn, half = 0, max(1, samples // 2)
            log_sum_of_half = log_sum
            while drawn < samples:
                chunk = min((half if drawn < half else samples) - drawn, max(1, batch_size // len(x)))
                decoding(chunk * len(x))
                noise = normal(chunk, len(x), model.latent_dim, device=x.device)
                log_weights = _log_weights(model, prior, posterior, x, labels, noise).double()
                log_sum = torch.logaddexp(log_sum, log_weights.logsumexp(0))
                drawn += chunk
                if drawn == half:
                    log_sum_of_half = log_sum
            estimates.append(torch.stack([math.log(samples) - log_sum, math.log(half) - log_sum_of_half]))
    nll, nll_of_half = torch.cat(estimates, dim=1)
    stderr = nll.std().item() / math.sqrt(len(nll)) if len(nll) > 1 else math.nan
    halving = (nll_of_half - nll).mean().item() if samples > 1 else math.nan
    return Estimate(nll.mean().item(), stderr, halving)


def _log_weights(
    model: Autoencoder,
    prior: LatentDistribution,
    posterior: Posterior,
    x: Tensor,
    labels: Tensor,
    noise: Tensor,
) -> Tensor:
    """log p(x|z) + log p(z) - log q(z|x), [samples, B], for noise [samples, B, latent_dim]."""
    z, output = posterior.at(noise), posterior.output(noise)
    distribution = model.decode(z, labels, x) if output is None else model.distribution(output, x)
    return distribution.log_prob(x) + prior.log_ratio(posterior, z, noise)


def fit(
    model: Autoencoder, posterior: DiagonalGaussian, x: Tensor, labels: Tensor, before_decoding: Callable[[], None]
) -> FullGaussian:
    """A Gaussian with any covariance for each image, fitted to p(z|x) by maximizing the ELBO from the encoder's q.

    It is made somewhat wider than that, because importance weights vary more if q is narrower than p(z|x) than if it is
    wider. An image for which the encoder's q has the higher ELBO keeps that. Samples that are drawn later are not those
    of the fit, so that importance weights with this q still give a bound.

    Args:
        posterior: of the encoder for x [B, C, H, W].
        before_decoding: called before each decoding of FIT_SAMPLES samples of z for each image.
    """
    mean, std, latent_dim = posterior.mean, posterior.std, posterior.mean.shape[1]
    prior = model.latent_prior()
    shift, log_scale = torch.zeros_like(mean), torch.zeros_like(mean)
    below = torch.zeros(*mean.shape, latent_dim, device=mean.device)

    def current(factor_of_variances: float = 1) -> FullGaussian:
        factor = (torch.diag_embed(log_scale.exp()) + below.tril(-1)) * std[:, :, None] * math.sqrt(factor_of_variances)
        return FullGaussian(mean + std * shift, factor)

    def noise() -> Tensor:
        half = normal(FIT_SAMPLES // 2, *mean.shape, device=mean.device)
        return torch.cat([half, -half])

    def elbo(q: FullGaussian, noise: Tensor) -> Tensor:
        before_decoding()
        return _log_weights(model, prior, q, x, labels, noise).mean(0)

    parameters = [parameter.requires_grad_() for parameter in (shift, log_scale, below)]
    optimizer = torch.optim.Adam(parameters, lr=FIT_RATE, betas=(0.9, 0.99))
    with torch.enable_grad():
        for step in range(FIT_STEPS):
            optimizer.param_groups[0]["lr"] = FIT_RATE * (1 - step / FIT_STEPS)
            loss = -elbo(current(), noise()).sum()
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()
    fitted, encoder = current(width(latent_dim)), FullGaussian(mean, torch.diag_embed(std))
    common = noise()
    better = elbo(fitted, common) > elbo(encoder, common)  # False for a fit that is not finite
    return FullGaussian(
        torch.where(better[:, None], fitted.mean, encoder.mean),
        torch.where(better[:, None, None], fitted.factor, encoder.factor),
    )


def width(latent_dim: int) -> float:
    """The factor of the fitted variances: 1.2 for 20 latents, and less for more of them, whose costs add up."""
    return 1 + 0.9 / math.sqrt(latent_dim)
