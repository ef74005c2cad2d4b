"""Bounds on the probability of an image, in nats and in bits per dimension.

An 8-bit image has one probability, whatever the likelihood. A mass over 256 levels gives it directly, and a density
bounds it by uniform dequantization: log P(k) >= E_u log p((k+u)/256) - D log 256 (Theis et al. 2016, section 3.1). So
densities are scored on (k+u)/256 even if the run was trained on k/255, where a density bounds nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from vaex.data.dataset import Dataset, dequantize
from vaex.evaluation.bound import evaluate
from vaex.evaluation.importance import importance_nll
from vaex.evaluation.measure import Evaluation, Measurement
from vaex.evaluation.metric import Metric
from vaex.evaluation.split import ToFloat
from vaex.likelihoods.base import Likelihood

SAMPLES = {"encoder": 100, "fitted": 256}  # of z for each image if the user gives no number


def scored_pixels(likelihood: Likelihood, dataset: Dataset) -> str | None:
    """The pixels x for which log p(x) says how probable an image is: `(k+u)/256`, `k/255` or `binary`.

    None where there is no probability of an image: pseudo-likelihoods, and densities of binary images.
    """
    if likelihood.kind == "density":
        return None if dataset.binary else "(k+u)/256"
    if likelihood.kind == "pseudo":
        return None
    if dataset.binary:
        return "binary"
    return "k/255" if likelihood.support == "uint8" else None


def scored_to_float(evaluation: Evaluation) -> ToFloat:
    """The conversion to the pixels that are scored; the run's own where no probability of an image exists."""
    pixels = scored_pixels(evaluation.model.likelihood, evaluation.dataset)
    return dequantize if pixels == "(k+u)/256" else evaluation.dataset.to_float


def image_scores(results: Mapping[str, Any], likelihood: Likelihood, dataset: Dataset) -> dict[str, Any]:
    """Keys of results.json that describe the image itself, from the ELBO or the importance-weighted NLL of x.

    Args:
        results: what `vaex train` or `vaex eval` has measured.

    Returns:
        image_elbo, image_rate and image_distortion; where they bound the probability of an image also scored_pixels,
        bits_per_dim, bits_per_dim_from (elbo or importance) and nll_bound; and the standard errors over images of these
        and of image_elbo, unless there is only one image. Nothing for an autoencoder.
    """
    if "test/elbo" not in results:
        return {}
    elbo, rate, distortion = (results[f"test/{name}"] for name in ("elbo", "rate", "distortion"))
    stderr = results.get("test/elbo_stderr")
    pixels, density = scored_pixels(likelihood, dataset), likelihood.kind == "density"
    nll, dimensions = -elbo, math.prod(dataset.image_shape)
    level_nats = level_bits = 0.0  # that the change of units from x to levels adds
    if pixels and "test/elbo_dequantized" in results:
        nll, rate = -results["test/elbo_dequantized"], results["test/rate_dequantized"]
        stderr = results.get("test/elbo_dequantized_stderr")
    elif density and dataset.dequantize != "uniform":
        pixels = None  # the ELBO is that of k/255
    if pixels and density:
        level_nats, level_bits = dimensions * math.log(256), 8.0
        elbo = -nll - level_nats
        distortion = -elbo - rate
    image = {"test/image_elbo": elbo, "test/image_rate": rate, "test/image_distortion": distortion}
    if stderr is not None:
        image["test/image_elbo_stderr"] = stderr
    if pixels is None:
        return image
    importance = "test/nll_stderr" in results
    if importance:
        nll, stderr = results["test/nll"], results["test/nll_stderr"]
    if stderr is not None:
        image["test/bits_per_dim_stderr"] = stderr / (dimensions * math.log(2))
        image["test/nll_bound_stderr"] = stderr
    return {
        "test/scored_pixels": pixels,
        "test/bits_per_dim": nll / (dimensions * math.log(2)) + level_bits,
        "test/bits_per_dim_from": "importance" if importance else "elbo",
        "test/nll_bound": nll + level_nats,
        **image,
    }


def _why_not(evaluation: Evaluation) -> str | None:
    model = evaluation.model
    return None if model.stochastic and scored_pixels(model.likelihood, evaluation.dataset) else ""


def _probability(evaluation: Evaluation) -> dict[str, Any]:
    """The ELBO of the scored pixels and the importance-weighted NLL, in nats of x."""
    to_float = scored_to_float(evaluation)
    results: dict[str, Any] = {}
    if evaluation.model.likelihood.kind == "density":
        clean = replace(evaluation, corruption=nn.Identity())
        numbers = evaluate(clean, evaluation.images, to_float)
        results |= {f"test/{name}_dequantized": numbers[name] for name in ("elbo", "rate")}
        if "elbo_stderr" in numbers:
            results["test/elbo_dequantized_stderr"] = numbers["elbo_stderr"]
    # Papers on binary MNIST draw 5,000 from the encoder's q, which takes longer and usually gives a looser bound.
    is_diagonal = evaluation.model.posterior.is_diagonal
    fitted = evaluation.dataset.binary and evaluation.samples is None and is_diagonal
    posterior = evaluation.posterior or ("fitted" if fitted else "encoder")
    samples = SAMPLES[posterior] if evaluation.samples is None else evaluation.samples
    if samples:
        estimate = importance_nll(evaluation, to_float, samples, fitted=posterior == "fitted")
        results |= {
            "test/nll": estimate.nll,
            "test/nll_stderr": estimate.stderr,
            "test/nll_samples": samples,
            "test/nll_posterior": posterior,
            "test/nll_halving": estimate.halving,
        }
    return results


# Of the image: `image_scores` computes these for `vaex train` too.
PROBABILITY = Measurement(
    _probability,
    (
        Metric("test/bits_per_dim", "bits/dim", "bits", 4, "lower", "bits", stderr_key="test/bits_per_dim_stderr"),
        Metric("test/nll_bound", "NLL", "nats", 2, "lower", "nll", stderr_key="test/nll_bound_stderr"),
        Metric(
            "test/image_elbo", "ELBO", "nats", 1, "higher", "elbo", stderr_key="test/image_elbo_stderr", column="elbo"
        ),
        Metric("test/image_rate", "rate", "nats", 1, None, "elbo"),
        Metric("test/image_distortion", "distortion", "nats", 1, None, "elbo", column=""),
    ),
    _why_not,
)
