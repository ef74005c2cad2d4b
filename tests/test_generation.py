"""Distances of generated images: of a model that copies, of one that adds noise, and of a trained one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import results
from torch import nn

from vaex import cli
from vaex.data.dataset import Dataset, Images, Source
from vaex.errors import UserError
from vaex.evaluation import generation
from vaex.evaluation.classifier import MNIST_WEIGHTS_SHA256, classifier_for
from vaex.evaluation.generation import GENERATION, generation_quality
from vaex.evaluation.measure import Evaluation, measure
from vaex.latents.prior import Mixture
from vaex.likelihoods.base import PixelDistribution
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.scale import Fixed
from vaex.model import Autoencoder
from vaex.objectives import AE

SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def dataset(source: Source) -> Dataset:
    """Embedded MNIST, whose classifier is packaged, with fewer test images."""
    test = Images(source.test.pixels[:300], source.test.labels[:300])
    return Dataset(source=Source(source.train, test, 10), validation=5000, binarize="none", dequantize="none")


class Copy(nn.Module):
    """Encodes an image as itself and decodes a code as itself."""

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        if x.ndim == 4:
            return torch.cat([x.flatten(1), torch.full((len(x), 784), -20.0)], dim=1)
        return x.view(-1, *SHAPE)


def copying(scale: float) -> Autoencoder:
    likelihood = Gaussian(image_shape=SHAPE, scale=Fixed(image_shape=SHAPE, value=scale), bounded_mean=False)
    return Autoencoder(encoder=Copy(), decoder=Copy(), likelihood=likelihood, latent_dim=784)


def quality(model: Autoencoder, dataset: Dataset, **options: Any) -> dict[str, Any]:
    results = generation_quality(Evaluation(model, AE(), dataset, **options))
    return {name.removeprefix("test/"): value for name, value in results.items()}


def test_a_copy_is_at_no_distance_and_noise_is_far(dataset: Dataset) -> None:
    numbers = quality(copying(0.5), dataset)
    assert numbers["fid_reconstruction"] == pytest.approx(0, abs=1e-6)
    assert numbers["fid"] > 20 * numbers["fid_floor"] > 0
    assert numbers["precision"] < 0.05 and numbers["coverage"] < 0.05
    assert numbers["fid_images"] == 300 and numbers["fid_draws"] == "means" and numbers["fid_latent"] == "prior"
    assert numbers["fid_classifier"] == MNIST_WEIGHTS_SHA256


def test_samples_of_a_learned_prior_are_compared_with_those_of_a_standard_normal(dataset: Dataset) -> None:
    standard, learned = copying(0.5), copying(0.5)
    learned.prior = Mixture(latent_dim=784, components=1)
    with torch.no_grad():
        learned.prior.means.copy_(dataset.test.pixels[:1].flatten(1) / 255)
        learned.prior.log_vars.fill_(-20)
    usual, own = quality(standard, dataset), quality(learned, dataset)
    assert "fid_normal" not in usual and own["fid_normal"] == pytest.approx(usual["fid"])
    assert own["fid"] != pytest.approx(usual["fid"], rel=0.01)
    assert own["precision"] == 1  # each sample is one of the real images


def test_pixel_noise_is_part_of_an_image_only_on_request_and_is_the_same_every_time(dataset: Dataset) -> None:
    first, second = (quality(copying(0.5), dataset, fid="noise") for _ in range(2))
    assert first["fid_reconstruction"] > 10 and first["fid_draws"] == "noise"
    assert first == second


def test_a_distribution_that_cannot_be_sampled_is_an_error(dataset: Dataset) -> None:
    class Flat(PixelDistribution):
        pass

    model = copying(0.5)
    model.likelihood.forward = lambda h, x=None: Flat(h.shape)  # type: ignore[method-assign]
    evaluation = Evaluation(model, AE(), dataset, fid="noise")
    with pytest.raises(
        UserError, match="--fid=noise: Flat has no sample.*; use --fid=means; --fid=none, without --inception"
    ):
        measure(evaluation, [GENERATION])


def test_images_without_labels_have_no_distances_unless_requested(dataset: Dataset) -> None:
    unlabeled = Dataset(source=replace(dataset.source, classes=0), validation=0, binarize="none", dequantize="none")
    for fid, reasons in ((None, ["no FID: the images have no labels to train a classifier with"]), ("none", [])):
        assert measure(Evaluation(copying(0.5), AE(), unlabeled, fid=fid), [GENERATION]) == ({}, reasons)


def test_other_data_get_a_classifier_of_their_own(dataset: Dataset, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VAEX_CACHE", str(tmp_path))
    monkeypatch.setattr(generation, "classifier_for", partial(classifier_for, epochs=1))
    train = Images(dataset.source.train.pixels[:128], dataset.source.train.labels[:128])
    other = Dataset(source=Source(train, dataset.source.test, 10), validation=28, binarize="none", dequantize="none")
    numbers = quality(copying(0.5), other)
    assert len(list(tmp_path.glob("classifier-*.safetensors"))) == 1
    assert numbers["fid_classifier"] != MNIST_WEIGHTS_SHA256


@pytest.mark.slow
def test_eval_writes_the_distances_and_says_what_they_are_of(
    here: Callable[..., Path], tiny: list[str], tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VAEX_CACHE", str(tmp_path / "cache"))
    run, code = here(*tiny, "steps=12"), here(*tiny, "steps=12", "objective=ae", folder="code")
    capsys.readouterr()
    cli.run("eval", [str(run), str(code), "--samples", "0"])
    out = capsys.readouterr().out
    assert "FID of 300 means, z from the prior" in out and "FID of 300 means, z from the mixture of" in out
    assert results(run)["test/fid"] > results(run)["test/fid_floor"] > 0


class ByClass(nn.Module):
    """Decodes to an image of the requested class, or of a class `off` further."""

    def __init__(self, images: Images, off: int) -> None:
        super().__init__()
        self.examples = torch.stack([images.pixels[images.labels == n][0] / 255 for n in range(10)])
        self.off = off

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.examples[(z[:, -10:].argmax(1) + self.off) % 10]


def test_the_samples_of_a_conditional_model_are_compared_with_the_requested_class(dataset: Dataset) -> None:
    class Encoder(nn.Module):
        def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 4)

    likelihood = Gaussian(image_shape=SHAPE, scale=Fixed(image_shape=SHAPE, value=0.5), bounded_mean=False)
    for off, agreement in ((0, 1.0), (1, 0.0)):
        decoder = ByClass(dataset.train, off)
        model = Autoencoder(encoder=Encoder(), decoder=decoder, likelihood=likelihood, latent_dim=2, classes=10)
        assert quality(model, dataset)["class_agreement"] == pytest.approx(agreement, abs=0.001)
