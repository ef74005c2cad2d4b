"""How good what a model generates is: samples and reconstructions against the grey test images.

Samples come from z drawn from the prior, or from a mixture fitted to the codes of the training images, which is also
how an autoencoder without a prior can generate. An image is the likelihood's mean, or a draw with its pixel noise: the
two are scored differently, so that results say which it was.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Literal

import torch
from torch import Tensor

from vaex.data.cache import cache_folder
from vaex.data.dataset import Dataset, Images
from vaex.evaluation.bound import ToFloat, evaluating, fixed_noise
from vaex.evaluation.classifier import accuracy, classifier_for, features_of, to_pixels
from vaex.evaluation.fid import (
    FeatureStatistics,
    frechet_distance,
    neighbourhoods,
    real_against_real_floor,
)
from vaex.evaluation.latent import LatentSampler, StandardNormal, fit_mixture
from vaex.model import Autoencoder

Draws = Literal["means", "noise"]
Latent = Literal["prior", "mixture"]
Results = dict[str, float | str]

CODES = 15_000  # training images whose codes a mixture is fitted to


def generation_quality(
    model: Autoencoder,
    dataset: Dataset,
    *,
    draws: Draws,
    latent: Latent,
    inception: bool = False,
    batch_size: int = 1000,
    poll: Callable[[], None] = lambda: None,
) -> Results:
    """Fréchet distances, precision and recall, density and coverage; as many images as the test split has.

    Returns:
        fid of samples and fid_reconstruction; fid_floor, what two sets of so many real images would give (half the
        distance of halves of the test images, since the bias goes with 1/N); fid_images, the number on each side;
        precision, recall, density, coverage of the samples; and what they depend on: fid_draws, fid_latent,
        fid_classifier (SHA-256 of its weights). Of a conditional model also class_agreement, the share of its samples
        that the classifier takes for the class asked for. With `inception` also fid_inception of the samples.

    Raises:
        ValueError: too few images, or no labels to train a classifier by.
        ModuleNotFoundError: `inception` without its extra.
    """
    device = model.device
    with fixed_noise(device):
        classifier, weights_hash = classifier_for(dataset.source, cache_folder(), device=device)
    real = features_of(classifier, dataset.source.test.pixels)
    sampler: LatentSampler = StandardNormal(latent_dim=model.latent_dim)
    described = "prior"
    if latent == "mixture":
        heldout = dataset.validation if len(dataset.validation) else dataset.test
        mixture, _ = fit_mixture(
            _codes(model, dataset.train, dataset.to_float, batch_size),
            _codes(model, heldout, dataset.to_float, batch_size),
        )
        sampler, described = mixture, f"mixture of {len(mixture)}"

    test = dataset.test
    z = sampler.sample(len(test), torch.Generator().manual_seed(0)).to(device)
    drawn: tuple[list[Tensor], list[Tensor]] = ([], [])  # uint8 samples and reconstructions
    with evaluating(model), fixed_noise(device):
        for start in range(0, len(test), batch_size):
            poll()
            rows = slice(start, start + batch_size)
            batch = test[rows].to(device)
            labels, x = batch.labels, dataset.to_float(batch.pixels)
            for code, pixels in zip((z[rows], model.encode(x, labels).mean), drawn, strict=True):
                distribution = model.decode(code, labels)
                pixels.append(to_pixels(distribution.mean if draws == "means" else distribution.sample()))
    samples, reconstructions = (torch.cat(pixels) for pixels in drawn)
    fake, again = (features_of(classifier, pixels) for pixels in (samples, reconstructions))
    statistics = FeatureStatistics.of(real)
    floor, _ = real_against_real_floor(real)
    among = neighbourhoods(real, fake)
    results: Results = {
        "fid": frechet_distance(statistics, FeatureStatistics.of(fake)),
        "fid_reconstruction": frechet_distance(statistics, FeatureStatistics.of(again)),
        "fid_floor": floor / 2,
        "fid_images": len(test),
        "fid_draws": draws,
        "fid_latent": described,
        "fid_classifier": weights_hash,
        **asdict(among),
    }
    if model.classes:
        results["class_agreement"] = accuracy(classifier, Images(samples, test.labels.to(device)))
    if inception:
        results["fid_inception"] = inception_fid(dataset.source.test.pixels, samples)
    return results


def _codes(model: Autoencoder, images: Images, to_float: ToFloat, batch_size: int) -> Tensor:
    """Draws from q(z|x) of up to CODES images evenly spaced, [N, latent_dim]; the codes themselves without a q."""
    device = model.device
    chosen = torch.arange(0, len(images), max(1, len(images) // CODES))[:CODES]
    codes = []
    with evaluating(model), fixed_noise(device):
        for rows in torch.split(chosen, batch_size):
            posterior = model.encode(to_float(images.pixels[rows].to(device)), images.labels[rows].to(device))
            codes.append(posterior.rsample(1)[0])
    return torch.cat(codes)


def inception_fid(real: Tensor, fake: Tensor, batch_size: int = 100) -> float:
    """The Fréchet distance in Inception-v3's features that papers report; uint8 [N, C, H, W] each.

    Raises:
        ModuleNotFoundError: the extra `inception` isn't installed. It downloads its weights on first use.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=2048).to(fake.device)
    for images, is_real in ((real, True), (fake, False)):
        for part in torch.split(images, batch_size):
            metric.update(part.to(fake.device).expand(-1, 3, -1, -1), real=is_real)
    return float(metric.compute())
