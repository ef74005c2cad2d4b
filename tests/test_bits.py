"""Bits per dimension: known values, and which pixels a likelihood is scored on."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import norm

from vaex.data.dataset import Dataset, Images, Source, dequantize
from vaex.evaluation.bits import Scoring, scoring
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.scale import Fixed

SHAPE = (3, 4, 5)


def dataset(pixels: torch.Tensor | None = None, **options: Any) -> Dataset:
    if pixels is None:
        pixels = torch.randint(0, 256, (200, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.zeros(len(pixels), dtype=torch.int64))
    return Dataset(
        source=Source(train=images, test=images, classes=1),
        validation=0,
        **{"binarize": "none", "dequantize": "none", **options},
    )


def likelihood(kind: str, support: str = "real") -> Any:
    return SimpleNamespace(kind=kind, support=support)


def score(kind: str, support: str = "real", **options: Any) -> Scoring:
    scored = scoring(likelihood(kind, support), dataset(**options))
    assert scored is not None
    return scored


def test_a_uniform_density_and_a_uniform_mass_say_nothing_8_bits_a_pixel() -> None:
    nll_density = 0.0  # log 1 on [0, 1]
    nll_mass = math.prod(SHAPE) * math.log(256)
    assert score("density", "unit_interval").bits_per_dim(nll_density, math.prod(SHAPE)) == 8.0
    assert score("mass", "uint8").bits_per_dim(nll_mass, math.prod(SHAPE)) == pytest.approx(8.0, rel=1e-12)


def test_a_coin_for_each_pixel_is_one_bit() -> None:
    of_binary = score("mass", "binary", binarize="static")
    assert of_binary.pixels == "binary"
    assert of_binary.bits_per_dim(60 * math.log(2), 60) == pytest.approx(1.0, rel=1e-12)


def test_a_gaussian_of_dequantized_pixels_against_scipy() -> None:
    gaussian = Gaussian(image_shape=SHAPE, scale=Fixed(image_shape=SHAPE, value=0.3), bounded_mean=False)
    of_density = scoring(gaussian, dataset())
    assert of_density is not None and of_density.pixels == "(k+u)/256"
    torch.manual_seed(0)
    x = of_density.to_float(dataset().test.pixels)
    nll = -gaussian(torch.full_like(x, 0.5)).log_prob(x).mean().item()
    expected = -norm(0.5, 0.3).logpdf(x.double().numpy()).mean() / math.log(2) + 8
    assert of_density.bits_per_dim(nll, math.prod(SHAPE)) == pytest.approx(expected, rel=1e-6)


def test_a_density_bounds_the_mass_that_it_gives_to_the_levels() -> None:
    """Of one pixel: E_u -log2 p((k+u)/256) + 8 >= -log2 ∫ over the bin, with equality as sigma grows."""
    pixels = torch.full((200_000, 1, 1, 1), 140, dtype=torch.uint8)
    torch.manual_seed(0)
    x = dequantize(pixels)
    for sigma, slack in ((0.01, 0.01), (1.0, 1e-4)):
        bits = -norm(0.545, sigma).logpdf(x.double().numpy()).mean() / math.log(2) + 8
        bin_mass = norm(0.545, sigma).cdf(141 / 256) - norm(0.545, sigma).cdf(140 / 256)
        assert -1e-6 < bits + math.log2(bin_mass) < slack


def test_what_is_scored_does_not_depend_on_how_the_run_was_trained() -> None:
    for option in ("none", "uniform"):
        assert score("density", dequantize=option).pixels == "(k+u)/256"
        assert score("mass", "uint8", dequantize=option).pixels == "k/255"
    grey = dataset().test.pixels
    assert torch.equal(score("mass", "uint8", dequantize="uniform").to_float(grey), grey.float() / 255)


def test_dequantized_pixels_stay_inside_their_bins() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(5_000)
    x = dequantize(pixels)
    assert x.min() > 0 and x.max() < 1
    bins = (x.double() * 256).floor()
    assert (bins - pixels).abs().max() <= 1  # float32 may round up to the edge of the next
    assert (bins != pixels).float().mean() < 1e-4


def test_no_bits_where_there_is_no_probability_of_an_image() -> None:
    assert scoring(likelihood("pseudo", "unit_interval"), dataset()) is None
    assert scoring(likelihood("pseudo", "unit_interval"), dataset(binarize="static")) is None
    assert scoring(likelihood("density"), dataset(binarize="threshold")) is None
    two_levels = torch.randint(0, 2, (50, *SHAPE), dtype=torch.uint8) * 255
    assert scoring(likelihood("density"), dataset(two_levels)) is None


def test_any_mass_on_binary_images_is_a_probability_of_them() -> None:
    assert score("mass", "uint8", binarize="static").pixels == "binary"
