"""The evidence lower bound and its parts over a whole split. Nats per image, means over the split."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.evaluation.measure import Evaluation, Measurement
from vaex.evaluation.metric import Metric
from vaex.evaluation.reconstruction import MSE, image_mse
from vaex.evaluation.split import ALL, Share, ToFloat, Totals, batches, images_at_once
from vaex.model import Autoencoder
from vaex.objectives import Batch, Objective

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016, section 5.2

Numbers = dict[str, float | list[float]]


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
    """Means over all images, with the objective's number of samples of z and the same noise in every call.

    Args:
        corruption: the run's corruption. Its numbers are returned beside those of clean images.
        poll: called before each batch, equally often in all processes of `share`; may raise to stop.
        batch_size: images times samples of z in a batch; None for `images_at_once`. The noise of a batch does not
            depend on the process that evaluates it.
        share: the batches of this process; the result covers all batches.

    Returns:
        distortion, rate, elbo (beta = 1) and mse (of the decoder's mean at the posterior's mean) of clean images; loss
        (the objective's, with its warm-up completed; of corrupted images if there is a corruption); with a corruption
        also mse_corrupted (of the corrupted image) and mse_restored (of its reconstruction), both against the clean x;
        posterior_std; likelihood_scale; active_units (latents whose posterior mean has a variance above 0.01 over the
        split); rate_per_latent; and effective_<error>, the weight of the rate if the distortion were written as that
        mean error (see Likelihood.mean_error_weight). Values that do not exist for the model are left out.
    """
    batch_size = max(1, (batch_size or images_at_once(images)) // objective.samples)
    totals: Totals = {}

    def add(name: str, value: Tensor) -> None:
        totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64, device=value.device)) + value.double()

    # Each batch is seeded by its number: its noise must not depend on the process that has it.
    split = batches(model, images, to_float, batch_size=batch_size, seed_stride=1, poll=poll, share=share)
    for batch in split:
        x, labels = batch.x, batch.labels
        terms = objective(model, Batch(x, x, labels), None)
        posterior, distribution = terms.posterior, terms.distribution
        at_mean = model.decode(posterior.mean, labels, x) if model.stochastic else distribution
        add("distortion", terms.distortion.sum())
        add("mse", image_mse(at_mean.mean - x).sum())
        corrupted = corruption(x)
        if corrupted is not x:
            terms = objective(model, Batch(x, corrupted, labels), None)
            restored = model.decode(terms.posterior.mean, labels, x).mean
            add("mse_corrupted", image_mse(corrupted - x).sum())
            add("mse_restored", image_mse(restored - x).sum())
        add("loss", terms.loss * len(x))
        add("code", posterior.mean.double().sum(0))
        add("code_squared", posterior.mean.double().square().sum(0))
        if model.stochastic:
            add("rate_per_latent", posterior.rate().double().sum(0))
            add("posterior_std", posterior.std.mean(1).sum())
        if distribution.scale is not None:
            add("likelihood_scale", distribution.scale.mean() * len(x))
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
    if objective.beta is not None and weight is not None:
        numbers[f"effective_{model.likelihood.mean_error}"] = (objective.beta / weight).item()
    return numbers


def as_results(numbers: Numbers) -> dict[str, Any]:
    """What `evaluate` returns of a test split, under the keys of results.json."""
    return {("beta/" if name.startswith("effective_") else "test/") + name: value for name, value in numbers.items()}


def evaluate_pixels(evaluation: Evaluation, to_float: ToFloat, **options: Any) -> Numbers:
    """`evaluate` on the test split, with x from `to_float`."""
    # The noise depends on the batch size. No larger batch than in `vaex train`, so that its numbers come out again.
    batch_size = min(evaluation.batch_size, images_at_once(evaluation.images))
    model, objective, images = evaluation.model, evaluation.objective, evaluation.images
    return evaluate(model, objective, images, to_float, batch_size=batch_size, poll=evaluation.poll, **options)


def _bound(evaluation: Evaluation) -> dict[str, Any]:
    return as_results(evaluate_pixels(evaluation, evaluation.dataset.to_float, corruption=evaluation.corruption))


# ELBO, rate and distortion of x as the run is trained on it. Tables compare those of the image (see bits.py).
BOUND = Measurement(
    _bound,
    (
        Metric("test/elbo", "elbo", "nats", 2, "higher", None, column=""),
        Metric("test/rate", "rate", "nats", 2, None, None, column=""),
        Metric("test/distortion", "distortion", "nats", 2, None, None, column=""),
        Metric("test/loss", "loss", "nats", 2, None, None, column=""),
        MSE,
        Metric("test/mse_corrupted", "mse corrupted", digits=5, comparable=None, column=""),
        Metric("test/mse_restored", "mse restored", digits=5, better="lower", column=""),
        Metric("test/active_units", "active units", digits=0, column="AU"),
    ),
)
