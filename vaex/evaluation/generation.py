"""How good the images are that a model generates: samples and reconstructions against the gray test images.

z of the samples comes from the prior, or from a mixture fitted to the codes of training images, which is also how an
autoencoder without a prior can generate. An image is the likelihood's mean, or a sample with its pixel noise. The two
score differently, so that the results say which it was.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaex.data.cache import cache_folder
from vaex.data.dataset import Images
from vaex.evaluation.classifier import FEATURES, Classifier, accuracy, classifier_for, features_of, to_pixels
from vaex.evaluation.fid import FeatureStatistics, frechet_distance, neighborhoods, real_against_real_floor
from vaex.evaluation.latent import fit_mixture
from vaex.evaluation.measure import Evaluation, Measurement
from vaex.evaluation.metric import Metric
from vaex.evaluation.pretrained import inception_distances
from vaex.evaluation.split import batches, evaluating, evenly_spaced, fixed_noise
from vaex.latents.prior import StandardNormal

# A distance needs more images than features on each side, and the floor is that of halves of the test images.
FEWEST = 2 * (FEATURES + 1)
CODES = 15_000  # training images whose codes a mixture is fitted to
NOISY_IMAGES = 16  # decoded at once, whatever the batch size: their pixel noise is drawn for all of them together


@dataclass(frozen=True)
class Generated:
    """Generated images, as many of each kind as the test split has.

    Attributes:
        pixels: uint8 [N, C, H, W] under fid (samples), fid_reconstruction, and fid_normal for samples from N(0, I) if
            the model's prior is not N(0, I).
        draws: means or noise.
        latent: where z of the samples comes from.
    """

    pixels: dict[str, Tensor]
    draws: str
    latent: str


def generation_quality(evaluation: Evaluation) -> dict[str, Any]:
    """Fréchet distances, precision and recall, density and coverage, of as many images as the test split has.

    Returns:
        fid of samples and fid_reconstruction; fid_normal of samples from N(0, I), if the samples are from a prior that
        is not N(0, I); fid_floor, what two sets of so many real images would give (half the distance of halves of the
        test images, since the bias is proportional to 1/N); precision, recall, density and coverage of the samples;
        fid_images (the number on each side), fid_draws (means or noise), fid_latent and fid_classifier (SHA-256 of its
        weights), on which the numbers depend; and class_agreement of a conditional model, the fraction of samples that
        the classifier assigns to the requested class. If requested, also fid_inception and
        fid_inception_reconstruction, and what they depend on; these are the only ones with fid=none, and for images
        without labels, for which there is no classifier.

    Raises:
        ValueError: if there are too few images, no labels to train a classifier with, or no pixel noise to sample.
        UserError: if `inception` is requested and its weights cannot be downloaded.
    """
    dataset, device = evaluation.dataset, evaluation.model.device
    requested = evaluation.fid is not None and not evaluation.inception
    by_classifier = evaluation.fid != "none" and (requested or dataset.source.classes > 1)
    if by_classifier:
        if len(dataset.test) < FEWEST:  # before a classifier is trained
            raise ValueError(f"the distance and its floor need at least {FEWEST} test images, got {len(dataset.test)}")
        with fixed_noise(device):
            classifier, weights_hash = classifier_for(dataset.source, cache_folder(), device=device)
    generated = _generate(evaluation, from_normal=by_classifier)
    dependencies = {"images": len(dataset.test), "draws": generated.draws, "latent": generated.latent}
    results: dict[str, Any] = {}
    if by_classifier:
        results |= _by_classifier(evaluation, classifier, generated)
        results |= {f"fid_{name}": value for name, value in {**dependencies, "classifier": weights_hash}.items()}
    if evaluation.inception:
        kinds = {"fid_inception": "fid", "fid_inception_reconstruction": "fid_reconstruction"}
        pixels = {name: generated.pixels[kind] for name, kind in kinds.items()}
        results |= inception_distances(dataset.source.test.pixels, pixels, device)
        results |= {f"fid_inception_{name}": value for name, value in dependencies.items()}
    return {f"test/{name}": value for name, value in results.items()}


def _by_classifier(evaluation: Evaluation, classifier: Classifier, generated: Generated) -> dict[str, Any]:
    real = features_of(classifier, evaluation.dataset.source.test.pixels)
    features = {name: features_of(classifier, pixels) for name, pixels in generated.pixels.items()}
    statistics = FeatureStatistics.of(real)
    results = {
        **{name: frechet_distance(statistics, FeatureStatistics.of(fake)) for name, fake in features.items()},
        "fid_floor": real_against_real_floor(real) / 2,
        **neighborhoods(real, features["fid"]),
    }
    if evaluation.model.classes:
        labels = evaluation.dataset.test.labels.to(evaluation.model.device)
        results["class_agreement"] = accuracy(classifier, Images(generated.pixels["fid"], labels))
    return results


def _generate(evaluation: Evaluation, *, from_normal: bool) -> Generated:
    """`from_normal`: whether to generate images from N(0, I) too, if the samples are from another prior."""
    model, dataset = evaluation.model, evaluation.dataset
    count = len(dataset.test)
    z, latent = _sample_latents(evaluation, count)
    noisy = evaluation.fid == "noise"
    latents = {"fid": z}
    if from_normal and latent == "prior" and not model.prior.is_standard:
        standard = StandardNormal(model.latent_dim, model.device)
        latents["fid_normal"] = standard.sample(count, generator=torch.Generator().manual_seed(0))
    generated: dict[str, list[Tensor]] = {name: [] for name in (*latents, "fid_reconstruction")}
    batch_size = NOISY_IMAGES if noisy else evaluation.batch_size
    for batch in batches(model, evaluation.images, dataset.to_float, batch_size=batch_size, poll=evaluation.poll):
        codes = [z[batch.rows] for z in latents.values()] + [model.encode(batch.x, batch.labels).mean]
        for code, pixels in zip(codes, generated.values(), strict=True):
            distribution = model.decode(code, batch.labels)
            if noisy and not distribution.has_sample:
                raise ValueError(f"--fid=noise: {type(distribution).__name__} has no sample(); use --fid=means")
            pixels.append(to_pixels(distribution.sample() if noisy else distribution.mean))
    images = {name: torch.cat(pixels) for name, pixels in generated.items()}
    return Generated(images, "noise" if noisy else "means", latent)


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


def _why_not(evaluation: Evaluation) -> str | None:
    if evaluation.inception:
        return None
    if evaluation.fid is None and evaluation.dataset.source.classes < 2:
        return "no FID: the images have no labels to train a classifier with"
    return "" if evaluation.fid == "none" else None


GENERATION = Measurement(
    generation_quality,
    (
        Metric("test/fid", "FID", digits=1, better="lower", comparable="samples"),
        Metric("test/fid_inception", "Inception FID", digits=1, better="lower", comparable="inception", column="I-FID"),
        Metric(
            "test/fid_inception_reconstruction",
            "Inception rFID",
            digits=1,
            better="lower",
            comparable="inception",
            column="I-rFID",
        ),
        Metric("test/class_agreement", "class agreement", better="higher", comparable="samples", column="agree"),
    ),
    _why_not,
    requested=lambda evaluation: evaluation.fid is not None or evaluation.inception,
    remedy="--fid=none, without --inception, generates no images",
)
