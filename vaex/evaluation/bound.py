"""The evidence lower bound and its parts over a whole split. Nats per image, means over the split."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.model import Autoencoder
from vaex.objectives import Batch, Objective

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016, section 5.2

ToFloat = Callable[[Tensor], Tensor]  # uint8 batch -> float32 batch
Numbers = dict[str, float | list[float]]
Totals = dict[str, Tensor]  # float64, over images

NOISE_SEED = 1


@dataclass(frozen=True)
class Share:
    """The part of one of `size` processes in an evaluation: every size-th batch from the rank-th on.

    `add_up` gives all of them the totals of all. One that had no batch has none of its own.
    """

    rank: int = 0
    size: int = 1
    add_up: Callable[[Totals], Totals] = lambda totals: totals


ALL = Share()


def images_at_once(images: Images) -> int:
    """A batch for evaluation: 1,000 small images; fewer large ones, whose activations would fill the memory."""
    return max(16, min(1000, 2**20 // images.pixels[0].numel()))


@contextmanager
def fixed_noise(device: torch.device, seed: int = NOISE_SEED) -> Iterator[None]:
    """Same draws every time, and the training's random state left as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def evaluating(model: Autoencoder) -> Iterator[None]:
    """Evaluation mode without gradients; then back to the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def evaluate(
    model: Autoencoder,
    objective: Objective,
    images: Images,
    to_float: ToFloat,
    *,
    corruption: Callable[[Tensor], Tensor] = lambda x: x,
    poll: Callable[[], None] = lambda: None,
    batch_size: int | None = None,
    share: Share = ALL,
) -> Numbers:
    """Every image of the split once, the objective's number of draws of z each, the noise the same in every call.

    Args:
        corruption: of the run. Its numbers stand beside those of clean images.
        poll: called before each batch, as often in every process that shares in this, and may raise to stop.
        batch_size: images times draws of z at once; None for `images_at_once`. Each batch's noise is its own, whoever
            takes it.
        share: the batches of this process; the numbers are those of all.

    Returns:
        distortion, rate, elbo (beta = 1), of clean images; loss (the objective's, fully warmed up, of corrupted images
        where there is a corruption); mse, of the decoder's mean at the posterior's mean against x; where there is a
        corruption, mse_corrupted, of the corrupted image itself, and mse_restored, of its reconstruction, both against
        the clean x; posterior_std; likelihood_scale, where there is one; active_units (latents whose
        posterior mean has a variance above 0.01 over the split); rate_per_latent; effective_<error>, the weight that
        the rate would have beside that mean error (see Likelihood.mean_error_weight), at the objective's beta. Without
        a posterior distribution only those that have a meaning.
    """
    device = model.device
    batch_size = max(1, (batch_size or images_at_once(images)) // objective.samples)
    starts = range(0, len(images), batch_size)
    totals: Totals = {}

    def add(name: str, value: Tensor) -> None:
        totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64, device=device)) + value.double()

    with evaluating(model), fixed_noise(device):
        for number in range(share.rank, len(starts) + share.rank, share.size):
            poll()
            if number >= len(starts):
                continue  # the last round has a batch for some
            torch.manual_seed(NOISE_SEED + number)
            rows = images[starts[number] : starts[number] + batch_size].to(device)
            x, labels = to_float(rows.pixels), rows.labels
            terms = objective(model, Batch(x, x, labels), None)
            posterior, distribution = terms.posterior, terms.distribution
            at_mean = model.decode(posterior.mean, labels, x) if model.stochastic else distribution
            add("distortion", terms.distortion.sum())
            add("mse", _mean_squared_error(at_mean.mean, x))
            corrupted = corruption(x)
            if corrupted is not x:
                terms = objective(model, Batch(x, corrupted, labels), None)
                restored = model.decode(terms.posterior.mean, labels, x).mean
                add("mse_corrupted", _mean_squared_error(corrupted, x))
                add("mse_restored", _mean_squared_error(restored, x))
            add("loss", terms.loss * len(x))
            add("code", posterior.mean.double().sum(0))
            add("code_squared", posterior.mean.double().square().sum(0))
            if model.stochastic:
                add("rate_per_latent", posterior.rate().double().sum(0))
                add("posterior_std", posterior.std.mean(1).sum())
            scale = getattr(distribution, "scale", None)
            if scale is not None:
                add("likelihood_scale", scale.mean() * len(x))
            weight = model.likelihood.mean_error_weight(distribution)
            if weight is not None:
                add("weight", weight * len(x))

    means = {name: total / len(images) for name, total in share.add_up(totals).items()}
    rate_per_latent = means.pop("rate_per_latent", None)
    variance = means.pop("code_squared") - means.pop("code").square()
    weight = means.pop("weight", None)
    numbers: Numbers = {name: value.item() for name, value in means.items()}
    if rate_per_latent is not None:
        rate = rate_per_latent.sum()
        numbers |= {
            "rate": rate.item(),
            "elbo": -(means["distortion"] + rate).item(),
            "active_units": int((variance > ACTIVE_UNIT_VARIANCE).sum().item()),
            "rate_per_latent": rate_per_latent.tolist(),
        }
    beta = getattr(objective, "beta", None)
    if beta is not None and weight is not None:
        numbers[f"effective_{model.likelihood.mean_error}"] = (beta / weight).item()
    return numbers


def _mean_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """The mean over pixels and channels, summed over the images."""
    return (a - b).square().mean(dim=(1, 2, 3)).sum()
