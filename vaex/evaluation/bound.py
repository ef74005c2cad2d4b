"""The evidence lower bound and its parts over a whole split. Nats per image, means over the split."""

from typing import Any

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.evaluation.measure import Evaluation, Measurement
from vaex.evaluation.metric import Metric
from vaex.evaluation.reconstruction import MSE, image_mse
from vaex.evaluation.split import ALL, Share, ToFloat, Totals, batches, evenly_spaced, images_at_once
from vaex.model import Autoencoder
from vaex.objectives import Batch

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016, section 5.2
SCALE_IMAGES = 10_000  # the relative error of a frozen scale is then below 1e-3, and the images' errors fit in memory

Numbers = dict[str, float | list[float]]


def evaluate(
    evaluation: Evaluation, images: Images | None = None, to_float: ToFloat | None = None, share: Share = ALL
) -> Numbers:
    """Means over all images of a split, with the objective's number of samples of z and the same noise in every call.

    Args:
        images: the split; None for the test split.
        to_float: converts uint8 images to x; None for the run's own conversion.
        share: the batches of this process; the result covers all batches. `poll` is called equally often in all
            processes.

    Returns:
        distortion, rate, elbo (beta = 1) and mse (of the decoder's mean at the posterior's mean) of clean images;
        elbo_stderr, the standard error of the mean ELBO, over images and their noise; of the test split also
        elbo_draw_stderr, the part of it that comes from the samples of z, estimated from a second draw of them; loss
        (the objective's, with its warm-up completed; of corrupted images if there is a corruption); with a corruption
        also mse_corrupted (of the corrupted image) and mse_restored (of its reconstruction), both against the clean x;
        posterior_std; likelihood_scale; active_units (latents whose posterior mean has a variance above 0.01 over a
        split of at least two images); rate_per_latent, if latents have rates of their own; and effective_<error>, the
        weight of the rate if the distortion were written as that mean error (see Likelihood.mean_error_weight). Values
        that do not exist for the model are left out.
    """
    model, objective = evaluation.model, evaluation.objective
    is_test, images = images is None, evaluation.images if images is None else images
    # The loss of a batch may be no mean over its images. Then --batch-size must not change it.
    at_once = evaluation.batch_size if objective.linear_in_batch else images_at_once(images.pixels.shape[1:])
    batch_size = max(1, at_once // objective.samples)
    totals: Totals = {}

    def add(name: str, value: Tensor) -> None:
        totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64, device=value.device)) + value.double()

    to_float, poll = to_float or evaluation.dataset.to_float, evaluation.poll
    split = batches(model, images, to_float, batch_size=batch_size, poll=poll, share=share)
    for batch in split:
        x, labels = batch.x, batch.labels
        terms = objective(model, Batch(x, x, labels, population=len(images)), None)
        posterior, distribution = terms.posterior, terms.distribution
        at_mean = model.decode(posterior.mean, labels, x) if model.stochastic else distribution
        add("distortion", terms.distortion.double().sum())
        add("mse", image_mse(at_mean.mean - x).double().sum())
        if terms.rate is not None:
            rate = terms.rate.double()
            add("rate_of_group", rate.sum(0))
            add("elbo_squared", (terms.distortion + rate.sum(1)).square().sum())
            if is_test:
                again = objective(model, Batch(x, x, labels, population=len(images)), None)  # with other samples of z
                assert again.rate is not None
                difference = (terms.distortion - again.distortion).double() + (rate - again.rate).sum(1)
                add("draw_variance", difference.square().sum() / 2)
        corrupted = evaluation.corruption(x)
        if corrupted is not x:
            terms = objective(model, Batch(x, corrupted, labels, population=len(images)), None)
            restored = model.decode(terms.posterior.mean, labels, x).mean
            add("mse_corrupted", image_mse(corrupted - x).double().sum())
            add("mse_restored", image_mse(restored - x).double().sum())
        add("loss", terms.loss * len(x))
        add("code", posterior.mean.double().sum(0))
        add("code_squared", posterior.mean.double().square().sum(0))
        if model.stochastic and posterior.std is not None:
            add("posterior_std", posterior.std.mean(1).sum())
        scale = distribution.scale
        if scale is not None:
            add("likelihood_scale", scale.mean() * len(x))
        weight = model.likelihood.mean_error_weight(distribution)
        if weight is not None:
            add("weight", weight * len(x))

    means = {name: total / len(images) for name, total in share.add_up(totals).items()}
    rate_of_group = means.pop("rate_of_group", None)
    variance = means.pop("code_squared") - means.pop("code").square()
    weight, elbo_squared, draw_variance = (
        means.pop(name, None) for name in ("weight", "elbo_squared", "draw_variance")
    )
    numbers: Numbers = {name: value.item() for name, value in means.items()}
    if rate_of_group is not None:
        rate = rate_of_group.sum()
        elbo = -(means["distortion"] + rate)
        numbers |= {
            "rate": rate.item(),
            "elbo": elbo.item(),
        }
        if model.has_rate_per_latent:
            numbers["rate_per_latent"] = rate_of_group.tolist()
        elif len(rate_of_group) > 1:
            numbers["rate_per_group"] = rate_of_group.tolist()
        if len(images) > 1:  # the variance over a single image would be zero
            numbers["active_units"] = int((variance > ACTIVE_UNIT_VARIANCE).sum().item())
            if elbo_squared is not None:
                elbo_variance = (elbo_squared - elbo.square()).clamp(min=0)
                numbers["elbo_stderr"] = (elbo_variance / (len(images) - 1)).sqrt().item()
    if draw_variance is not None:
        numbers["elbo_draw_stderr"] = (draw_variance / len(images)).sqrt().item()
    if objective.beta is not None and weight is not None:
        numbers[f"effective_{model.likelihood.mean_error}"] = (objective.beta / weight).item()
    return numbers


def as_results(numbers: Numbers) -> dict[str, Any]:
    """What `evaluate` returns of a test split, under the keys of results.json."""
    return {("beta/" if name.startswith("effective_") else "test/") + name: value for name, value in numbers.items()}


def freeze_scales(model: Autoencoder, train: Images, to_float: ToFloat) -> None:
    """Set a scale that depends on x to its evaluation value, from training images with one sample of z each.

    A scale that depended on the test image would give no bound. Other scales stay as they are.
    """
    if not model.likelihood.depends_on_x:
        return
    errors = []
    for batch in batches(model, train, to_float, subset=evenly_spaced(train, SCALE_IMAGES)):
        z = model.encode(batch.x, batch.labels).rsample(1)[0]
        errors.append(batch.x - model.decode(z, batch.labels).parameter)  # the location
    model.likelihood.freeze(torch.cat(errors))


# ELBO, rate and distortion of x as the run is trained on it. Tables compare those of the image (see bits.py).
BOUND = Measurement(
    lambda evaluation: as_results(evaluate(evaluation)),
    (
        Metric("test/elbo", "elbo", "nats", 2, "higher", None, stderr_key="test/elbo_stderr", column=""),
        Metric("test/rate", "rate", "nats", 2, None, None, column=""),
        Metric("test/distortion", "distortion", "nats", 2, None, None, column=""),
        Metric("test/loss", "loss", "nats", 2, None, None, column=""),
        MSE,
        Metric("test/mse_corrupted", "mse corrupted", digits=5, comparable=None, column=""),
        Metric("test/mse_restored", "mse restored", digits=5, better="lower", column=""),
        Metric("test/active_units", "active units", digits=0, column="AU"),
    ),
)
