"""The noise of images: its distribution, its independence, and that it belongs to the image and the draw alone."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from vaex.data.noise import GOLDEN_GAMMA, ImageNoise, mix, noise_of, normal, normal_like, uniform_like

Draw = Callable[[ImageNoise, int, int], Tensor]
DRAWS = {"uniform": (ImageNoise.uniform, stats.uniform()), "normal": (ImageNoise.normal, stats.norm())}


def test_the_generator_is_splitmix64() -> None:
    """Outputs for the seed 1234567, from Vigna's splitmix64.c."""
    states = 1234567 + GOLDEN_GAMMA * torch.arange(1, 6)
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [value % 2**64 for value in mix(states).tolist()] == outputs


@pytest.mark.parametrize("name", DRAWS)
def test_the_numbers_have_their_distribution(name: str) -> None:
    draw, exact = DRAWS[name]
    values = draw(ImageNoise(torch.arange(500)), 20, 101).double()
    count = values.numel()
    assert values.shape == (20, 500, 101)
    for moment in (1, 2, 3, 4):
        error = np.sqrt((exact.moment(2 * moment) - exact.moment(moment) ** 2) / count)
        assert values.pow(moment).mean().item() == pytest.approx(exact.moment(moment), abs=4 * error)
    # All numbers, and those of one sample, of one image and of one dimension, each against the distribution.
    for part in (values, values[3], values[:, 7], values[:, :, 0], values[:, :, 50], values[:, :, 100]):
        assert stats.kstest(part.flatten().numpy(), exact.cdf).pvalue > 1e-3
    assert 0 <= values.min() < values.max() < 1 or name == "normal"


@pytest.mark.parametrize("name", DRAWS)
def test_images_samples_and_dimensions_are_independent(name: str) -> None:
    """Correlations of values and of squares at all small distances, also of rows that are far apart."""
    draw, _ = DRAWS[name]
    rows = torch.cat([torch.arange(100), torch.arange(100) * 1000, 2**31 + torch.arange(100)])
    values = draw(ImageNoise(rows), 40, 100).double()  # [samples, images, dimensions]
    values = (values - values.mean()) / values.std()
    squares = (values.square() - 1) / values.square().std()
    for dimension in range(3):
        for distance in (1, 2, 3, 5, 10, 20, 30):
            count = values.shape[dimension] - distance
            for a, b in ((values, values), (squares, squares), (values, squares)):
                product = a.narrow(dimension, 0, count) * b.narrow(dimension, distance, count)
                assert product.mean().abs() < 4.5 / product.numel() ** 0.5, (dimension, distance)
    halves = values[..., :50] * values[..., 50:]  # two normal numbers are made of one pair of uniform ones
    assert halves.mean().abs() < 4.5 / halves.numel() ** 0.5


def test_pairs_of_numbers_fill_the_square_evenly() -> None:
    values = ImageNoise(torch.arange(2000)).uniform(2, 64).double()
    pairs = {
        "images": (values[:, :-1], values[:, 1:]),
        "samples": (values[:-1], values[1:]),
        "dimensions": (values[..., :-1], values[..., 1:]),
        "halves": (values[..., :32], values[..., 32:]),
    }
    for name, (a, b) in pairs.items():
        cells = (a * 16).long() * 16 + (b * 16).long()
        assert stats.chisquare(torch.bincount(cells.flatten(), minlength=256).numpy()).pvalue > 1e-3, name


@pytest.mark.parametrize("name", DRAWS)
def test_noise_depends_on_the_row_the_draw_and_the_seed_alone(name: str) -> None:
    draw, _ = DRAWS[name]
    whole = draw(ImageNoise(torch.arange(30)), 7, 5)
    part = ImageNoise(torch.tensor([22, 3, 7]))
    chunks = torch.cat([draw(part, 1, 5), draw(part, 4, 5), draw(part, 2, 5)])
    assert torch.equal(chunks, whole[:, [22, 3, 7]])
    assert (whole != draw(ImageNoise(torch.arange(30), seed=2), 7, 5)).float().mean() > 0.99


def test_what_the_batch_draws_belongs_to_its_images() -> None:
    x = torch.rand(6, 3, 4, 5)
    with noise_of(torch.arange(6)):
        whole = [uniform_like(x), normal_like(x), *normal(2, 6, 9, device=x.device)]
    for rows in (torch.tensor([4]), torch.tensor([1, 5])):
        with noise_of(rows):
            part = [uniform_like(x[rows]), normal_like(x[rows]), *normal(2, len(rows), 9, device=x.device)]
        assert all(torch.equal(a[rows], b) for a, b in zip(whole, part, strict=True))


def test_without_images_the_noise_is_torchs() -> None:
    """So is that of another number of images than the batch has."""
    x = torch.rand(6, 3, 4, 5)
    for rows in (None, torch.arange(2)):
        torch.manual_seed(0)
        expected = [torch.rand_like(x), torch.randn_like(x), torch.randn(2, 6, 9)]
        torch.manual_seed(0)
        if rows is None:
            noise = [uniform_like(x), normal_like(x), normal(2, 6, 9, device=x.device)]
        else:
            with noise_of(rows):
                noise = [uniform_like(x), normal_like(x), normal(2, 6, 9, device=x.device)]
        assert all(torch.equal(a, b) for a, b in zip(expected, noise, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_noise() -> None:
    rows = torch.arange(50)
    for draw, _ in DRAWS.values():
        here, there = (draw(ImageNoise(rows.to(device)), 3, 101).cpu() for device in ("cpu", "cuda"))
        assert torch.allclose(here, there, rtol=1e-5, atol=1e-6)
