"""Every likelihood in float32 against mpmath with 40 digits, on a grid with the ends, large outputs and all scales."""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import hypothesis
import hypothesis.strategies as st
import mpmath as mp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from vaex.likelihoods.base import LEVELS, Likelihood
from vaex.likelihoods.bernoulli import Bernoulli, CrossEntropy
from vaex.likelihoods.beta import Beta, BetaDistribution
from vaex.likelihoods.categorical import Categorical, CategoricalDistribution
from vaex.likelihoods.continuous_bernoulli import ContinuousBernoulli
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.laplace import Laplace
from vaex.likelihoods.logistic import Logistic
from vaex.likelihoods.mixture import DiscretizedLogisticMixture
from vaex.likelihoods.scale import Fixed, PerImage, PerPixel
from vaex.likelihoods.softplus import softplus
from vaex.likelihoods.student_t import StandardStudentT, StudentT
from vaex.likelihoods.truncated_normal import TruncatedNormal, TruncatedNormalDistribution

mp.mp.dps = 40
SHAPE = (1, 1, 1)
RAW = [-30.0, -9.7, -3.0, -1.0, -0.3, -1e-3, 0.0, 1e-6, 0.2, 1.0, 4.0, 12.0, 30.0]
PIXELS = [k / 255 for k in (0, 1, 2, 77, 128, 200, 254, 255)]
INSIDE = [2.0**-33, 1e-6, 1e-3, 0.3, 0.5, 0.9, 1 - 1e-6, 1 - 2.0**-24]
SCALES = [1 / 255, 0.01, 0.1, 1.0, 50.0]
Oracle = Callable[..., mp.mpf]


def sigmoid(h: mp.mpf) -> mp.mpf:
    return 1 / (1 + mp.exp(-h))


def normal(e: mp.mpf) -> mp.mpf:
    return -e * e / 2 - mp.log(2 * mp.pi) / 2


def student(e: mp.mpf) -> mp.mpf:
    return mp.loggamma(3) - mp.loggamma(mp.mpf(5) / 2) - mp.log(5 * mp.pi) / 2 - 3 * mp.log1p(e * e / 5)


DENSITIES = {
    Gaussian: normal,
    Laplace: lambda e: -abs(e) - mp.log(2),
    Logistic: lambda e: -abs(e) - 2 * mp.log1p(mp.exp(-abs(e))),
    StudentT: student,
}
CDFS = {  # of the lower tail, where 40 digits hold
    Gaussian: lambda e: mp.erfc(-e / mp.sqrt(2)) / 2,
    Laplace: lambda e: mp.exp(e) / 2 if e < 0 else 1 - mp.exp(-e) / 2,
    Logistic: lambda e: mp.exp(e) / (1 + mp.exp(e)) if e < 0 else 1 / (1 + mp.exp(-e)),
}


def interval(cdf: Oracle, low: mp.mpf, high: mp.mpf) -> mp.mpf:
    """log of the mass between, mirrored into the lower tail."""
    if low > 0:
        low, high = -high, -low
    return mp.log(cdf(high) - cdf(low))


def density(family: type, bounded: bool, scale: float) -> Oracle:
    def log_prob(x: mp.mpf, h: mp.mpf) -> mp.mpf:
        loc = sigmoid(h) if bounded else h
        return DENSITIES[family]((x - loc) / scale) - mp.log(scale)

    return log_prob


def bins(cdf: Oracle, x: mp.mpf, loc: mp.mpf, scale: mp.mpf) -> mp.mpf:
    half = mp.mpf(1) / 510
    if x < half:
        return mp.log(cdf((x + half - loc) / scale))
    if x > 1 - half:
        return mp.log(cdf((loc - x + half) / scale))
    return interval(cdf, (x - half - loc) / scale, (x + half - loc) / scale)


def mass(family: type, bounded: bool, scale: float) -> Oracle:
    return lambda x, h: bins(CDFS[family], x, sigmoid(h) if bounded else h, mp.mpf(scale))


