"""Floors, caps and bounds cost every family the same. The costs here come from scipy and from searches of their own."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from conftest import composed
from torch import Tensor, nn

from vaex.build import build_model
from vaex.config import targets
from vaex.data.dataset import Images
from vaex.evaluation.floor import floor_cost
from vaex.likelihoods.base import Likelihood, PixelDistribution
from vaex.likelihoods.beta import Beta
from vaex.likelihoods.continuous_bernoulli import ContinuousBernoulli
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.laplace import Laplace
from vaex.likelihoods.location_scale import LocationScale, Standard
from vaex.likelihoods.logistic import Logistic
from vaex.likelihoods.mixture import DiscretizedLogisticMixture
from vaex.likelihoods.scale import Fixed, Optimal, OptimalPerPixel, PerDimension, PerImage, PerPixel, Shared
from vaex.likelihoods.student_t import StudentT
from vaex.likelihoods.truncated_normal import TruncatedNormal
from vaex.model import Autoencoder

SHAPE = (1, 2, 2)
BIN = 1 / 256
OLD = 1 / 255
FAMILIES = {  # family: (scipy's distribution, floor of its density, floor of its bins), computed by hand with scipy
    Gaussian: (scipy.stats.norm, 0.00137, 0.000725),
    Laplace: (scipy.stats.laplace, 0.00128, 0.000394),
    Logistic: (scipy.stats.logistic, 0.000855, 0.000346),
    StudentT: (scipy.stats.t(5), 0.00131, None),
}


class StandardQuartic(Standard):
    """A user's family, scipy's gennorm(4)."""

    log_normalizer = math.log(2 * math.gamma(5 / 4))
    variance = math.gamma(3 / 4) / math.gamma(1 / 4)

    def log_kernel(self, e: Tensor) -> Tensor:
        return -e.pow(4)


class Quartic(LocationScale):
    standard = StandardQuartic()


def make(family: type, floor: float | None = None, rule: type = Shared, **more) -> Likelihood:
    more |= {"degrees_of_freedom": 5.0} if family is StudentT else {}
    more |= {"bounded_mean": None} if family is not TruncatedNormal else {}
    arguments = {} if issubclass(rule, Optimal | OptimalPerPixel) else {"init": 0.3}
    return family(image_shape=SHAPE, scale=rule(image_shape=SHAPE, floor=floor, **arguments), **more)


def density_bits(logpdf: Callable[[float], float], scale: float) -> float:
    """Mean over u of -log2 p((k+u)/256) + 8, with the location in the middle of the bin."""
    integrand = lambda u: -logpdf((u - 0.5) * BIN / scale) + math.log(scale)  # noqa: E731
    return scipy.integrate.quad(integrand, 0, 1, points=[0.5], epsabs=1e-10)[0] / math.log(2) + 8


def lowest(bits: Callable[[float], float], bracket: tuple[float, float] = (-8.0, -6.0)) -> float:
    """The minimum over log scales."""
    return float(scipy.optimize.minimize_scalar(lambda t: bits(math.exp(t)), bracket=bracket, tol=1e-10).fun)


@pytest.mark.parametrize("family", [*FAMILIES, Quartic])
def test_the_floor_of_a_density_costs_a_twentieth_of_a_bit(family: type) -> None:
    logpdf = (scipy.stats.gennorm(4) if family is Quartic else FAMILIES[family][0]).logpdf
    likelihood = make(family)
    floor = likelihood.bounds()["scale_floor"]
    best = lowest(partial(density_bits, logpdf))
    cost = density_bits(logpdf, floor) - best
    one_more = floor + 10.0 ** (math.floor(math.log10(floor)) - 2)  # in the third digit
    assert cost <= 0.05 < density_bits(logpdf, one_more) - best
    assert likelihood.floor_bits() == pytest.approx(cost, abs=1e-7)
    assert make(family, floor=OLD).floor_bits() == pytest.approx(density_bits(logpdf, OLD) - best, abs=1e-7)
    assert make(family, floor=1e-5).floor_bits() == pytest.approx(0, abs=1e-7)  # below the best scale
    if family is not Quartic:
        assert floor == FAMILIES[family][1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_no_location_and_scale_of_a_grid_do_better_than_the_floor_allows(family: type, level: int) -> None:
    """The location is not held in the middle of the bin, and any scale from the floor on is tried."""
    reference, floor, _ = FAMILIES[family]
    x = (level + (np.arange(100) + 0.5) / 100) * BIN
    loc = (level + np.linspace(0.04, 0.96, 25)) * BIN
    scale = np.append(np.geomspace(1e-4, 0.01, 200), floor)
    e = (x - loc[:, None, None]) / scale[:, None]
    bits = (np.log(scale) - reference.logpdf(e).mean(-1)) / math.log(2) + 8
    excess = bits[:, scale >= floor].min() - bits.min()
    assert 0.047 < excess < 0.0502
    assert bits.min() == pytest.approx(lowest(partial(density_bits, reference.logpdf)), abs=1e-3)


def bin_bits(cdf: Callable[[np.ndarray], np.ndarray], level: int, loc: np.ndarray, scale: float) -> float:
    """-log2 of the mass of a bin, at the best location."""
    low, high = ((level + side / 2) / 255 for side in (-1, 1))
    upper = 1.0 if level == 255 else cdf((high - loc) / scale)
    lower = 0.0 if level == 0 else cdf((low - loc) / scale)
    return -math.log2((upper - lower).max())


@pytest.mark.parametrize("family", [Gaussian, Laplace, Logistic])
def test_the_floor_of_bins_costs_a_hundredth_of_a_bit(family: type) -> None:
    reference, _, floor = FAMILIES[family]
    likelihood = make(family, discretize=True)
    assert likelihood.bounds()["scale_floor"] == floor
    loc = np.linspace(-0.2, 1.2, 14 * 255 + 1)
    costs = {level: bin_bits(reference.cdf, level, loc, floor) for level in (0, 128, 255)}
    assert costs[128] == pytest.approx(likelihood.floor_bits(), abs=1e-6)
    assert costs[0] < 1e-6 and costs[255] < 1e-6 and 0.0098 < costs[128] <= 0.01
    assert bin_bits(reference.cdf, 128, loc, floor + 1e-6) > 0.01
    middle = bin_bits(reference.cdf, 128, np.array([128 / 255]), OLD)
    assert make(family, floor=OLD, discretize=True).floor_bits() == pytest.approx(middle, abs=1e-6)


def test_the_floor_of_a_mixture_is_that_of_its_bins() -> None:
    config = composed("likelihood=discretized_logistic_mixture").likelihood
    assert config["floor"] == FAMILIES[Logistic][2]
    mixture = DiscretizedLogisticMixture(
        image_shape=SHAPE, components=2, conditional_channels=False, floor=config["floor"], init=0.1
    )
    assert mixture.bounds() == {"scale_floor": config["floor"]}
    assert mixture.floor_bits() == pytest.approx(make(Logistic, discretize=True).floor_bits())


def truncated_normal_bits(loc: float, scale: float, level: int) -> float:
    low, high = -loc / scale, (1 - loc) / scale
    low, high = (-high, -low) if low > 0 else (low, high)
    a, b = scipy.special.log_ndtr(low), scipy.special.log_ndtr(high)
    log_mass = b + math.log1p(-math.exp(a - b))
    squares = ((level + 0.5) * BIN - loc) ** 2 + BIN**2 / 12
    nats = squares / (2 * scale**2) + math.log(scale) + 0.5 * math.log(2 * math.pi) + log_mass
    return float(nats) / math.log(2) + 8


@pytest.mark.parametrize("level", [0, 1, 2, 85, 128, 254, 255])
def test_the_floor_of_a_truncated_normal_is_a_gaussians_at_every_level(level: int) -> None:
    likelihood = make(TruncatedNormal)
    floor = likelihood.bounds()["scale_floor"]
    assert floor == FAMILIES[Gaussian][1]
    middle = (level + 0.5) * BIN

    def best_loc(scale: float) -> float:
        bracket = (middle - 0.01, middle + 0.01)
        return float(
            scipy.optimize.minimize_scalar(lambda m: truncated_normal_bits(m, scale, level), bracket=bracket).fun
        )

    scales = np.geomspace(5e-4, 0.01, 120)
    bits = np.array([best_loc(scale) for scale in (*scales, floor, OLD)])
    usable = bits[:-1][np.append(scales >= floor, True)]
    cost = usable.min() - bits.min()
    assert cost <= 0.05
    old_cost = bits[-1] - bits.min()
    if level in (0, 255):  # half a normal, which is as narrow at a larger scale
        assert cost < 1e-3 and 0.15 < old_cost < 0.25
    else:
        assert cost > 0.047 and old_cost == pytest.approx(make(TruncatedNormal, floor=OLD).floor_bits(), abs=0.15)
    assert cost <= likelihood.floor_bits() + 1e-4


def beta_bits(level: int, cap: float) -> float:
    """The fewest bits with concentrations up to `cap`, by a search over the mean and their sum; level < 128."""
    t, weights = np.polynomial.legendre.leggauss(60)
    t, weights = (t + 1) / 2, weights / 2
    u, weights = (t**2, 2 * t * weights) if level == 0 else (t, weights)  # the log density is infinite at x = 0
    x, middle = (level + u) * BIN, (level + 0.5) * BIN

    def bits(mean: float, total: float) -> float:
        a, b = mean * total, (1 - mean) * total
        log_density = (a - 1) * np.log(x) + (b - 1) * np.log1p(-x)
        normalizer = scipy.special.gammaln(a) + scipy.special.gammaln(b) - scipy.special.gammaln(a + b)
        return float(8 - (weights @ log_density - normalizer) / math.log(2))

    def fewest(mean: float) -> float:
        high = math.log(cap / max(mean, 1 - mean))
        search = scipy.optimize.minimize_scalar(lambda n: bits(mean, math.exp(n)), bounds=(2.0, high), method="bounded")
        return min(float(search.fun), bits(mean, math.exp(high)))

    near = (middle * 0.3, middle * 2) if level == 0 else (middle - BIN / 2, middle + BIN / 2)
    return float(scipy.optimize.minimize_scalar(fewest, bounds=near, method="bounded", options={"xatol": 1e-9}).fun)


@pytest.mark.parametrize("level", [0, 1, 10, 60, 85, 127])
def test_the_cap_of_a_beta_costs_a_twentieth_of_a_bit_at_the_worst_level(level: int) -> None:
    cap = composed("likelihood=beta").likelihood["cap"]
    best = beta_bits(level, 1e6)
    cost, worst = beta_bits(level, cap) - best, Beta(image_shape=SHAPE, cap=cap).floor_bits()
    assert -1e-3 < cost <= 0.05 and worst is not None and cost <= worst + 1e-3
    low = beta_bits(level, 1000.0) - best
    bound = Beta(image_shape=SHAPE, cap=1000.0).floor_bits()
    assert bound is not None and low <= bound + 1e-3
    if level == 85:
        assert cost == pytest.approx(worst, abs=1e-3) and low == pytest.approx(bound, abs=5e-3)
        assert beta_bits(level, 78_000) - best > 0.05


@pytest.mark.parametrize("level", [0, 1, 2, 128, 254, 255])
def test_the_bound_of_a_continuous_bernoulli_costs_a_twentieth_of_a_bit_at_black(level: int) -> None:
    bound = composed("likelihood=continuous_bernoulli").likelihood["bound"]
    mean = min(level + 0.5, 255.5 - level) * BIN  # mirrored

    def bits(eta: float) -> float:
        return 8 + (math.log(-math.expm1(-eta)) - math.log(eta) + eta * mean) / math.log(2)

    best = lowest(bits, (-1.0, 6.0))
    eta = float(scipy.optimize.minimize_scalar(lambda t: bits(math.exp(t)), bracket=(-1.0, 6.0)).x)

    def cost(limit: float) -> float:
        return bits(min(math.exp(eta), limit)) - best

    assert cost(bound) <= 0.05
    for limit in (bound, 100.0, 9.21):
        stated = ContinuousBernoulli(image_shape=SHAPE, bound=limit).floor_bits()
        assert stated is not None and cost(limit) <= stated + 1e-6
        if level in (0, 255):
            assert stated == pytest.approx(cost(limit), abs=1e-6)
    if level == 0:
        assert cost(bound - 1) > 0.05


@pytest.mark.parametrize("rule", [Shared, PerDimension, PerImage, PerPixel, Optimal, OptimalPerPixel])
def test_a_rule_keeps_a_number_and_has_no_other_state(rule: type) -> None:
    given, default = make(Gaussian, OLD, rule), make(Gaussian, None, rule)
    assert given.bounds() == {"scale_floor": OLD}
    assert default.bounds() == {"scale_floor": 0.00137}
    assert given.state_dict().keys() == default.state_dict().keys()


def test_the_start_must_be_above_a_resolved_floor() -> None:
    for family, init in ((Gaussian, 0.00137), (Laplace, 0.00128)):
        with pytest.raises(ValueError, match=rf"init={init}: must be above likelihood.scale.floor={init}"):
            family(image_shape=SHAPE, scale=Shared(image_shape=SHAPE, floor=None, init=init), bounded_mean=True)
    scale = Shared(image_shape=SHAPE, floor=None, init=0.001)  # above the floor of bins
    likelihood = Gaussian(image_shape=SHAPE, scale=scale, bounded_mean=None, discretize=True)
    torch.testing.assert_close(likelihood(torch.zeros(SHAPE)).scale, torch.full((1, 1, 1), 0.001))


def test_a_family_without_a_finite_density_is_told_to_set_a_floor() -> None:
    class Broken(LocationScale):
        class standard(StandardQuartic):  # noqa: N801
            def log_kernel(self, e: Tensor) -> Tensor:
                return torch.full_like(e, math.nan)

    Broken.standard = Broken.standard()
    with pytest.raises(ValueError, match=r"no floor costs 0.05 bits/dim .*set likelihood.scale.floor"):
        make(Broken)
    assert make(Broken, floor=0.01).bounds() == {"scale_floor": 0.01}


class Uniform(PixelDistribution):
    @property
    def mean(self) -> Tensor:
        return torch.full(self.batch_shape + self.event_shape, 0.5)


class Outside(Likelihood):
    """A user's likelihood that knows nothing about floors, but takes a scale rule."""

    support, kind = "real", "density"

    def __init__(self, *, image_shape: tuple[int, int, int], scale: Shared | None = None) -> None:
        super().__init__(image_shape=image_shape)
        self.scale = scale

    def forward(self, h: Tensor, x: Tensor | None = None) -> PixelDistribution:
        if self.scale is not None:
            self.scale(h, None, lambda error, dimensions: error)
        return Uniform(h.shape)


