"""Optimal scales are where the likelihood is highest, and evaluation never looks at the image."""

import math

import pytest
import scipy.optimize
import torch
from conftest import composed
from torch import nn

from vaex.build import build_model
from vaex.data.dataset import Images
from vaex.errors import UserError
from vaex.evaluation.bound import freeze_scales
from vaex.likelihoods.base import Likelihood, PixelDistribution
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.laplace import Laplace
from vaex.likelihoods.location_scale import LocationScale, LocationScaleDistribution
from vaex.likelihoods.logistic import Logistic
from vaex.likelihoods.scale import (
    Fixed,
    Optimal,
    OptimalPerImage,
    OptimalPerPixel,
    PerDimension,
    PerImage,
)
from vaex.likelihoods.student_t import StudentT
from vaex.model import Autoencoder

SHAPE = (2, 5, 6)


def make(family: type, scale) -> LocationScale:
    more = {"degrees_of_freedom": 5.0} if family is StudentT else {}
    return family(image_shape=SHAPE, scale=scale, bounded_mean=True, **more)


FAMILIES = [Gaussian, Laplace, Logistic, StudentT]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0])
def test_optimal_scale_is_where_the_likelihood_is_highest(family: type, spread: float) -> None:
    error = (spread * torch.randn(4, *SHAPE) * torch.rand(4, *SHAPE)).double()
    standard = make(family, Optimal(image_shape=SHAPE, floor=1e-9)).standard
    got = standard.optimal_log_scale(error, (0, 1, 2, 3)).item()

    def nll(log_scale: float) -> float:
        e = error * math.exp(-log_scale)
        return (-standard.log_kernel(e) + log_scale).sum().item()

    best = scipy.optimize.minimize_scalar(nll, bracket=(got - 1, got + 1), tol=1e-10).x
    assert got == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", [Optimal, OptimalPerImage, OptimalPerPixel])