def continuous_bernoulli(bound: float) -> Oracle:
    def log_prob(x: mp.mpf, h: mp.mpf) -> mp.mpf:
        eta = bound * mp.tanh(h / bound)
        return eta * x - (mp.log(mp.expm1(eta) / eta) if eta else 0)

    return log_prob


def beta(cap: float) -> Oracle:
    size = mp.log(cap)

    def log_prob(x: mp.mpf, h: mp.mpf, g: mp.mpf) -> mp.mpf:
        a, b = mp.exp(size * mp.tanh(h / size)), mp.exp(size * mp.tanh(g / size))
        return (a - 1) * mp.log(x) + (b - 1) * mp.log1p(-x) - mp.loggamma(a) - mp.loggamma(b) + mp.loggamma(a + b)

    return log_prob


def truncated(scale: float) -> Oracle:
    def log_prob(x: mp.mpf, h: mp.mpf) -> mp.mpf:
        inside = interval(CDFS[Gaussian], -h / scale, (1 - h) / scale)
        return normal((x - h) / scale) - mp.log(scale) - inside

    return log_prob


@dataclass
class Case:
    make: Callable[[], Likelihood]
    oracle: Oracle
    xs: list[float]
    outputs: int = 1


def fixed(value: float) -> Fixed:
    return Fixed(image_shape=SHAPE, value=value)