def test_a_users_likelihood_needs_to_know_nothing_about_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed("architecture.hidden=[4]")
    config.likelihood = {"_target_": "mypackage.Outside", "scale": config.likelihood["scale"]}
    find = targets.find
    monkeypatch.setattr(
        "vaex.config.create.find", lambda key, name: Outside if name == "mypackage.Outside" else find(key, name)
    )
    model = build_model(config, (1, 4, 4), classes=0, stochastic=True)
    assert model.likelihood.bounds() == {"scale_floor": FAMILIES[Gaussian][1]}
    images = Images(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    assert floor_cost(model, images, lambda pixels: pixels / 255) == {}
    with pytest.raises(ValueError, match="likelihood.scale.floor=null: .*resolve_floor"):
        Outside(image_shape=SHAPE, scale=Shared(image_shape=SHAPE, floor=None, init=0.3))(torch.zeros(1, *SHAPE))


def autoencoder(likelihood: Likelihood, output: Tensor) -> Autoencoder:
    """A model that decodes every z to the same output, [out_channels, 2, 2]."""
    decoder = nn.Linear(2, output.numel())
    nn.init.zeros_(decoder.weight)
    decoder.bias.data = output.flatten().clone()
    return Autoencoder(
        encoder=nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), 4)),
        decoder=nn.Sequential(decoder, nn.Unflatten(1, output.shape)),
        likelihood=likelihood,
        latent_dim=2,
    )


