"""How good the images are that a model generates: samples and reconstructions against the gray test images.

z of the samples comes from the prior, or from a mixture fitted to the codes of training images, which is also how an
autoencoder without a prior can generate. An image is the likelihood's mean, or a sample with its pixel noise. The two
score differently, so that the results say which it was.
"""

from typing import Any

import torch
from torch import Tensor

from vaex.data.cache import cache_folder
from vaex.data.dataset import Images
from vaex.evaluation.classifier import FEATURES, accuracy, classifier_for, features_of, to_pixels
from vaex.evaluation.fid import FeatureStatistics, frechet_distance, neighborhoods, real_against_real_floor
from vaex.evaluation.latent import fit_mixture
from vaex.evaluation.measure import Evaluation, Measurement
from vaex.evaluation.metric import Metric
from vaex.evaluation.split import batches, evaluating, evenly_spaced, fixed_noise
from vaex.latents.prior import StandardNormal

# A distance needs more images than features on each side, and the floor is that of halves of the test images.
FEWEST = 2 * (FEATURES + 1)
CODES = 15_000  # training images whose codes a mixture is fitted to
NOISY_IMAGES = 16  # decoded at once, whatever the batch size: their pixel noise is drawn for all of them together


def generation_quality(evaluation: Evaluation) -> dict[str, Any]:
    """Fréchet distances, precision and recall, density and coverage, of as many images as the test split has.

    Returns:
        fid of samples and fid_reconstruction; fid_normal of samples from N(0, I), if the samples are from a prior that
        is not N(0, I); fid_floor, what two sets of so many real images would give (half the distance of halves of the
        test images, since the bias is proportional to 1/N); precision, recall, density and coverage of the samples;
        fid_images (the number on each side), fid_draws (means or noise), fid_latent and
        fid_classifier (SHA-256 of its weights), on which the numbers depend; class_agreement of a conditional model,
        the fraction of samples that the classifier assigns to the requested class; and fid_inception if requested.

    Raises:
        ValueError: if there are too few images, no labels to train a classifier with, or no pixel noise to sample.
        ModuleNotFoundError: if `inception` is requested and its extra is not installed.
    """
    model, dataset, test = evaluation.model, evaluation.dataset, evaluation.dataset.test
    device = model.device
    if len(test) < FEWEST:  # before a classifier is trained
        raise ValueError(f"the distance and its floor need at least {FEWEST} test images, got {len(test)}")
    with fixed_noise(device):
        classifier, weights_hash = classifier_for(dataset.source, cache_folder(), device=device)
    real = features_of(classifier, dataset.source.test.pixels)
    z, latent = _sample_latents(evaluation, len(test))
    noisy = evaluation.fid == "noise"
    latents = {"fid": z}
    if latent == "prior" and not model.prior.is_standard:
        standard = StandardNormal(model.latent_dim, device)
        latents["fid_normal"] = standard.sample(len(test), generator=torch.Generator().manual_seed(0))
    generated: dict[str, list[Tensor]] = {name: [] for name in (*latents, "fid_reconstruction")}  # uint8
    batch_size = NOISY_IMAGES if noisy else evaluation.batch_size
    for batch in batches(model, evaluation.images, dataset.to_float, batch_size=batch_size, poll=evaluation.poll):
        codes = [z[batch.rows] for z in latents.values()] + [model.encode(batch.x, batch.labels).mean]
        for code, pixels in zip(codes, generated.values(), strict=True):
            distribution = model.decode(code, batch.labels)
            if noisy and not distribution.has_sample:
                raise ValueError(f"--fid=noise: {type(distribution).__name__} has no sample(); use --fid=means")
            pixels.append(to_pixels(distribution.sample() if noisy else distribution.mean))
    samples = torch.cat(generated["fid"])
    features = {name: features_of(classifier, torch.cat(pixels)) for name, pixels in generated.items()}
    statistics = FeatureStatistics.of(real)
    results = {
        **{name: frechet_distance(statistics, FeatureStatistics.of(fake)) for name, fake in features.items()},
        "fid_floor": real_against_real_floor(real) / 2,
        "fid_images": len(test),
        "fid_draws": "noise" if noisy else "means",
        "fid_latent": latent,
        "fid_classifier": weights_hash,
        **neighborhoods(real, features["fid"]),
    }
    if model.classes:
        results["class_agreement"] = accuracy(classifier, Images(samples, test.labels.to(device)))
    if evaluation.inception:
        results["fid_inception"] = inception_fid(dataset.source.test.pixels, samples)
    return {f"test/{name}": value for name, value in results.items()}


def _sample_latents(evaluation: Evaluation, count: int) -> tuple[Tensor, str]:
    """Samples of z [count, latent_dim] on the model's device, and where they come from."""
    model, dataset = evaluation.model, evaluation.dataset
    generator = torch.Generator().manual_seed(0)
    if model.stochastic and evaluation.latent == "prior":
        with evaluating(model):
            return model.latent_prior().sample(count, generator=generator), "prior"

    def codes(images: Images) -> Tensor:
        """One sample from q(z|x) for each of up to CODES images, [N, latent_dim]; the codes of an autoencoder."""
        subset = evenly_spaced(images, CODES)[:CODES]
        split = batches(model, images, dataset.to_float, batch_size=evaluation.batch_size, subset=subset)
        return torch.cat([model.encode(batch.x, batch.labels).rsample(1)[0] for batch in split])

    heldout = dataset.validation if len(dataset.validation) else dataset.test
    mixture = fit_mixture(codes(dataset.train), codes(heldout))
    return mixture.sample(count, generator).to(model.device), f"mixture of {len(mixture)}"


def inception_fid(real: Tensor, fake: Tensor, batch_size: int = 100) -> float:
    """The Fréchet distance in Inception-v3's features that papers report; uint8 [N, C, H, W] each.

    Raises:
        ModuleNotFoundError: if the extra `inception` is not installed. It downloads its weights on first use.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=2048).to(fake.device)
    for images, is_real in ((real, True), (fake, False)):
        for part in torch.split(images, batch_size):
            metric.update(part.to(fake.device).expand(-1, 3, -1, -1), real=is_real)
    return float(metric.compute())


def _why_not(evaluation: Evaluation) -> str | None:
    if evaluation.fid is None and evaluation.dataset.source.classes < 2:
        return "no FID: the images have no labels to train a classifier with"
    return "" if evaluation.fid == "none" else None


GENERATION = Measurement(
    generation_quality,
    (
        Metric("test/fid", "FID", digits=1, better="lower", comparable="samples"),
        Metric("test/class_agreement", "class agreement", better="higher", comparable="samples", column="agree"),
    ),
    _why_not,
    requested=lambda evaluation: evaluation.fid is not None,
    remedy="--fid=none leaves generated images out",
)
