"""Bits per dimension: known values, and which pixels a likelihood is scored on."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import norm

from vaex.data.dataset import Dataset, Images, Source, dequantize
from vaex.evaluation.bits import image_scores, scored_pixels, scored_to_float
from vaex.evaluation.split import ToFloat
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


def to_float(likelihood: Any, dataset: Dataset) -> ToFloat:
    evaluation: Any = SimpleNamespace(model=SimpleNamespace(likelihood=likelihood), dataset=dataset)
    return scored_to_float(evaluation)


def bits_per_dim(nll: float, kind: str, support: str = "real", **options: Any) -> float:
    """Bits/dim of an image with this NLL of x in nats."""
    elbo = {"test/elbo": -nll, "test/rate": 1.0, "test/distortion": nll - 1}
    bits: float = image_scores(elbo, likelihood(kind, support), dataset(**options))["test/bits_per_dim"]
    return bits


def test_a_uniform_density_and_a_uniform_mass_say_nothing_8_bits_a_pixel() -> None:
    nll_density = 0.0  # log 1 on [0, 1]
    nll_mass = math.prod(SHAPE) * math.log(256)
    assert bits_per_dim(nll_density, "density", "unit_interval", dequantize="uniform") == 8.0
    assert bits_per_dim(nll_mass, "mass", "uint8") == pytest.approx(8.0, rel=1e-12)


def test_a_coin_for_each_pixel_is_one_bit() -> None:
    assert bits_per_dim(60 * math.log(2), "mass", "binary", binarize="static") == pytest.approx(1.0, rel=1e-12)


def test_a_gaussian_of_dequantized_pixels_against_scipy() -> None:
    gaussian = Gaussian(image_shape=SHAPE, scale=Fixed(image_shape=SHAPE, value=0.3), bounded_mean=False)
    torch.manual_seed(0)
    x = to_float(gaussian, dataset())(dataset().test.pixels)
    nll = -gaussian(torch.full_like(x, 0.5)).log_prob(x).mean().item()
    expected = -norm(0.5, 0.3).logpdf(x.double().numpy()).mean() / math.log(2) + 8
    assert bits_per_dim(nll, "density", dequantize="uniform") == pytest.approx(expected, rel=1e-6)


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
        assert scored_pixels(likelihood("density"), dataset(dequantize=option)) == "(k+u)/256"
        assert to_float(likelihood("density"), dataset(dequantize=option)) is dequantize
    gray = dataset().test.pixels
    assert scored_pixels(likelihood("mass", "uint8"), dataset()) == "k/255"
    assert torch.equal(to_float(likelihood("mass", "uint8"), dataset())(gray), gray.float() / 255)


def test_dequantized_pixels_stay_inside_their_bins() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(5_000)
    x = dequantize(pixels)
    assert x.min() > 0 and x.max() < 1
    bins = (x.double() * 256).floor()
    assert (bins - pixels).abs().max() <= 1  # float32 may round up to the edge of the next
    assert (bins != pixels).float().mean() < 1e-4


def test_no_bits_where_there_is_no_probability_of_an_image() -> None:
    assert scored_pixels(likelihood("pseudo", "unit_interval"), dataset()) is None
    assert scored_pixels(likelihood("pseudo", "unit_interval"), dataset(binarize="static")) is None
    assert scored_pixels(likelihood("density"), dataset(binarize="threshold")) is None
    two_levels = torch.randint(0, 2, (50, *SHAPE), dtype=torch.uint8) * 255
    assert scored_pixels(likelihood("density"), dataset(two_levels)) is None


def test_any_mass_on_binary_images_is_a_probability_of_them() -> None:
    assert scored_pixels(likelihood("mass", "uint8"), dataset(binarize="static")) == "binary"