LOW, HIGH = -40.0, 0.0  # outputs for a scale, at the floor and at the start
IMAGES = Images(torch.zeros(5, *SHAPE, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize(
    "name, outputs, share",
    [
        ("per_pixel", [[0, 0, 0, 0], [LOW, LOW, LOW, HIGH]], 0.75),
        ("shared", [[0, 0, 0, 0]], 0.0),
        ("truncated_normal", [[0, 0, 0, 0], [LOW, HIGH, HIGH, HIGH]], 0.25),
        ("bins", [[0, 0, 0, 0], [LOW, LOW, HIGH, HIGH]], 0.5),
        ("beta", [[99, 0, 0, 0], [99, 99, 0, 0]], 0.5),
        ("continuous_bernoulli", [[-1e5, 1e5, 1, -1e5]], 0.75),
        # Components with weights of 3/4 and 1/4, the first of which is at the floor in half of the pixels.
        ("mixture", [[math.log(3)] * 4, [0] * 4, [0] * 4, [0] * 4, [LOW, LOW, HIGH, HIGH], [HIGH] * 4], 0.375),
    ],
)
def test_the_cost_on_training_images_is_the_share_at_the_floor_times_its_cost(name: str, outputs, share) -> None:
    likelihood = {
        "per_pixel": lambda: make(Gaussian, OLD, PerPixel),
        "shared": lambda: make(Gaussian, OLD),
        "truncated_normal": lambda: make(TruncatedNormal, OLD, PerPixel),
        "bins": lambda: make(Laplace, OLD, PerPixel, discretize=True),
        "beta": lambda: Beta(image_shape=SHAPE, cap=10.0),
        "continuous_bernoulli": lambda: ContinuousBernoulli(image_shape=SHAPE, bound=9.21),
        "mixture": lambda: DiscretizedLogisticMixture(
            image_shape=SHAPE, components=2, conditional_channels=False, floor=OLD, init=0.1
        ),
    }[name]()
    output = torch.tensor(outputs, dtype=torch.float32).reshape(-1, *SHAPE[1:])
    cost = floor_cost(autoencoder(likelihood, output), IMAGES, lambda pixels: pixels / 255)
    bits = likelihood.floor_bits()
    assert bits is not None and bits > 0.9
    assert cost == {"train/floor_share": pytest.approx(share), "train/floor_bits": pytest.approx(share * bits)}


def test_a_frozen_optimal_scale_may_be_at_its_floor() -> None:
    likelihood = make(Gaussian, OLD, Optimal)
    likelihood.freeze(torch.zeros(3, *SHAPE))
    cost = floor_cost(autoencoder(likelihood, torch.zeros(SHAPE)), IMAGES, lambda pixels: pixels / 255)
    assert cost["train/floor_share"] == 1


def test_a_likelihood_without_a_floor_has_no_cost() -> None:
    model = autoencoder(
        Gaussian(image_shape=SHAPE, scale=Fixed(image_shape=SHAPE, value=1.0), bounded_mean=True), torch.zeros(SHAPE)
    )
    assert floor_cost(model, IMAGES, lambda pixels: pixels / 255) == {}
