"""Importance-weighted estimate of -log p(x), Burda et al. 2016, eq. 8. Nats per image, mean over the split.

For each image, log p̂(x) = logsumexp_k [log p(x|z_k) + log p(z_k) - log q(z_k|x)] - log K with z_k ~ q(z|x). Its
expectation grows with K towards log p(x) and never exceeds it: with finitely many samples the NLL is biased upwards.
"""

import math

import torch
from torch import Tensor
from tqdm import tqdm

from vaex.data.noise import normal
from vaex.evaluation.measure import Evaluation
from vaex.evaluation.split import ToFloat, batches
from vaex.model import Autoencoder, Posterior, log_prior_over_posterior


def importance_nll(evaluation: Evaluation, to_float: ToFloat, samples: int) -> tuple[float, float]:
    """The mean over test images of -log p̂(x), with noise that is the same in every call, and its standard error.

    The standard error is that over images; it does not cover the bias of a finite K, and is nan for one image. Every K
    scores the same x, and the samples of a smaller K are the first of a larger one.

    Args:
        samples: K >= 1. `evaluation.batch_size` is the number of images times samples that are decoded at once, and
            `evaluation.poll` is called before each decoding.
    """
    model, images, batch_size = evaluation.model, evaluation.images, evaluation.batch_size
    total, title, nll = len(images) * samples, evaluation.title, []
    with tqdm(total=total, desc=title, unit=" samples", unit_scale=True, disable=None, leave=False) as bar:
        for batch in batches(model, images, to_float, batch_size=batch_size):
            x, labels = batch.x, batch.labels
            posterior = model.encode(x, labels)
            # Log-weights are float32, as the likelihood is, but the sum over thousands of them is float64.
            log_sum = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
            remaining = samples
            while remaining:
                evaluation.poll()
                chunk = min(remaining, max(1, batch_size // len(x)))
                log_weights = _log_weights(model, posterior, x, labels, chunk).double()
                log_sum = torch.logaddexp(log_sum, log_weights.logsumexp(0))
                remaining -= chunk
                bar.update(chunk * len(x))
            nll.append(math.log(samples) - log_sum)
    per_image = torch.cat(nll)
    stderr = per_image.std().item() / math.sqrt(len(per_image)) if len(per_image) > 1 else math.nan
    return per_image.mean().item(), stderr


def _log_weights(model: Autoencoder, posterior: Posterior, x: Tensor, labels: Tensor, samples: int) -> Tensor:
    """log p(x|z) + log p(z) - log q(z|x) at new samples of z, [samples, B]."""
    noise = normal(samples, *posterior.mean.shape, device=x.device)
    z = posterior.at(noise)
    return model.decode(z, labels, x).log_prob(x) + log_prior_over_posterior(z, posterior.log_var, noise)
