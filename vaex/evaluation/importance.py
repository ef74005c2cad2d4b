"""Importance-weighted estimate of -log p(x), Burda et al. 2016, eq. 8. Nats per image, mean over the split.

For each image, log p̂(x) = logsumexp_k [log p(x|z_k) + log p(z_k) - log q(z_k|x)] - log K with z_k ~ q(z|x). Its
expectation grows with K towards log p(x) and never exceeds it: with finitely many samples the NLL is biased upwards.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from vaex.data.dataset import Images
from vaex.evaluation.split import ToFloat, batches
from vaex.model import Autoencoder, Posterior, log_prior_over_posterior


def importance_nll(
    model: Autoencoder,
    images: Images,
    to_float: ToFloat,
    *,
    samples: int,
    batch_size: int = 1000,
    title: str | None = None,
    poll: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """The mean over images of -log p̂(x), with noise that is the same in every call, and its standard error.

    The standard error is that over images; it does not cover the bias of a finite K, and is nan for one image. The
    noise of `to_float` depends on the image and on `batch_size`, not on `samples`: every K scores the same x.

    Args:
        samples: K; it may be larger or smaller than `batch_size`.
        batch_size: images times samples decoded at once.
        title: text on the progress bar.
        poll: called before each decoding; may raise to stop.

    Raises:
        ValueError: if samples < 1.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}: must be >= 1 sample of z for each image")
    nll = []
    bar = tqdm(total=len(images) * samples, desc=title, unit=" samples", unit_scale=True, disable=None, leave=False)
    with bar:
        # Each batch is seeded by its first image: the number of samples of other images doesn't change its noise.
        for batch in batches(model, images, to_float, batch_size=batch_size, seed_stride=batch_size):
            x, labels = batch.x, batch.labels
            posterior = model.encode(x, labels)
            # Log-weights are float32, as the likelihood is, but the sum over thousands of them is float64.
            log_sum = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
            remaining = samples
            while remaining:
                poll()
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
    noise = torch.randn(samples, *posterior.mean.shape, device=x.device)
    z = posterior.at(noise)
    return model.decode(z, labels, x).log_prob(x) + log_prior_over_posterior(z, posterior.log_var, noise)
