"""The aggregate posterior q(z) = (1/N) Σ_n q(z|x_n) of test images, and how the rate divides. Nats per image.

The mean rate of N images is I(n; z) + KL(q(z) || p(z)): what z says about which of the images it is, and how far all
codes together are from the prior. Hoffman & Johnson 2016. q(z) is exact, and the expectations are estimated from one
sample of z for each image.
"""

from typing import Any

import torch

from vaex.data.noise import normal
from vaex.evaluation.measure import Evaluation, Measurement
from vaex.evaluation.metric import Metric
from vaex.evaluation.split import batches, evenly_spaced, images_at_once
from vaex.latents.posterior import DiagonalGaussian
from vaex.objectives.latents import aggregate_log_prob

IMAGES = 2000  # the density of N codes under N posteriors takes N² evaluations


def aggregate_posterior(evaluation: Evaluation) -> dict[str, Any]:
    """Divide the mean rate of up to IMAGES test images.

    Returns:
        index_code_mi, I(n; z) for an image n drawn from these, which is at most the logarithm of their number;
        aggregate_kl, KL(q(z) || p(z)); total_correlation, KL(q(z) || Π_j q(z_j)); and aggregate_images, their number.
    """
    model, images = evaluation.model, evaluation.images
    rows = evenly_spaced(images, IMAGES)[:IMAGES]
    means, log_vars, codes, log_ratios, log_priors = [], [], [], [], []
    split = batches(
        model,
        images,
        evaluation.dataset.to_float,
        batch_size=images_at_once(images.pixels.shape[1:]),  # rounding is then the same for every --batch-size
        subset=rows,
        poll=evaluation.poll,
    )
    for batch in split:
        noise = normal(1, len(batch.x), model.latent_dim, device=batch.x.device)
        latents = model.infer(batch.x, batch.labels, noise)
        posterior = latents.posterior
        assert isinstance(posterior, DiagonalGaussian)  # as _why_not has checked
        means.append(posterior.mean)
        log_vars.append(posterior.log_var)
        codes.append(latents.z[0])
        log_ratios.append(latents.log_ratio()[0])
        log_priors.append(latents.prior.log_prob(latents.z[0]))
    posterior = DiagonalGaussian(torch.cat(means), torch.cat(log_vars))
    z, log_prior = torch.cat(codes), torch.cat(log_priors)
    log_conditional = log_prior - torch.cat(log_ratios)  # log q(z|x)
    log_q, log_q_of_each = aggregate_log_prob(posterior, z)
    return {
        "test/index_code_mi": (log_conditional - log_q).double().mean().item(),
        "test/aggregate_kl": (log_q - log_prior).double().mean().item(),
        "test/total_correlation": (log_q - log_q_of_each.sum(1)).double().mean().item(),
        "test/aggregate_images": len(z),
    }


def _why_not(evaluation: Evaluation) -> str | None:
    model = evaluation.model
    return None if model.stochastic and model.posterior.is_diagonal and len(evaluation.images) > 1 else ""


AGGREGATE = Measurement(
    aggregate_posterior,
    (
        Metric("test/index_code_mi", "index-code information", "nats", 2, None, None, column=""),
        Metric("test/aggregate_kl", "KL of the aggregate posterior", "nats", 2, "lower", None, column=""),
        Metric("test/total_correlation", "total correlation", "nats", 2, "lower", None, column=""),
    ),
    _why_not,
)
