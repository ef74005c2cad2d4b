"""All numbers of a trained model on the whole test split, under the names of results.json."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vaex.data.dataset import Dataset
from vaex.data.feed import placed
from vaex.evaluation.bits import scoring
from vaex.evaluation.bound import evaluate, images_at_once
from vaex.evaluation.calibration import LEVELS, calibration
from vaex.evaluation.codes import codes
from vaex.evaluation.disentanglement import disentanglement
from vaex.evaluation.generation import Draws, Latent, generation_quality
from vaex.evaluation.importance import importance_nll
from vaex.evaluation.reconstruction import reconstruction_errors
from vaex.model import Autoencoder
from vaex.objectives import Objective

# Draws of z for each image when no number is asked for. 5,000 is what papers on binary MNIST take.
SAMPLES_BINARY, SAMPLES = 5000, 100

COLLAPSED_RATE = 0.1  # nats

Results = dict[str, Any]


def measure(
    model: Autoencoder,
    objective: Objective,
    dataset: Dataset,
    *,
    samples: int | None = None,
    batch_size: int | None = None,
    generated: Draws | None = "means",
    latent: Latent = "prior",
    inception: bool = False,
    disentangled: bool = False,
    description: str | None = None,
    corruption: Callable[[Tensor], Tensor] = lambda x: x,
    poll: Callable[[], None] = lambda: None,
) -> Results:
    """What has a meaning for this model: an autoencoder without a posterior has reconstruction errors only.

    Args:
        samples: K of the importance-weighted NLL; 0 for none; None for 5,000 on binary images and 100 on others.
        batch_size: images, or images times draws of z, decoded at once; None for `images_at_once`.
        generated: what generated images are made of, for their Fréchet distances; None for none.
        latent: where their z comes from; an autoencoder without a prior always has a mixture fitted.
        inception: also the distance in Inception's features, which needs the extra of that name.
        disentangled: also how far each latent stands for one of the factors that the images were made from.
        description: shown on the progress bar.
        corruption: of the run.
        poll: called before each batch, and may raise to stop.
    """
    device = model.device
    images = placed(dataset.test, device, dataset.resident)
    batch_size = batch_size or images_at_once(images)
    # Noise depends on the batch size: up to what training takes, the numbers of `vaex train` come out again.
    numbers = evaluate(
        model,
        objective,
        images,
        dataset.to_float,
        corruption=corruption,
        poll=poll,
        batch_size=min(batch_size, images_at_once(images)),
    )
    results: Results = {
        "beta/" + name if name.startswith("effective_") else "test/" + name: value for name, value in numbers.items()
    }
    errors = reconstruction_errors(model, images, dataset.to_float, poll=poll, batch_size=batch_size)
    results |= {"test/psnr": errors.psnr, "test/ssim": errors.ssim}
    if generated:
        source = latent if model.stochastic else "mixture"
        quality = generation_quality(
            model, dataset, draws=generated, latent=source, inception=inception, batch_size=batch_size, poll=poll
        )
        results |= {f"test/{name}": value for name, value in quality.items()}
    if disentangled:
        means = codes(model, images, dataset.to_float, batch_size=batch_size, poll=poll).mean
        scores = disentanglement(means, images.factors, dataset.source.factors)
        results |= {f"test/{name}": value for name, value in scores.items()}
    if not model.stochastic:
        return results

    score = scoring(model.likelihood, dataset)
    to_float = score.to_float if score else dataset.to_float
    calibrated = calibration(model, images, to_float, poll=poll, batch_size=batch_size)
    if calibrated:
        results |= {f"test/coverage_{level * 100:.0f}": calibrated.at(level) for level in (0.5, 0.9, 0.99)}
        results |= {"test/calibration": calibrated.coverage, "test/calibration_levels": list(LEVELS)}
    if score is None:
        return results

    results["test/scored_pixels"] = score.pixels
    nll, nll_from = -results["test/elbo"], "elbo"
    if model.likelihood.kind == "density":
        scored = evaluate(
            model, objective, images, to_float, poll=poll, batch_size=min(batch_size, images_at_once(images))
        )
        results |= {f"test/{name}_dequantized": scored[name] for name in ("elbo", "rate")}
        nll = -results["test/elbo_dequantized"]
    if samples is None:
        samples = SAMPLES_BINARY if dataset.binary else SAMPLES
    dimensions = images.pixels[0].numel()
    if samples:
        estimate = importance_nll(
            model, images, to_float, samples=samples, batch_size=batch_size, description=description, poll=poll
        )
        nll, nll_from = estimate.nll, "importance"
        results |= {"test/nll": nll, "test/nll_stderr": estimate.stderr, "test/nll_samples": samples}
    return results | {
        "test/bits_per_dim": score.bits_per_dim(nll, dimensions),
        "test/bits_per_dim_from": nll_from,
    }


def collapsed(results: Results) -> str | None:
    """One line when the posterior says next to nothing about the image, so that every image is decoded alike."""
    units, rate = results.get("test/active_units"), results.get("test/rate")
    if units is None or rate is None or (units > 0 and rate >= COLLAPSED_RATE):
        return None
    return (
        f"the posterior has collapsed ({units} active units, rate {rate:.3g} nats): z is not used; "
        "lower beta, warm it up (objective.warmup), or give free bits (objective.free_bits)"
    )
