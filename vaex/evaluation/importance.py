"""Importance-weighted estimate of -log p(x), Burda et al. 2016, eq. 8. Nats per image, mean over the split.

For each image, log p̂(x) = logsumexp_k [log p(x|z_k) + log p(z_k) - log q(z_k|x)] - log K with z_k ~ q(z|x). Its
expectation grows with K towards log p(x) and never passes it: but for noise, the NLL given here errs upwards only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from vaex.data.dataset import Images
from vaex.evaluation.bound import ToFloat, evaluating, fixed_noise
from vaex.model import Autoencoder, log_prior_over_posterior


@dataclass(frozen=True)
class ImportanceEstimate:
    nll: float  # mean over images of -log p̂(x)
    stderr: (
        float  # of that mean, over images; the bias of a finite K is not in it, and only raises `nll`. nan for 1 image
    )
    elbo: float  # mean log weight of the same draws: the bound of K = 1
    samples: int  # K


def importance_nll(
    model: Autoencoder,
    images: Images,
    to_float: ToFloat,
    *,
    samples: int,
    batch_size: int = 1000,
    seed: int = 1,
    description: str | None = None,
    poll: Callable[[], None] = lambda: None,
) -> ImportanceEstimate:
    """Every image of the split once, with `samples` draws of z each. The noise is the same in every call.

    Log-weights are float32, as the likelihood is; their running sum is float64, so that thousands of them lose nothing.
    What `to_float` draws depends on the image and `batch_size`, not on `samples`: every K scores the same x.

    Args:
        samples: K; any number, above or below `batch_size`.
        batch_size: images times samples decoded at once.
        description: shown on the progress bar.
        poll: called before each decoding, and may raise to stop.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}: must be >= 1 draw of z for each image")
    device = model.device
    nll, elbo = [], []
    bar = tqdm(
        total=len(images) * samples,
        desc=description,
        unit=" draws",
        unit_scale=True,
        disable=None,
        leave=False,
        dynamic_ncols=True,
    )
    with bar, evaluating(model), fixed_noise(device):
        for start in range(0, len(images), batch_size):
            torch.manual_seed(seed + start)
            batch = images[start : start + batch_size].to(device)
            x, labels = to_float(batch.pixels), batch.labels
            posterior = model.encode(x, labels)
            log_sum = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=device)
            total = torch.zeros(len(x), dtype=torch.float64, device=device)
            left = samples
            while left:
                poll()
                chunk = min(left, max(1, batch_size // len(x)))
                log_weights = _log_weights(model, posterior.mean, posterior.log_var, x, labels, chunk).double()
                log_sum = torch.logaddexp(log_sum, log_weights.logsumexp(0))
                total += log_weights.sum(0)
                left -= chunk
                bar.update(chunk * len(x))
            nll.append(math.log(samples) - log_sum)
            elbo.append(total / samples)
    per_image = torch.cat(nll)
    count = len(per_image)
    stderr = per_image.std().item() / math.sqrt(count) if count > 1 else math.nan
    return ImportanceEstimate(per_image.mean().item(), stderr, torch.cat(elbo).mean().item(), samples)


def _log_weights(model: Autoencoder, mean: Tensor, log_var: Tensor, x: Tensor, labels: Tensor, samples: int) -> Tensor:
    """log p(x|z) + log p(z) - log q(z|x) at new draws of z, [samples, B]."""
    noise = torch.randn(samples, *mean.shape, device=mean.device)
    z = mean + torch.exp(0.5 * log_var) * noise
    return model.decode(z, labels, x).log_prob(x) + log_prior_over_posterior(z, log_var, noise)
