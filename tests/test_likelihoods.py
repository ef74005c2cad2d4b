"""Sums over pixels, broadcasting, floors and known values. test_likelihood_oracles.py has the values of each pixel."""

import math

import pytest
import scipy.stats
import torch

from vaex.data.dataset import Dataset, Source
from vaex.likelihoods.base import Likelihood
from vaex.likelihoods.bernoulli import Bernoulli, CrossEntropy
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.laplace import Laplace
from vaex.likelihoods.location_scale import LocationScale
from vaex.likelihoods.scale import Fixed, PerPixel, Shared, SoftFloor

SHAPE = (2, 3, 4)


def scale_of(rule: str, floor: float = 1e-3, init: float = 0.3, value: float = 0.7):
    return {
        "fixed": lambda: Fixed(image_shape=SHAPE, value=value),
        "shared": lambda: Shared(image_shape=SHAPE, floor=floor, init=init),
        "per_pixel": lambda: PerPixel(image_shape=SHAPE, floor=floor, init=init),
    }[rule]()


def decoded(likelihood: Likelihood, *batch: int, spread: float = 1.0) -> torch.Tensor:
    torch.manual_seed(0)
    return spread * torch.randn(*batch, likelihood.out_channels(SHAPE[0]), *SHAPE[1:])


@pytest.mark.parametrize("rule", ["fixed", "shared", "per_pixel"])
def test_log_prob_is_the_sum_over_pixels_of_scipys(rule: str) -> None:
    """A scale that several pixels share counts for each of them."""
    for family, reference in ((Gaussian, scipy.stats.norm), (Laplace, scipy.stats.laplace)):
        likelihood = family(image_shape=SHAPE, scale=scale_of(rule), bounded_mean=True)
        h, x = decoded(likelihood, 5), torch.rand(5, *SHAPE)
        distribution = likelihood(h)
        scale = {"fixed": torch.tensor(0.7), "shared": torch.tensor(0.3)}.get(rule, distribution.scale)
        loc, scale = h[:, :2].double().sigmoid(), scale.double().expand(5, *SHAPE)
        expected = torch.tensor(reference.logpdf(x.double(), loc, scale)).sum((1, 2, 3))
        torch.testing.assert_close(distribution.log_prob(x).double(), expected, rtol=1e-5, atol=1e-4)


def test_bernoulli_is_finite_where_the_sigmoid_is_not_invertible() -> None:
    logits = torch.tensor([-1000.0, 1000.0]).view(1, 1, 2).requires_grad_()
    for x in (0.0, 1.0):
        value = Bernoulli(image_shape=(1, 1, 2))(logits).log_prob(torch.full((1, 1, 2), x))
        assert value.item() == -1000
        assert torch.autograd.grad(value, logits)[0].isfinite().all()


def test_several_decodings_of_one_image_are_scored_at_once() -> None:
    likelihood = Gaussian(image_shape=SHAPE, scale=scale_of("per_pixel"), bounded_mean=True)
    h, x = decoded(likelihood, 7, 5), torch.rand(5, *SHAPE)
    together = likelihood(h).log_prob(x)
    assert together.shape == (7, 5)
    for sample in range(7):
        for image in range(5):
            torch.testing.assert_close(likelihood(h[sample, image]).log_prob(x[image]), together[sample, image])


def test_soft_floor_starts_at_init_and_flattens_above_the_floor() -> None:
    torch.testing.assert_close(SoftFloor(floor=1 / 255, init=0.3)(torch.zeros(())).exp(), torch.tensor(0.3))
    floor = SoftFloor(floor=math.exp(-6), init=math.exp(-6) * 2)
    raw = torch.tensor([-3.0, -6.0]) - floor.offset + 6  # where log scale itself would be -3 and -6
    torch.testing.assert_close(
        floor(raw) - torch.tensor([-3.0, -6.0]), torch.tensor([0.0486, 0.6931]), atol=1e-4, rtol=0
    )
    assert (floor(torch.tensor(-1e4)).exp() >= math.exp(-6) * (1 - 1e-6)).all()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_impossible_scales_are_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match="likelihood.scale.value"):
        Fixed(image_shape=SHAPE, value=value)
    with pytest.raises(ValueError, match="likelihood.scale.floor"):
        Shared(image_shape=SHAPE, floor=value, init=1.0)


