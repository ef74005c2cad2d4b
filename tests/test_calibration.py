"""Coverage of central intervals: nominal for a right model, above it for a wide one, below it for a narrow one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaex.data.dataset import Dataset, Images, Source
from vaex.evaluation.calibration import COVERAGE_LEVELS, calibration, probability_integral
from vaex.evaluation.measure import Evaluation
from vaex.likelihoods.base import Likelihood, PixelDistribution
from vaex.model import Autoencoder
from vaex.objectives import AE

SHAPE, COUNT, MEAN, STD = (1, 8, 8), 2000, 0.5, 0.1


class Normal(PixelDistribution):
    """The same normal for every image."""

    def __init__(self, shape: torch.Size, std: float) -> None:
        super().__init__(shape)
        self.normal = torch.distributions.Normal(torch.full(shape, MEAN), std)

    def cdf(self, value: Tensor) -> Tensor:
        return self.normal.cdf(value)


class Rounded(Normal):
    """The normal rounded to a few levels, 1/8 apart: a mass, with the probability below and up to each."""

    def cdf(self, value: Tensor) -> Tensor:
        return self.normal.cdf(value + 1 / 16)

    def cdf_below(self, value: Tensor) -> Tensor:
        return self.normal.cdf(value - 1 / 16)


class Decoded(Likelihood):
    kind, support = "pseudo", "real"  # so that the dataset's own conversion gives the pixels

    def __init__(self, distribution: type[Normal], std: float) -> None:
        super().__init__(image_shape=SHAPE)
        self.distribution, self.std = distribution, std

    def forward(self, h: Tensor, x: Tensor | None = None) -> PixelDistribution:
        assert h.ndim == 4  # one sample of z for each image, [B, C, H, W]
        return self.distribution(h.shape, self.std)


class Zeros(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.zeros(len(x), *self.shape)


def model(std: float = STD, distribution: type[Normal] = Normal) -> Autoencoder:
    likelihood = Decoded(distribution, std)
    return Autoencoder(encoder=Zeros(4), decoder=Zeros(*SHAPE), likelihood=likelihood, latent_dim=2)


class Sampled(Dataset):
    """Images whose pixels are samples of the right normal, or rounded ones."""

    rounded = False

    def to_float(self, pixels: Tensor) -> Tensor:
        x = MEAN + STD * torch.randn(pixels.shape)
        return (x * 8).round() / 8 if self.rounded else x


IMAGES = Images(torch.zeros(COUNT, *SHAPE, dtype=torch.uint8), torch.zeros(COUNT, dtype=torch.int64))


def results(model: Autoencoder, rounded: bool = False) -> dict[str, Any]:
    dataset = Sampled(source=Source(IMAGES, IMAGES, 1), validation=0, binarize="none", dequantize="none")
    dataset.rounded = rounded
    return calibration(Evaluation(model, AE(), dataset, images_per_batch=300))


def test_a_right_model_covers_what_it_should() -> None:
    assert len(COVERAGE_LEVELS) == 20
    error = 0.5 / (COUNT * 64) ** 0.5  # at most, of a fraction of 128,000 pixels
    values = results(model())
    coverage = values["test/calibration"]
    assert coverage == pytest.approx(COVERAGE_LEVELS, abs=4 * error)
    assert values["test/calibration_levels"] == list(COVERAGE_LEVELS)
    chosen = [values[f"test/coverage_{level}"] for level in (50, 90, 99)]
    assert chosen == [coverage[9], coverage[17], coverage[19]]


def test_coverage_of_a_wrong_scale_is_the_normals() -> None:
    """P(|e| <= factor · quantile) for e ~ N(0, 1)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    quantiles = normal.icdf(0.5 + torch.tensor(COVERAGE_LEVELS) / 2)
    for factor in (2.0, 0.5):
        expected = 2 * normal.cdf(factor * quantiles) - 1
        coverage = results(model(STD * factor))["test/calibration"]
        assert coverage == pytest.approx(expected.tolist(), abs=0.006)
        assert all((c > level) == (factor > 1) for c, level in zip(coverage, COVERAGE_LEVELS, strict=True))


def test_a_mass_of_few_levels_is_calibrated_too() -> None:
    """Without the uniform v inside a step, intervals of half a step's mass would be covered always or never."""
    coverage = results(model(distribution=Rounded), rounded=True)["test/calibration"]
    assert coverage == pytest.approx(COVERAGE_LEVELS, abs=0.006)


def test_the_integral_of_a_mass_is_uniform() -> None:
    torch.manual_seed(0)
    x = ((MEAN + STD * torch.randn(1, 1, 300, 300)) * 8).round() / 8
    v = probability_integral(Rounded(x.shape, STD), x)
    counts = v.flatten().histc(10, 0, 1)
    assert (counts / v.numel() - 0.1).abs().max() < 0.006


def test_it_is_left_out_for_a_distribution_without_a_cdf() -> None:
    class Without(Normal):
        cdf = PixelDistribution.cdf

    assert results(model(distribution=Without)) == {}