def option(family: type) -> str:
    """The name of the family's YAML file, so that `pytest -k NAME` finds its cases."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", family.__name__).lower()


CASES: dict[str, Case] = {}
for family, bounded, scale in itertools.product(DENSITIES, (True, False), [1e-4, *SCALES]):
    more = {"degrees_of_freedom": 5.0} if family is StudentT else {}
    name = f"{option(family)}-{'bounded' if bounded else 'linear'}-{scale:.3g}"

    def make(family=family, bounded=bounded, scale=scale, more=more, **extra) -> Likelihood:
        return family(image_shape=SHAPE, scale=fixed(scale), bounded_mean=bounded, **more, **extra)

    if bounded and scale < SCALES[0]:
        continue  # the rounding of a location inside [0, 1] decides on the number
    CASES[name] = Case(make, density(family, bounded, scale), PIXELS)
    if family in CDFS:
        CASES[f"{name}-bins"] = Case(lambda make=make: make(discretize=True), mass(family, bounded, scale), PIXELS)
for bound in (9.21, 100.0, 389.0, 1000.0):
    CASES[f"continuous_bernoulli-{bound}"] = Case(
        lambda bound=bound: ContinuousBernoulli(image_shape=SHAPE, bound=bound),
        continuous_bernoulli(bound),
        PIXELS + INSIDE,
    )
for cap in (10.0, 1000.0, 79_000.0):
    CASES[f"beta-{cap}"] = Case(lambda cap=cap: Beta(image_shape=SHAPE, cap=cap), beta(cap), INSIDE, outputs=2)
for scale in SCALES:
    CASES[f"truncated_normal-{scale:.3g}"] = Case(
        lambda scale=scale: TruncatedNormal(image_shape=SHAPE, scale=fixed(scale)), truncated(scale), PIXELS
    )
CASES["bernoulli"] = Case(lambda: Bernoulli(image_shape=SHAPE), lambda x, h: x * h - mp.log1p(mp.exp(h)), [0.0, 1.0])
CASES["cross_entropy"] = Case(lambda: CrossEntropy(image_shape=SHAPE), lambda x, h: x * h - mp.log1p(mp.exp(h)), PIXELS)


def derivatives(oracle: Oracle, x: mp.mpf, outputs: list[mp.mpf]) -> list[mp.mpf]:
    """The derivative with respect to each output, by central differences, which 40 digits allow."""
    step = mp.mpf(10) ** -15
    ends = [
        [oracle(x, *outputs[:n], outputs[n] + sign * step, *outputs[n + 1 :]) for sign in (1, -1)]
        for n in range(len(outputs))
    ]
    return [(after - before) / (2 * step) for after, before in ends]


def assert_gradients(got: torch.Tensor, rows: torch.Tensor, oracle: Oracle, bounded: bool) -> None:
    """The gradients [N, outputs] at the rows [N, 1 + outputs] of x and the outputs are right to a thousandth."""
    for gradient, row in zip(got.tolist(), rows.tolist(), strict=True):
        x, *outputs = map(mp.mpf, row)
        for n, wanted in enumerate(derivatives(oracle, x, outputs)):
            error, allowed = abs(gradient[n] - wanted), 1e-5 + 1e-3 * abs(wanted)
            if bounded and error > allowed:  # σ(h) and σ(h) (1 - σ(h)) are right to half a unit in the last place
                rounding = mp.mpf(2) ** -25
                nearby = derivatives(oracle, x + rounding * (1 if x < 0.5 else -1), outputs)[n]
                slope = sigmoid(outputs[0]) * (1 - sigmoid(outputs[0]))
                allowed += abs(nearby - wanted) + (2 * rounding * abs(wanted) / slope if n == 0 else 0)
            assert error <= allowed, (row, gradient, float(wanted))


def grid(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """x [N, 1, 1, 1] and h [N, outputs, 1, 1], every combination."""
    rows = list(itertools.product(case.xs, *[RAW] * case.outputs))
    table = torch.tensor(rows)
    return table[:, :1, None, None], table[:, 1:, None, None]


@pytest.mark.parametrize("name", CASES)
def test_log_prob_and_its_gradient_on_the_whole_grid(name: str) -> None:
    case = CASES[name]
    x, h = grid(case)
    h.requires_grad_()
    got = case.make()(h).log_prob(x)
    expected, slack = [], []
    for row in torch.cat([x, h], 1).flatten(1).tolist():
        value, *outputs = map(mp.mpf, row)
        expected.append(float(case.oracle(value, *outputs)))
        # Half a unit in the last place of a float32 location is as good as one of x.
        nearby = value + mp.mpf(2) ** -25 * (1 if value < 0.5 else -1)
        slack.append(float(abs(case.oracle(nearby, *outputs) - expected[-1])) if "bounded" in name else 0.0)
    wanted = torch.tensor(expected)
    error, allowed = (got - wanted).abs(), 1e-5 * wanted.abs().clamp(min=1) + torch.tensor(slack)
    worst = (error - allowed).argmax()
    assert (error <= allowed).all(), (x[worst].item(), h[worst].flatten(), got[worst], wanted[worst])
    rows, gradient = torch.cat([x, h], 1).flatten(1), torch.autograd.grad(got.sum(), h)[0].flatten(1)
    every = 3 if case.outputs > 1 else 1  # 3 has no factor in common with the axes of the grid
    assert_gradients(gradient[::every], rows[::every], case.oracle, "bounded" in name)


def soft_floor(raw: mp.mpf, floor: float, init: float = 0.3) -> mp.mpf:
    """Scale of a predicted or learned rule."""
    low = mp.log(mp.mpf(floor))
    offset = mp.log(mp.expm1(mp.log(mp.mpf(init)) - low))
    return mp.exp(low + mp.log1p(mp.exp(raw + offset)))


PREDICTED = {
    **{option(family): (family, {}) for family in DENSITIES},
    **{f"{option(family)}-bins": (family, {"discretize": True}) for family in CDFS},
    "truncated_normal": (TruncatedNormal, {}),
}


# With one pixel the two rules are the same, so that one family is enough for the second.
@pytest.mark.parametrize(
    "name, rule, floor",
    [*((name, PerPixel, floor) for name in PREDICTED for floor in (1 / 255, None)), ("gaussian", PerImage, 1 / 255)],
)
def test_predicted_scales_on_the_whole_grid(name: str, rule: type, floor: float | None) -> None:
    """Raw outputs up to 30 for the location and the log scale: from one gray level, or the family's floor, to 3e12."""
    family, more = PREDICTED[name]
    scale = rule(image_shape=SHAPE, floor=floor, init=0.3)
    more = more | ({"degrees_of_freedom": 5.0} if family is StudentT else {})
    bounded = family is not TruncatedNormal
    more = more | ({"bounded_mean": True} if bounded else {})
    likelihood = family(image_shape=SHAPE, scale=scale, **more)
    rows = torch.tensor(list(itertools.product(PIXELS, RAW[::2], RAW)))
    h = rows[:, 1:, None, None].requires_grad_()
    got = likelihood(h).log_prob(rows[:, :1, None, None])

    def oracle(x: mp.mpf, raw_loc: mp.mpf, raw_scale: mp.mpf) -> mp.mpf:
        s = soft_floor(raw_scale, scale.floor)
        if family is TruncatedNormal:
            return truncated(s)(x, raw_loc)
        return (mass if more.get("discretize") else density)(family, True, s)(x, raw_loc)

    expected, slack = [], []
    for x, raw_loc, raw_scale in rows.tolist():
        value = oracle(mp.mpf(x), mp.mpf(raw_loc), mp.mpf(raw_scale))
        expected.append(float(value))
        # A float32 location and a float32 log scale are each right to half a unit in the last place.
        nearby = mp.mpf(x) + mp.mpf(2) ** -25 * (1 if x < 0.5 else -1)
        shift = abs(oracle(nearby, mp.mpf(raw_loc), mp.mpf(raw_scale)) - value) if bounded else 0
        slack.append(float(shift))
    wanted = torch.tensor(expected)
    error, allowed = (got - wanted).abs(), 1e-5 * wanted.abs().clamp(min=1) + torch.tensor(slack)
    worst = (error - allowed).argmax()
    assert (error <= allowed).all(), (rows[worst], got[worst], wanted[worst])
    gradient = torch.autograd.grad(got.sum(), h)[0].flatten(1)
    assert_gradients(gradient[::5], rows[::5], oracle, bounded)  # 5 has no factor in common with the axes of the grid