@pytest.fixture(scope="module")
def x(source: Source) -> torch.Tensor:
    return Dataset(source=source, validation=0, binarize="none", dequantize="none").to_float(source.train.pixels)


class TestFloorsOfMnist:
    """What a collapsed posterior reaches: the decoder's best constant output, over the 60,000 training images."""

    def mean_nll(self, likelihood: Likelihood, h: torch.Tensor, x: torch.Tensor) -> float:
        parts = [likelihood(h).log_prob(part).double() for part in x.split(10_000)]
        return -torch.cat(parts).mean().item()

    def test_pixels(self, x: torch.Tensor) -> None:
        mean, mean_square = (power.sum(0, dtype=torch.float64) / len(x) for power in (x, x.square()))
        assert (mean_square - mean.square()).sum().item() == pytest.approx(52.7250, abs=1e-4)
        for value, share in ((0, 0.8088), (1, 0.0067)):
            assert (x == value).count_nonzero().item() / x.numel() == pytest.approx(share, abs=5e-5)

    def test_unit_gaussian(self, x: torch.Tensor) -> None:
        unit = Fixed(image_shape=(1, 28, 28), value=1.0)
        likelihood = Gaussian(image_shape=(1, 28, 28), scale=unit, bounded_mean=False)
        constant = 784 / 2 * math.log(2 * math.pi)
        assert self.mean_nll(likelihood, x.mean(0), x) - constant == pytest.approx(26.363, abs=1e-3)

    def test_optimal_gaussian(self, x: torch.Tensor) -> None:
        sigma = Fixed(image_shape=(1, 28, 28), value=math.sqrt(52.7250 / 784))
        likelihood = Gaussian(image_shape=(1, 28, 28), scale=sigma, bounded_mean=False)
        assert self.mean_nll(likelihood, x.mean(0), x) == pytest.approx(54.315, abs=1e-2)

    def test_cross_entropy(self, x: torch.Tensor) -> None:
        logits = x.mean(0).clamp(1e-12).logit()
        assert self.mean_nll(CrossEntropy(image_shape=(1, 28, 28)), logits, x) == pytest.approx(206.03, abs=1e-2)

    def test_cross_entropy_has_a_floor_that_no_model_passes(self, x: torch.Tensor) -> None:
        logits = x.clamp(1e-7, 1 - 1e-7).logit()
        parts = [
            CrossEntropy(image_shape=(1, 28, 28))(h).log_prob(y)
            for h, y in zip(logits.split(10_000), x.split(10_000), strict=True)
        ]
        assert -torch.cat(parts).double().mean().item() == pytest.approx(45.757, abs=1e-2)


@pytest.mark.parametrize("family, power, factor", [(Gaussian, 2, 0.5), (Laplace, 1, 1.0)])
@pytest.mark.parametrize("rule", ["fixed", "shared"])
def test_distortion_is_the_weighted_mean_error_up_to_a_constant(family, power: int, factor: float, rule: str) -> None:
    likelihood: LocationScale = family(image_shape=SHAPE, scale=scale_of(rule), bounded_mean=True)
    h, x = decoded(likelihood, 2), torch.rand(2, *SHAPE)
    distribution = likelihood(h)
    error = (x - distribution.mean).abs().pow(power).mean((1, 2, 3))
    rest = -distribution.log_prob(x) - likelihood.mean_error_weight(distribution) * error
    torch.testing.assert_close(rest[0], rest[1], rtol=1e-5, atol=1e-4)
