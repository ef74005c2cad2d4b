"""Bounds on the probability of an image, in nats and in bits per dimension.

An 8-bit image has one probability, whatever the likelihood. A mass over 256 levels gives it directly, and a density
bounds it by uniform dequantization: log P(k) >= E_u log p((k+u)/256) - D log 256 (Theis et al. 2016, section 3.1). So
densities are scored on (k+u)/256 even if the run was trained on k/255, where a density bounds nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaex.data.dataset import Dataset, dequantize
from vaex.evaluation.bound import evaluate_pixels
from vaex.evaluation.importance import importance_nll
from vaex.evaluation.measure import Evaluation, Measurement
from vaex.evaluation.metric import Metric
from vaex.evaluation.split import ToFloat
from vaex.likelihoods.base import Likelihood

# Samples of z for each image if the user gives no number. Papers on binary MNIST use 5,000.
SAMPLES_BINARY, SAMPLES = 5000, 100


@dataclass(frozen=True)
class Scoring:
    """The pixels on which log p(x) says how probable an image is.

    Attributes:
        pixels: (k+u)/256, k/255 or binary.
        to_float: uint8 batch -> these pixels.
        offset: bits/dim that the change of units from x to levels adds.
    """

    pixels: str
    to_float: ToFloat
    offset: float

    def bits_per_dim(self, nll: float, dimensions: int) -> float:
        """Bits/dim of `nll` nats for one image of `dimensions` channels times pixels."""
        return nll / (dimensions * math.log(2)) + self.offset


def scoring(likelihood: Likelihood, dataset: Dataset) -> Scoring | None:
    """None where there is no probability of an image: pseudo-likelihoods, and densities of binary images."""
    if likelihood.kind == "pseudo":
        return None
    if likelihood.kind == "density":
        return None if dataset.binary else Scoring("(k+u)/256", dequantize, offset=8.0)
    if dataset.binary:
        return Scoring("binary", dataset.to_float, offset=0.0)
    return Scoring("k/255", levels, offset=0.0) if likelihood.support == "uint8" else None


def levels(pixels: Tensor) -> Tensor:
    """uint8 k -> k/255, float32."""
    return pixels.to(torch.float32) / 255


def scored_to_float(evaluation: Evaluation) -> ToFloat:
    """The conversion to the pixels that are scored; the run's own where no probability of an image exists."""
    score = scoring(evaluation.model.likelihood, evaluation.dataset)
    return score.to_float if score else evaluation.dataset.to_float


def image_scores(results: Mapping[str, Any], likelihood: Likelihood, dataset: Dataset) -> dict[str, Any]:
    """Keys of results.json that describe the image itself, from the ELBO or the importance-weighted NLL of x.

    Args:
        results: what `vaex train` or `vaex eval` has measured.

    Returns:
        image_elbo, image_rate and image_distortion; where they bound the probability of an image also scored_pixels,
        bits_per_dim, bits_per_dim_from (elbo or importance), nll_bound, and the standard errors of an
        importance-weighted estimate. Nothing for an autoencoder.
    """
    if "test/elbo" not in results:
        return {}
    elbo, rate, distortion = (results[f"test/{name}"] for name in ("elbo", "rate", "distortion"))
    score = scoring(likelihood, dataset)
    nll, log_levels = -elbo, 0.0
    dimensions = math.prod(dataset.image_shape)
    if score and likelihood.kind == "density":
        if "test/elbo_dequantized" in results:
            nll, rate = -results["test/elbo_dequantized"], results["test/rate_dequantized"]
        elif dataset.dequantize != "uniform":
            score = None  # the ELBO of k/255
    if score and likelihood.kind == "density":
        log_levels = dimensions * math.log(256)
        elbo = -nll - log_levels
        distortion = -elbo - rate
    image = {"test/image_elbo": elbo, "test/image_rate": rate, "test/image_distortion": distortion}
    if score is None:
        return image
    stderr = results.get("test/nll_stderr")
    errors = {}
    if stderr is not None:
        nll = results["test/nll"]
        errors = {"test/bits_per_dim_stderr": stderr / (dimensions * math.log(2)), "test/nll_bound_stderr": stderr}
    return {
        "test/scored_pixels": score.pixels,
        "test/bits_per_dim": score.bits_per_dim(nll, dimensions),
        "test/bits_per_dim_from": "elbo" if stderr is None else "importance",
        "test/nll_bound": nll + log_levels,
        **errors,
        **image,
    }


# An evaluation without importance weighting writes none of these, and must not keep those of an earlier evaluation.
STDERR_KEYS = ("test/bits_per_dim_stderr", "test/nll_bound_stderr")


def _why_not(evaluation: Evaluation) -> str | None:
    scored = evaluation.model.stochastic and scoring(evaluation.model.likelihood, evaluation.dataset)
    return None if scored else ""


def _probability(evaluation: Evaluation) -> dict[str, Any]:
    """The ELBO of the scored pixels and the importance-weighted NLL, in nats of x."""
    to_float = scored_to_float(evaluation)
    results: dict[str, Any] = {}
    if evaluation.model.likelihood.kind == "density":
        scored = evaluate_pixels(evaluation, to_float)
        results |= {f"test/{name}_dequantized": scored[name] for name in ("elbo", "rate")}
    samples = evaluation.samples
    if samples is None:
        samples = SAMPLES_BINARY if evaluation.dataset.binary else SAMPLES
    if samples:
        nll, stderr = importance_nll(
            evaluation.model,
            evaluation.images,
            to_float,
            samples=samples,
            batch_size=evaluation.batch_size,
            title=evaluation.title,
            poll=evaluation.poll,
        )
        results |= {"test/nll": nll, "test/nll_stderr": stderr, "test/nll_samples": samples}
    return results


# Of the image: `image_scores` computes these for `vaex train` too.
PROBABILITY = Measurement(
    _probability,
    (
        Metric("test/bits_per_dim", "bits/dim", "bits", 4, "lower", "bits", stderr_key="test/bits_per_dim_stderr"),
        Metric("test/nll_bound", "NLL", "nats", 2, "lower", "nll", stderr_key="test/nll_bound_stderr"),
        Metric("test/image_elbo", "ELBO", "nats", 1, "higher", "elbo", column="elbo"),
        Metric("test/image_rate", "rate", "nats", 1, None, "elbo"),
        Metric("test/image_distortion", "distortion", "nats", 1, None, "elbo", column=""),
    ),
    _why_not,
)
