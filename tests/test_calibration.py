"""Coverage of central intervals: nominal for a right model, above it for a wide one, below it for a narrow one."""

import pytest
import torch
from torch import Tensor, nn

from vaex.data.dataset import Images
from vaex.evaluation.calibration import LEVELS, calibration, probability_integral
from vaex.model import Autoencoder

SHAPE, COUNT, MEAN, STD = (1, 8, 8), 2000, 0.5, 0.1


class Rounded(torch.distributions.Normal):
    """A normal rounded to a few levels, 1/8 apart: a mass, with the probability below and up to each."""

    def cdf(self, value: Tensor) -> Tensor:
        return super().cdf(value + 1 / 16)

    def cdf_below(self, value: Tensor) -> Tensor:
        return super().cdf(value - 1 / 16)


class Decoded(nn.Module):
    """A likelihood by duck type: the same distribution for every image."""

    def __init__(self, distribution: type[torch.distributions.Distribution], std: float) -> None:
        super().__init__()
        self.distribution, self.std = distribution, std

    def forward(self, h: Tensor, x: Tensor | None) -> torch.distributions.Distribution:
        assert h.ndim == 4  # one draw of z for each image, [B, C, H, W]
        return self.distribution(torch.full_like(h, MEAN), self.std)


class Zeros(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.zeros(len(x), *self.shape)


def model(
    std: float = STD, distribution: type[torch.distributions.Distribution] = torch.distributions.Normal
) -> Autoencoder:
    likelihood = Decoded(distribution, std)
    return Autoencoder(encoder=Zeros(4), decoder=Zeros(*SHAPE), likelihood=likelihood, latent_dim=2)  # type: ignore[arg-type]


IMAGES = Images(torch.zeros(COUNT, *SHAPE, dtype=torch.uint8), torch.zeros(COUNT, dtype=torch.int64))


def drawn(pixels: Tensor) -> Tensor:
    return MEAN + STD * torch.randn(pixels.shape)


def coverage(model: Autoencoder, to_float: object = drawn) -> list[float]:
    found = calibration(model, IMAGES, to_float, batch_size=300)  # type: ignore[arg-type]
    assert found is not None
    return found.coverage


def test_a_right_model_covers_what_it_should() -> None:
    assert len(LEVELS) == 20
    error = 0.5 / (COUNT * 64) ** 0.5  # at most, of a fraction of 128,000 pixels
    assert coverage(model()) == pytest.approx(LEVELS, abs=4 * error)


def test_coverage_of_a_wrong_scale_is_the_normals() -> None:
    """P(|e| <= factor · quantile) for e ~ N(0, 1)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    quantiles = normal.icdf(0.5 + torch.tensor(LEVELS) / 2)
    for factor in (2.0, 0.5):
        expected = 2 * normal.cdf(factor * quantiles) - 1
        found = coverage(model(STD * factor))
        assert found == pytest.approx(expected.tolist(), abs=0.006)
        assert all((f > level) == (factor > 1) for f, level in zip(found, LEVELS, strict=True))


def test_levels_are_found_by_name() -> None:
    found = calibration(model(), IMAGES, drawn)
    assert found is not None
    assert (found.at(0.5), found.at(0.9), found.at(0.99)) == (found.coverage[9], found.coverage[17], found.coverage[19])


def test_a_mass_of_few_levels_is_calibrated_too() -> None:
    """Without the draw inside the step, intervals of half a step's mass would be covered always or never."""

    def rounded(pixels: Tensor) -> Tensor:
        return (drawn(pixels) * 8).round() / 8

    assert coverage(model(distribution=Rounded), rounded) == pytest.approx(LEVELS, abs=0.006)


def test_the_integral_of_a_mass_is_uniform() -> None:
    torch.manual_seed(0)
    x = ((MEAN + STD * torch.randn(1, 1, 300, 300)) * 8).round() / 8
    v = probability_integral(Rounded(torch.full_like(x, MEAN), STD), x)
    counts = v.flatten().histc(10, 0, 1)
    assert (counts / v.numel() - 0.1).abs().max() < 0.006


def test_it_is_left_out_for_a_distribution_without_a_cdf() -> None:
    class Without(torch.distributions.Normal):
        def cdf(self, value: Tensor) -> Tensor:
            raise NotImplementedError

    assert calibration(model(distribution=Without), IMAGES, drawn) is None