@hypothesis.given(
    family=st.sampled_from(list(CDFS)),
    loc=st.floats(-30, 30, width=32),
    log_scale=st.floats(-9.25, 25, width=32),
    bounded=st.booleans(),
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_masses_of_any_discretised_family_add_up_to_one(
    family: type, loc: float, log_scale: float, bounded: bool
) -> None:
    likelihood = family(image_shape=SHAPE, scale=fixed(math.exp(log_scale)), bounded_mean=bounded, discretize=True)
    distribution, levels = likelihood(torch.full((1, 1, 1), loc)), torch.arange(LEVELS)[:, None, None, None] / 255
    log_mass = distribution.log_prob(levels)
    assert (log_mass <= 1e-6).all()
    between = (distribution.cdf(levels) - distribution.cdf_below(levels)).flatten()
    torch.testing.assert_close(between, log_mass.exp(), rtol=0, atol=2e-6)
    assert log_mass.double().exp().sum().item() == pytest.approx(1, abs=2e-5)


@hypothesis.given(eta=st.floats(-1000, 1000, width=32))
@hypothesis.settings(max_examples=100, deadline=None)
def test_continuous_bernoulli_adds_up_to_one_at_any_logit(eta: float) -> None:
    likelihood = ContinuousBernoulli(image_shape=SHAPE, bound=1e9)
    theta = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * math.pi / 2
    x = theta.sin().square()
    density = likelihood(torch.full((1, 1, 1), eta)).log_prob(x[:, None, None, None]).double().exp()
    assert (density * 2 * theta.sin() * theta.cos()).mean().item() * math.pi / 2 == pytest.approx(1, abs=2e-3)


def test_mixture_is_the_mixture_of_its_bins() -> None:
    likelihood = DiscretizedLogisticMixture(
        image_shape=SHAPE, components=3, conditional_channels=False, floor=0.0005, init=0.1
    )
    torch.manual_seed(0)
    h = torch.cat([torch.randn(20, 9, 1, 1), 30 * torch.randn(20, 9, 1, 1).clamp(-1, 1)]).requires_grad_()
    floor = mp.log(mp.mpf("0.0005"))
    gap = mp.log(mp.mpf("0.1")) - floor
    for level in PIXELS:
        got = likelihood(h).log_prob(torch.full(SHAPE, level))
        for n, row in enumerate(h.flatten(1).tolist()):
            weights = [mp.exp(mp.mpf(v)) for v in row[:3]]
            parts = []
            for k in range(3):
                loc = row[3 + k] + (k + mp.mpf(1) / 2) / 3
                scale = mp.exp(floor + mp.log1p(mp.exp(row[6 + k] + mp.log(mp.expm1(gap)))))
                parts.append(weights[k] * mp.exp(bins(CDFS[Logistic], mp.mpf(level), loc, scale)))
            expected = float(mp.log(sum(parts) / sum(weights)))
            assert got[n].item() == pytest.approx(expected, rel=2e-5, abs=2e-5)
        assert torch.autograd.grad(got.sum(), h)[0].isfinite().all()


def test_conditional_channels_are_a_chain_of_mixtures() -> None:
    """The mass of all 256³ colors can't be summed; summing out the last channel leaves the chain of the first two."""
    shape = (3, 1, 1)
    likelihood = DiscretizedLogisticMixture(
        image_shape=shape, components=2, conditional_channels=True, floor=0.0005, init=0.1
    )
    torch.manual_seed(0)
    h = torch.randn(likelihood.out_channels(3), 1, 1)
    distribution = likelihood(h)
    levels = torch.arange(LEVELS) / 255

    def colors(*channels: torch.Tensor) -> torch.Tensor:
        return torch.stack(torch.broadcast_tensors(*channels), 1)[..., None, None]

    for r, g in ((0.0, 1.0), (0.4, 0.2)):
        total = torch.logsumexp(distribution.log_prob(colors(torch.tensor(r), torch.tensor(g), levels)), 0)
        other = torch.logsumexp(distribution.log_prob(colors(torch.tensor(r), torch.tensor(g), levels.flip(0))), 0)
        torch.testing.assert_close(total, other)
    green = torch.stack(
        [torch.logsumexp(distribution.log_prob(colors(torch.tensor(0.4), g, levels)), 0) for g in levels]
    )
    red = torch.logsumexp(green, 0)
    k = torch.log_softmax(h[:2, 0, 0], 0)
    alone = DiscretizedLogisticMixture(
        image_shape=(1, 1, 1), components=2, conditional_channels=False, floor=0.0005, init=0.1
    )
    of_red = torch.cat([k, h[[2, 5], 0, 0], h[[8, 11], 0, 0]])[:, None, None]
    torch.testing.assert_close(
        red, alone(of_red).log_prob(torch.full((1, 1, 1), 0.4 * 255 // 1 / 255)), atol=2e-3, rtol=0
    )
    drawn = distribution.sample((20_000,))
    assert drawn.shape == (20_000, 3, 1, 1)
    torch.testing.assert_close(drawn.mean(0), distribution.mean, atol=0.02, rtol=0)


@pytest.mark.parametrize("components, seed", [(1, 5), (4, 11)])
def test_the_mean_of_conditional_channels_is_that_of_all_colors(components: int, seed: int) -> None:
    likelihood = DiscretizedLogisticMixture(
        image_shape=(3, 1, 1), components=components, conditional_channels=True, floor=0.0005, init=0.1
    )
    generator = torch.Generator().manual_seed(seed)
    distribution = likelihood(torch.randn(likelihood.out_channels(3), 1, 1, generator=generator))
    levels = np.arange(LEVELS) / 255
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    weights, locs, log_scales = (
        part.double().reshape(components, -1).numpy()
        for part in (distribution.log_weights.exp(), distribution.loc, distribution.log_scale)
    )
    assert distribution.coefficients is not None
    coefficients = distribution.coefficients.double().reshape(components, 3, 3).numpy()
    expected = np.zeros(3)
    for weight, loc, scale, c in zip(weights[:, 0], locs, np.exp(log_scales), coefficients, strict=True):
        red = np.diff(scipy.special.expit((edges - loc[0]) / scale[0]))
        of_green = loc[1] + c[1, 0] * levels[:, None]  # [red, 1]
        green = np.diff(scipy.special.expit((edges - of_green) / scale[1]))  # [red, green], given red
        of_blue = loc[2] + c[2, 0] * levels[:, None] + c[2, 1] * levels
        blue = sum(scipy.special.expit((of_blue - edge) / scale[2]) for edge in edges[1:-1]) / 255  # mean given both
        expected += weight * np.array([red @ levels, red @ (green @ levels), red @ (green * blue).sum(1)])
    np.testing.assert_allclose(distribution.mean.flatten(), expected, atol=1e-3)


def test_categorical_is_a_softmax() -> None:
    likelihood = Categorical(image_shape=(2, 3, 3), features=4)
    h, x = 30 * torch.randn(5, 8, 3, 3), torch.randint(0, 256, (5, 2, 3, 3)) / 255
    features = h.view(5, 2, 4, 3, 3).double()
    weight, bias = likelihood.to_logits.weight.double(), likelihood.to_logits.bias.double()
    logits = torch.einsum("bcfhw,kf->bchwk", features, weight) + bias
    picked = torch.log_softmax(logits, -1).gather(-1, (x * 255).round().long().unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(likelihood(h).log_prob(x).double(), picked.sum((1, 2, 3)), rtol=1e-5, atol=1e-4)


MODERATE = [-4.0, -1.0, 0.0, 0.7, 3.0]


@pytest.mark.parametrize("name", [name for name in CASES if name.split("-")[0] not in ("bernoulli", "cross_entropy")])
def test_probabilities_add_up_to_one(name: str) -> None:
    case = CASES[name]
    likelihood = case.make()
    near_the_ends = likelihood.support == "open_unit_interval"  # for low outputs, nearer than the sum below can see
    raw = [-1.0, 0.0, 0.7, 3.0] if near_the_ends else MODERATE
    h = torch.tensor(list(itertools.product(raw, repeat=case.outputs)))[:, None, :, None, None]
    if likelihood.kind == "mass":
        x = torch.arange(LEVELS)[:, None, None, None] / 255
        total = likelihood(h).log_prob(x).exp().sum(-1)
    else:
        if likelihood.support == "real":  # substitute x = loc + scale · tan(θ): heavy tails have an end
            theta = (torch.arange(20_000) + 0.5) / 20_000 * math.pi - math.pi / 2
            scale = likelihood.scale.log_scale.exp().item()
            loc = likelihood(h).mean.squeeze((-3, -2, -1))
            x = loc + scale * theta.tan()
            log_prob = likelihood(h).log_prob(x[..., None, None, None])
            total = (log_prob.double().exp() * scale / theta.cos().double().square()).mean(-1) * math.pi
        else:  # x = sin²: dense at both ends
            theta = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * math.pi / 2
            x = theta.sin().square()
            log_prob = likelihood(h).log_prob(x[:, None, None, None])
            total = (log_prob.double().exp() * 2 * theta.sin() * theta.cos()).mean(-1) * math.pi / 2
    torch.testing.assert_close(total.double(), torch.ones_like(total).double(), atol=2e-3, rtol=0)


LOCATION_SCALE = ("bounded-0.1", "bounded-0.1-bins", "bounded-0.00392-bins")  # enough of these
SAMPLED = [
    name
    for name, case in CASES.items()
    if name.endswith(LOCATION_SCALE) or case.make().support in ("binary", "unit_interval", "open_unit_interval")
    if case.make().kind != "pseudo"
]


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_have_the_stated_mean_variance_and_cdf(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    h = torch.tensor(list(itertools.product(MODERATE, repeat=case.outputs)))[:, :, None, None]
    distribution = case.make()(h)
    count = 20_000
    samples = distribution.sample((count,))
    assert samples.shape == (count, len(h), 1, 1, 1)
    error = samples.std(0) / math.sqrt(count) + 1e-6
    assert ((samples.mean(0) - distribution.mean).abs() < 5 * error).all()
    kurtosis = ((samples - samples.mean(0)).pow(4).mean(0) / samples.var(0).square().clamp(min=1e-30)).clamp(min=3)
    tolerance = 6 * samples.var(0) * (kurtosis / count).sqrt() + 1e-7
    assert ((samples.var(0) - distribution.variance).abs() < tolerance).all()
    if not distribution.has_cdf:
        return
    for level in (0, 60, 128, 255):
        x = torch.full((len(h), 1, 1, 1), level / 255)
        pairs = [((samples <= x).float().mean(0), distribution.cdf(x))]
        if name.endswith("bins"):  # samples of a density are rounded, some of them to 1
            pairs.append(((samples < x).float().mean(0), distribution.cdf_below(x)))
        for share, stated in pairs:
            excess = (share - stated).abs() - 5 * (stated * (1 - stated) / count).clamp(min=0).sqrt()
            worst = int(excess.flatten().argmax())
            values = (level, h[worst].flatten().tolist(), share.flatten()[worst].item(), stated.flatten()[worst].item())
            assert (excess < 1e-4).all(), values


@pytest.mark.parametrize("scale", [1e-4, 1 / 255, 0.1, 1.0, 50.0, 4.8e4, 7e6, 2e7, 1e12])
@pytest.mark.parametrize("loc", [-30.0, -3.0, -1e-3, 0.0, 0.3, 0.5, 1.0, 1.2, 30.0])
def test_the_moments_of_a_truncated_normal(loc: float, scale: float) -> None:
    """By the formulas in terms of the densities at the ends, of which 100 digits survive any cancellation here."""
    log_scale = math.log(scale)
    shape = torch.Size((1, 1, 1))
    values = (torch.full(shape, value, dtype=torch.float64) for value in (loc, log_scale))
    distribution = TruncatedNormalDistribution(*values)
    with mp.workdps(100):
        m, s = mp.mpf(loc), mp.exp(mp.mpf(log_scale))
        low, high = -m / s, (1 - m) / s
        mass = mp.exp(interval(CDFS[Gaussian], low, high))
        at_low, at_high = (mp.exp(normal(end)) / mass for end in (low, high))
        mean = m + s * (at_low - at_high)
        variance = s * s * (1 + low * at_low - high * at_high - (at_low - at_high) ** 2)
    assert distribution.mean.item() == pytest.approx(float(mean), rel=1e-6)
    assert distribution.variance.item() == pytest.approx(float(variance), rel=1e-5)


@pytest.mark.parametrize(
    "alpha, beta", [(998.0, 1e-3), (1e-3, 998.0), (1e-3, 1e-3), (1e-3, 1.0), (0.5, 0.5), (1e3, 1e3)]
)
def test_samples_of_a_beta_are_never_an_end(alpha: float, beta: float) -> None:
    torch.manual_seed(0)
    concentrations = (torch.full((1, 1, 1), value, dtype=torch.float64) for value in (alpha, beta))
    distribution = BetaDistribution(*concentrations)
    samples = distribution.sample((100_000,))
    assert samples.dtype == torch.float32
    assert ((samples > 0) & (samples < 1)).all()
    assert distribution.log_prob(samples).isfinite().all()
    scipys = scipy.stats.beta(alpha, beta)
    for threshold in (1e-30, 1e-6, 0.1, 0.4999, 0.5001, 0.9, 1 - 1e-6):
        share = (samples < threshold).double().mean().item()
        error = 5 * math.sqrt(scipys.cdf(threshold) * scipys.sf(threshold) / len(samples))
        assert share == pytest.approx(scipys.cdf(threshold), abs=error + 1e-9), threshold
    if alpha == beta:
        assert samples.double().std().item() == pytest.approx(scipys.std(), rel=0.01)


@pytest.mark.parametrize("freedom", [2.1, 5.0, 30.0, 57.0, 58.0, 999.0, 1e3, 1e6, 1e9, 1e15])
def test_student_t_for_any_degrees_of_freedom(freedom: float) -> None:
    standard = StandardStudentT(freedom)
    e = torch.cat([torch.linspace(-15, 15, 1001, dtype=torch.float64), torch.tensor([-1e6, -40.0, 40.0, 1e6])])
    reference = scipy.stats.t(freedom) if freedom < 1e8 else scipy.stats.norm  # the difference is of the order of 1/ν
    np.testing.assert_allclose(standard.cdf(e), reference.cdf(e), atol=1e-7 + 1 / freedom * (freedom >= 1e8))
    v = mp.mpf(freedom)
    expected = mp.loggamma(v / 2) - mp.loggamma((v + 1) / 2) + mp.log(v * mp.pi) / 2
    assert standard.log_normalizer == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("family, reference", [(Gaussian, scipy.stats.norm), (Laplace, scipy.stats.laplace)])
@pytest.mark.parametrize("loc", [-0.01, 0.3, 0.97, 0.999])
def test_the_moments_of_bins_are_those_of_their_masses(family: type, reference, loc: float) -> None:
    """Also of a narrow distribution near 1, where E[X²] and E[X]² have most of their digits in common."""
    likelihood = family(image_shape=SHAPE, scale=fixed(1e-3), bounded_mean=False, discretize=True)
    distribution = likelihood(torch.full(SHAPE, loc))
    levels = np.arange(LEVELS) / 255
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    mass = np.diff(reference.cdf((edges - float(np.float32(loc))) / 1e-3))
    mean = mass @ levels
    assert distribution.mean.item() == pytest.approx(mean, abs=2e-6)
    assert distribution.variance.item() == pytest.approx(mass @ (levels - mean) ** 2, rel=1e-3, abs=1e-12)


def test_infinite_degrees_of_freedom_are_refused() -> None:
    with pytest.raises(ValueError, match="degrees_of_freedom=inf: must be a finite number > 2"):
        StudentT(image_shape=SHAPE, scale=fixed(1.0), bounded_mean=True, degrees_of_freedom=math.inf)


def test_continuous_bernoullis_known_values() -> None:
    """θ = 0.9999 has mean 0.8915; a logit of 100 has 0.99; torch's own is wrong beyond a logit of about 16."""
    likelihood = ContinuousBernoulli(image_shape=SHAPE, bound=1e6)
    for eta, mean in ((math.log(0.9999 / 0.0001), 0.8915), (math.log(0.9999999 / 1e-7), 0.937958), (100.0, 0.99)):
        assert likelihood(torch.full(SHAPE, eta)).mean.item() == pytest.approx(mean, abs=5e-5)
    eta = torch.tensor([-1e-3, -1e-5, 0.0, 1e-5, 1e-3])[:, None, None, None]
    distribution = likelihood(eta)
    assert (distribution.variance > 0.08).all() and (distribution.mean - 0.5).abs().max() < 1e-4


def test_softplus_and_its_gradient() -> None:
    """Relative to the value, also where it is 1e-38."""
    x = torch.cat([torch.linspace(-87, 88, 100_001), torch.tensor([0.0, -0.0, 1e4, -1e4])]).requires_grad_()
    value = softplus(x)
    exact = torch.nn.functional.softplus(x.detach().double(), threshold=1000)
    torch.testing.assert_close(value.detach().double(), exact, rtol=3e-7, atol=1e-38)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(gradient.double(), torch.sigmoid(x.detach().double()), rtol=1e-6, atol=1e-38)


def test_the_moments_of_a_categorical_are_those_of_its_table() -> None:
    generator = torch.Generator().manual_seed(0)
    distribution = CategoricalDistribution(3 * torch.randn(2, 1, 2, 3, 256, generator=generator))
    table = distribution.logits.double().softmax(-1).reshape(-1, 256).numpy()
    levels = np.arange(256) / 255
    mean = table @ levels
    variance = table @ levels**2 - mean**2
    np.testing.assert_allclose(distribution.mean.flatten(), mean, rtol=1e-5)
    np.testing.assert_allclose(distribution.variance.flatten(), variance, rtol=1e-3)
    np.testing.assert_allclose(distribution.mode.flatten() * 255, table.argmax(1), rtol=1e-6)
    for level in (0, 1, 100, 255):
        value = torch.full((2, 1, 2, 3), level / 255)
        np.testing.assert_allclose(distribution.cdf(value).flatten(), table[:, : level + 1].sum(1), rtol=1e-5)
        np.testing.assert_allclose(distribution.cdf_below(value).flatten(), table[:, :level].sum(1), atol=1e-6)
    drawn = distribution.sample(torch.Size([20_000]))
    assert drawn.shape == (20_000, 2, 1, 2, 3)
    error = np.sqrt(variance / 20_000)
    assert (np.abs(drawn.double().mean(0).flatten().numpy() - mean) < 5 * error).all()
    assert distribution.sample().shape == (2, 1, 2, 3)