def test_the_derivative_at_the_optimum_is_zero(family: type, rule: type) -> None:
    """Also if most pixels are black and predicted well."""
    x = torch.rand(4, *SHAPE) * (torch.rand(4, *SHAPE) < 0.2)
    h = torch.where(x > 0, torch.randn_like(x), -8.0)
    distribution = make(family, rule(image_shape=SHAPE, floor=1e-9))(h, x)
    log_scale = distribution.log_scale.double().requires_grad_()
    log_prob = LocationScaleDistribution(distribution.loc.double(), log_scale, distribution.standard).log_prob(x)
    (derivative,) = torch.autograd.grad(log_prob.sum(), log_scale)
    sharing = x.numel() / derivative.numel()  # pixels that share a scale
    torch.testing.assert_close(derivative / sharing, torch.zeros_like(derivative), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", [Gaussian, Laplace, Logistic])
@pytest.mark.parametrize("rule", [Optimal, OptimalPerImage, OptimalPerPixel])
def test_an_optimal_scale_of_bins_is_refused(family: type, rule: type) -> None:
    """It would be that of the density, at which the derivative of the mass is not zero."""
    with pytest.raises(ValueError, match=r"likelihood/scale: .*discretize=true.*use likelihood/scale=shared"):
        family(image_shape=SHAPE, scale=rule(image_shape=SHAPE, floor=1e-3), bounded_mean=None, discretize=True)


def test_discretized_logistic_refuses_an_optimal_scale() -> None:
    config = composed("likelihood=discretized_logistic", "likelihood/scale=optimal")
    with pytest.raises(UserError, match=r"likelihood/scale: [^\n]*use likelihood/scale=shared$"):
        build_model(config, (1, 6, 6), classes=0, stochastic=True)


def test_optimal_gaussian_is_root_mean_square_and_laplace_mean_absolute() -> None:
    error = torch.randn(4, *SHAPE)
    for family, value in ((Gaussian, error.square().mean().sqrt()), (Laplace, error.abs().mean())):
        log_scale = make(family, Fixed(image_shape=SHAPE, value=1.0)).standard.optimal_log_scale(error, (0, 1, 2, 3))
        torch.testing.assert_close(log_scale.exp().squeeze(), value)


def test_nll_at_the_optimum_is_the_textbooks() -> None:
    """Gaussian ½ log(2π MSE) + ½, Laplace log(2 MAE) + 1, for each dimension."""
    x, h = torch.rand(4, *SHAPE), torch.randn(4, *SHAPE)
    error = x - h.sigmoid()
    for family, expected in (
        (Gaussian, 0.5 * torch.log(2 * math.pi * error.square().mean()) + 0.5),
        (Laplace, torch.log(2 * error.abs().mean()) + 1),
    ):
        distribution = make(family, Optimal(image_shape=SHAPE, floor=1e-6))(h, x)
        torch.testing.assert_close(-distribution.log_prob(x).mean() / math.prod(SHAPE), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", [Optimal, OptimalPerImage])
def test_the_decoders_gradient_is_the_one_through_the_optimum(family: type, rule: type) -> None:
    """The scale is detached; differentiating through it, by finite differences of the whole loss, gives the same."""
    x, h = torch.rand(3, *SHAPE).double(), torch.randn(3, *SHAPE).double().requires_grad_()
    likelihood = make(family, rule(image_shape=SHAPE, floor=1e-6)).double()
    loss = -likelihood(h, x).log_prob(x).sum()
    gradient = torch.autograd.grad(loss, h)[0]
    direction = torch.randn_like(h)
    step = 1e-4
    with torch.no_grad():
        ends = [-likelihood(h + sign * step * direction, x).log_prob(x).sum() for sign in (1, -1)]
    assert ((ends[0] - ends[1]) / (2 * step)).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", [Optimal, OptimalPerImage, OptimalPerPixel])
def test_evaluation_never_looks_at_x(family: type, rule: type) -> None:
    likelihood = make(family, rule(image_shape=SHAPE, floor=1e-3))
    h = torch.randn(4, *SHAPE)
    likelihood(h, torch.rand(4, *SHAPE))
    likelihood.eval()
    a, b = (likelihood(h, torch.rand(4, *SHAPE)) for _ in range(2))
    torch.testing.assert_close(a.log_scale, b.log_scale, rtol=0, atol=0)
    assert a.log_scale.shape == (SHAPE if rule is OptimalPerPixel else (1, 1, 1))


@pytest.mark.parametrize("rule", [Optimal, OptimalPerImage, OptimalPerPixel])
def test_freezing_takes_the_training_images(rule: type) -> None:
    likelihood = make(Gaussian, rule(image_shape=SHAPE, floor=1e-3))
    error = torch.randn(500, *SHAPE) * torch.linspace(0.1, 2, SHAPE[-1])
    likelihood.freeze(error)
    likelihood.eval()
    over = (0,) if rule is OptimalPerPixel else (0, 1, 2, 3)
    expected = error.square().mean(over).sqrt().expand(SHAPE)
    torch.testing.assert_close(likelihood(torch.zeros(1, *SHAPE)).scale.expand(1, *SHAPE)[0], expected)


def test_the_scale_of_a_likelihood_with_its_own_distribution_is_frozen() -> None:
    class Constant(PixelDistribution):
        """A distribution that is not a LocationScaleDistribution."""

        def __init__(self, mean: torch.Tensor) -> None:
            super().__init__(mean.shape)
            self._mean = mean

        @property
        def mean(self) -> torch.Tensor:
            return self._mean

    class Outside(Likelihood):
        def __init__(self) -> None:
            super().__init__(image_shape=SHAPE)
            self.scale = Optimal(image_shape=SHAPE, floor=1e-3)

        def forward(self, h: torch.Tensor, x: torch.Tensor | None = None) -> PixelDistribution:
            return Constant(torch.full_like(h, 0.5))

        def freeze(self, error: torch.Tensor) -> None:
            assert self.scale is not None
            self.scale.freeze(error, lambda error, over: error.square().mean(over, keepdim=True).log() / 2)

    encoder = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), 4))
    decoder = nn.Sequential(nn.Linear(2, math.prod(SHAPE)), nn.Unflatten(1, SHAPE))
    model = Autoencoder(encoder=encoder, decoder=decoder, likelihood=Outside(), latent_dim=2)
    images = Images(torch.full((4, *SHAPE), 255, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    freeze_scales(model, images, lambda pixels: pixels / 255)
    assert model.likelihood.scale is not None
    torch.testing.assert_close(model.likelihood.scale.frozen.exp(), torch.full((1, 1, 1), 0.5))


@pytest.mark.parametrize("rule", [Optimal, OptimalPerImage, OptimalPerPixel])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_perfect_reconstruction_stops_at_the_floor(family: type, rule: type) -> None:
    likelihood = make(family, rule(image_shape=SHAPE, floor=0.01))
    h = torch.zeros(2, *SHAPE, requires_grad=True)
    distribution = likelihood(h, torch.full((2, *SHAPE), 0.5))
    assert isinstance(distribution, LocationScaleDistribution)
    torch.testing.assert_close(distribution.scale, torch.full_like(distribution.scale, 0.01))
    loss = distribution.log_prob(torch.full((2, *SHAPE), 0.5)).sum()
    assert torch.autograd.grad(loss, h)[0].isfinite().all()


def test_what_varies_with_what() -> None:
    h = torch.randn(3, 4, SHAPE[0] + 1, *SHAPE[1:])
    per_image = make(Gaussian, PerImage(image_shape=SHAPE, floor=1e-3, init=0.3))
    assert per_image.out_channels(2) == 3
    assert per_image(h).log_scale.shape == (3, 4, 1, 1, 1)
    assert per_image(h).log_scale.unique().numel() == 12
    per_dimension = make(Gaussian, PerDimension(image_shape=SHAPE, floor=1e-3, init=0.3))
    assert per_dimension(h[:, :, :2]).log_scale.shape == SHAPE
    assert per_dimension.scale.raw.requires_grad


def test_equal_beta_times_sigma_squared_have_equal_minimizers() -> None:
    """The gradients of the two losses are proportional at any weights, so that their zeros are the same."""
    from vaex.objectives import VAE, Batch

    gradients = []
    config = composed("likelihood/scale=fixed", "architecture.hidden=[16]")
    for sigma, beta in ((1.0, 1.0), (0.5, 4.0), (0.1, 100.0)):
        torch.manual_seed(0)
        config.likelihood["scale"]["value"] = sigma
        model = build_model(config, (1, 6, 6), classes=0, stochastic=True)
        x = torch.rand(5, 1, 6, 6)
        torch.manual_seed(1)
        objective = VAE(beta=beta, samples=1, warmup=0, free_bits=0.0)
        loss = objective(model, Batch(x, x, torch.zeros(5, dtype=torch.int64)), torch.zeros(())).loss
        parts = torch.autograd.grad(loss, list(model.parameters()))
        gradients.append(torch.cat([part.flatten() for part in parts]) * sigma**2)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-5)
