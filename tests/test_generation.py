"""Distances of what a model generates: a model that copies, one that draws noise, and one that has learnt something."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import results
from torch import nn

from vaex import cli
from vaex.data.dataset import Dataset, Images, Source
from vaex.evaluation.generation import generation_quality
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.scale import Fixed
from vaex.model import Autoencoder

SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def dataset(source: Source) -> Dataset:
    """Embedded MNIST, whose classifier is packaged, with fewer test images."""
    test = Images(source.test.pixels[:600], source.test.labels[:600])
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


def test_a_copy_is_at_no_distance_and_noise_is_far(dataset: Dataset) -> None:
    numbers = generation_quality(copying(0.5), dataset, draws="means", latent="prior")
    assert numbers["fid_reconstruction"] == pytest.approx(0, abs=1e-6)
    assert numbers["fid"] > 20 * numbers["fid_floor"] > 0
    assert numbers["precision"] < 0.05 and numbers["coverage"] < 0.05
    assert numbers["fid_images"] == 600 and numbers["fid_draws"] == "means" and numbers["fid_latent"] == "prior"


def test_pixel_noise_is_part_of_an_image_only_when_asked_for(dataset: Dataset) -> None:
    numbers = generation_quality(copying(0.5), dataset, draws="noise", latent="prior")
    assert numbers["fid_reconstruction"] > 10 and numbers["fid_draws"] == "noise"


def test_the_numbers_are_the_same_every_time(dataset: Dataset) -> None:
    first, second = (generation_quality(copying(0.5), dataset, draws="noise", latent="prior") for _ in range(2))
    assert first == second


def test_other_data_get_a_classifier_of_their_own(dataset: Dataset, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VAEX_CACHE", str(tmp_path))
    train = Images(dataset.source.train.pixels[:128], dataset.source.train.labels[:128])
    other = Dataset(source=Source(train, dataset.source.test, 10), validation=28, binarize="none", dequantize="none")
    numbers = generation_quality(copying(0.5), other, draws="means", latent="prior")
    assert len(list(tmp_path.glob("classifier-*.safetensors"))) == 1
    assert (
        numbers["fid_classifier"]
        != generation_quality(copying(0.5), dataset, draws="means", latent="prior")["fid_classifier"]
    )


@pytest.mark.slow
def test_eval_writes_the_distances_and_says_what_they_are_of(
    here: Callable[..., Path], tiny: list[str], tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VAEX_CACHE", str(tmp_path / "cache"))
    run, code = here(*tiny, "steps=12"), here(*tiny, "steps=12", "objective=ae", folder="code")
    capsys.readouterr()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    cli.evaluate([str(run), str(code), "--samples", "0"])
    out = capsys.readouterr().out
    assert "FID of 300 means, z from the prior" in out and "FID of 300 means, z from the mixture of" in out
    assert results(run)["test/fid"] > results(run)["test/fid_floor"] > 0
    with pytest.raises(SystemExit):
        cli.evaluate([str(run), "--samples", "0", "--inception"])
    assert "pip install 'vaex-autoencoders[inception]'" in capsys.readouterr().err


class ByClass(nn.Module):
    """Decodes to an image of the class asked for, or of the next one."""

    def __init__(self, images: Images, off: int) -> None:
        super().__init__()
        self.examples = torch.stack([images.pixels[images.labels == n][0] / 255 for n in range(10)])
        self.off = off

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.examples[(z[:, -10:].argmax(1) + self.off) % 10]


@pytest.mark.parametrize("off, agreement", [(0, 1.0), (1, 0.0)])
def test_a_conditional_models_samples_are_held_against_the_class_asked_for(
    dataset: Dataset, off: int, agreement: float
) -> None:
    class Encoder(nn.Module):
        def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 4)

    likelihood = Gaussian(image_shape=SHAPE, scale=Fixed(image_shape=SHAPE, value=0.5), bounded_mean=False)
    model = Autoencoder(
        encoder=Encoder(), decoder=ByClass(dataset.train, off), likelihood=likelihood, latent_dim=2, classes=10
    )
    numbers = generation_quality(model, dataset, draws="means", latent="prior")
    assert numbers["class_agreement"] == pytest.approx(agreement, abs=0.001)
