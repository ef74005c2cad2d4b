"""Log-probabilities against scipy, densities against their integral, and scales against their definitions."""

import math

import numpy as np
import pytest
import scipy.special
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


def laplace_log_density(x, loc, scale):  # scipy's own underflows in the tails; where it doesn't, the two agree
    exact = -np.abs(x - loc) / scale - np.log(2 * scale)
    near = np.abs(x - loc) < 100 * scale
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(exact[near], scipy.stats.laplace.logpdf(x, loc, scale)[near], rtol=1e-12, atol=1e-12)
    return exact


FAMILIES = [(Gaussian, scipy.stats.norm.logpdf), (Laplace, laplace_log_density)]


def scale_of(rule: str, floor: float = 1e-3, init: float = 0.3, value: float = 0.7):
    return {
        "fixed": lambda: Fixed(image_shape=SHAPE, value=value),
        "shared": lambda: Shared(image_shape=SHAPE, floor=floor, init=init),
        "per_pixel": lambda: PerPixel(image_shape=SHAPE, floor=floor, init=init),
    }[rule]()


def decoded(likelihood: Likelihood, *batch: int, spread: float = 1.0) -> torch.Tensor:
    torch.manual_seed(0)
    return spread * torch.randn(*batch, likelihood.out_channels(SHAPE[0]), *SHAPE[1:])


@pytest.mark.parametrize("family, oracle", FAMILIES)
@pytest.mark.parametrize("rule", ["fixed", "shared", "per_pixel"])
@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_log_prob_is_scipys(family, oracle, rule: str, bounded: bool, spread: float) -> None:
    likelihood = family(image_shape=SHAPE, scale=scale_of(rule), bounded_mean=bounded)
    h = decoded(likelihood, 5, spread=spread)
    x = torch.rand(5, *SHAPE)
    x[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    distribution = likelihood(h)
    loc = h[:, :2].double()
    loc = loc.sigmoid() if bounded else loc
    if rule == "per_pixel":
        floor = math.log(1e-3)
        gap = math.log(0.3) - floor
        raw = h[:, 2:].double() + math.log(math.expm1(gap))
        scale = torch.exp(floor + torch.nn.functional.softplus(raw))
    else:
        scale = torch.tensor(0.7 if rule == "fixed" else 0.3, dtype=torch.float64)
    expected = oracle(x.double().numpy(), loc.numpy(), scale.expand(loc.shape).numpy()).sum((1, 2, 3))
    torch.testing.assert_close(distribution.log_prob(x).double(), torch.tensor(expected), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", [Gaussian, Laplace])
@pytest.mark.parametrize("rule", ["fixed", "shared", "per_pixel"])
def test_density_integrates_to_one(family, rule: str) -> None:
    shape = (1, 1, 1)
    scale = {"fixed": Fixed(image_shape=shape, value=0.05), "shared": Shared(image_shape=shape, floor=0.01, init=0.2)}
    rule_of = scale.get(rule) or PerPixel(image_shape=shape, floor=0.01, init=0.2)
    likelihood = family(image_shape=shape, scale=rule_of, bounded_mean=True)
    distribution = likelihood(torch.full((likelihood.out_channels(1), 1, 1), 0.3))
    x = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    density = distribution.log_prob(x[:, None, None, None]).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_bernoulli_and_cross_entropy_are_their_formula(binary: bool) -> None:
    likelihood = (Bernoulli if binary else CrossEntropy)(image_shape=SHAPE)
    logits = decoded(likelihood, 5, spread=10)
    x = torch.rand(5, *SHAPE)
    x = x.round() if binary else x
    on, off = (torch.tensor(scipy.special.log_expit(sign * logits.double().numpy())) for sign in (1, -1))
    expected = (x.double() * on + (1 - x.double()) * off).sum((1, 2, 3))
    torch.testing.assert_close(likelihood(logits).log_prob(x).double(), expected, rtol=1e-5, atol=1e-4)


def test_bernoulli_is_finite_where_the_sigmoid_is_not_invertible() -> None:
    logits = torch.tensor([-1000.0, 1000.0]).view(1, 1, 2).requires_grad_()
    for x in (0.0, 1.0):
        value = Bernoulli(image_shape=(1, 1, 2))(logits).log_prob(torch.full((1, 1, 2), x))
        assert value.item() == -1000
        assert torch.autograd.grad(value, logits)[0].isfinite().all()


@pytest.mark.parametrize(
    "likelihood",
    [
        Bernoulli(image_shape=SHAPE),
        CrossEntropy(image_shape=SHAPE),
        Gaussian(image_shape=SHAPE, scale=scale_of("per_pixel"), bounded_mean=True),
        Laplace(image_shape=SHAPE, scale=scale_of("fixed"), bounded_mean=False),
    ],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_samples_have_the_stated_mean_and_variance(likelihood: Likelihood) -> None:
    distribution = likelihood(decoded(likelihood))
    drawn = distribution.sample((40_000,))
    assert drawn.shape == (40_000, *SHAPE)
    error = distribution.variance.sqrt() / math.sqrt(40_000)
    assert ((drawn.mean(0) - distribution.mean).abs() < 5 * error).all()
    torch.testing.assert_close(drawn.var(0), distribution.variance, rtol=0.1, atol=1e-4)


def test_several_decodings_of_one_image_are_scored_at_once() -> None:
    likelihood = Gaussian(image_shape=SHAPE, scale=scale_of("per_pixel"), bounded_mean=True)
    h, x = decoded(likelihood, 7, 5), torch.rand(5, *SHAPE)
    together = likelihood(h).log_prob(x)
    assert together.shape == (7, 5)
    for sample in range(7):
        for image in range(5):
            torch.testing.assert_close(likelihood(h[sample, image]).log_prob(x[image]), together[sample, image])


def test_soft_floor_starts_at_init_and_adds_what_it_should() -> None:
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
        assert x.double().var(0, correction=0).sum().item() == pytest.approx(52.7250, abs=1e-4)
        assert (x == 0).double().mean().item() == pytest.approx(0.8088, abs=5e-5)
        assert (x == 1).double().mean().item() == pytest.approx(0.0067, abs=5e-5)

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
