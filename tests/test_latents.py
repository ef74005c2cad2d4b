"""Posteriors and priors: densities against PyTorch's, or against a Jacobian and numerical integration."""

import itertools
import math

import pytest
import torch
from conftest import composed, for_tests
from scipy.stats import multivariate_normal
from test_importance import COUNT, LATENTS, SHAPE, SIGMA, evaluation_of, ppca
from test_options import assert_trains, options
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from vaex.build import build
from vaex.data.dataset import Images
from vaex.errors import UserError
from vaex.evaluation.bound import evaluate
from vaex.evaluation.importance import importance_nll
from vaex.evaluation.measure import Evaluation, measure
from vaex.evaluation.metrics import MEASUREMENTS
from vaex.latents.autoregressive import FlowPosterior, InverseAutoregressive
from vaex.latents.posterior import Diagonal, DiagonalGaussian, Full, FullGaussian, Posterior, PosteriorFamily
from vaex.latents.prior import (
    Flow,
    LatentDistribution,
    Mixture,
    MixtureOfGaussians,
    Prior,
    Standard,
    StandardNormal,
    Vamp,
)
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.scale import Fixed
from vaex.model import Autoencoder
from vaex.objectives import VAE
from vaex.training.step import TrainingStep

IMAGE = (1, 4, 4)


def families(latents: int) -> dict[str, PosteriorFamily]:
    torch.manual_seed(0)
    return {
        "diagonal": Diagonal(latent_dim=latents),
        "full": Full(latent_dim=latents),
        "iaf": InverseAutoregressive(latent_dim=latents, steps=2, hidden=7, context=3),
    }


def features_of(family: PosteriorFamily, images: int = 3) -> Tensor:
    return torch.randn(images, family.features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def encode(x: Tensor) -> DiagonalGaussian:
    """Some posterior that depends on the image."""
    flat = x.flatten(1)
    return DiagonalGaussian(flat[:, :2] * 4 - 2, flat[:, 2:4] - 1.5)


def priors() -> dict[str, LatentDistribution]:
    """Of two latents, with parameters that are not those of a new model."""
    torch.manual_seed(0)
    flow = Flow(latent_dim=2, layers=4, hidden=8)
    mixture = Mixture(latent_dim=2, components=3)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        mixture.log_weights.copy_(torch.tensor([0.0, 1.0, -1.0]))
        mixture.log_vars.copy_(torch.randn(3, 2) - 1)
    posterior = encode(torch.rand(4, *IMAGE))
    return {
        "standard": Standard(latent_dim=2)(encode),
        "mixture": mixture(encode),
        "vamp": MixtureOfGaussians(torch.zeros(4), posterior.mean, posterior.log_var),
        "flow": flow(encode),
    }


# Posteriors.


@pytest.mark.parametrize("latents", [1, 2, 5])
@pytest.mark.parametrize("name", options("posterior"))
def test_log_scales_are_the_log_determinant_of_the_map_from_noise(name: str, latents: int) -> None:
    family = families(latents)[name].double()
    posterior = family(features_of(family, images=1))
    noise = torch.randn(1, 1, latents, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda e: posterior.at(e[None, None])[0, 0], noise[0, 0])
    expected = torch.linalg.slogdet(jacobian).logabsdet
    scales = posterior.log_scales(noise).expand(noise.shape).sum()
    torch.testing.assert_close(scales, expected)


def test_densities_of_gaussian_posteriors_are_those_of_pytorch() -> None:
    noise = torch.randn(6, 3, 4, dtype=torch.float64)
    for name in ("diagonal", "full"):
        family = families(4)[name].double()
        posterior = family(features_of(family))
        if isinstance(posterior, FullGaussian):
            exact = MultivariateNormal(posterior.mean, scale_tril=posterior.factor)
        else:
            exact = MultivariateNormal(posterior.mean, torch.diag_embed(posterior.std.square()))
        z = posterior.at(noise)
        log_q = (Normal(0, 1).log_prob(noise) - posterior.log_scales(noise)).sum(-1)
        torch.testing.assert_close(log_q, exact.log_prob(z))
        torch.testing.assert_close(posterior.std, exact.stddev)
        standard = MultivariateNormal(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
        rate = StandardNormal(4, noise.device).rate(posterior)
        assert rate is not None
        torch.testing.assert_close(rate.sum(1), kl_divergence(exact, standard))


@pytest.mark.parametrize("name", options("posterior"))
def test_gradients_of_samples_are_finite_differences(name: str) -> None:
    family = families(3)[name].double()
    noise = torch.randn(2, 3, 3, dtype=torch.float64)

    def sample(features: Tensor) -> tuple[Tensor, Tensor]:
        posterior = family(features)
        return posterior.at(noise), posterior.log_scales(noise)

    assert torch.autograd.gradcheck(sample, features_of(family).requires_grad_())


@pytest.mark.parametrize("name", options("posterior"))
def test_the_density_along_the_path_of_z_has_the_same_value_and_the_same_expected_gradient(name: str) -> None:
    samples, family = 40_000, families(3)[name].double()
    features = features_of(family).requires_grad_()
    noise = torch.randn(samples, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def posterior() -> Posterior:
        return family(features)

    values = [posterior().path_log_prob(noise), posterior().log_prob(noise)]
    torch.testing.assert_close(*values)
    for parameters in ([features], [p for p in family.parameters() if p.shape[0] > 1]):
        if parameters:
            path, usual = (torch.autograd.grad(v.mean(0).sum(), parameters, retain_graph=True) for v in values)
            for a, b in zip(path, usual, strict=True):
                torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["diagonal", "full"])
def test_a_rate_has_no_noise_in_its_gradient_where_the_posterior_is_the_prior(name: str) -> None:
    family = families(3)[name].double()
    features = torch.zeros(1, family.features, dtype=torch.float64)
    features[:, :3] = torch.tensor([1.0, -2.0, 0.5])
    features.requires_grad_()
    posterior: Posterior = family(features)
    prior = MixtureOfGaussians(torch.zeros(1), posterior.mean.detach(), torch.zeros(1, 3))
    noise = torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = posterior.at(noise)
    for log_q, noiseless in ((posterior.path_log_prob(noise), True), (posterior.log_prob(noise), False)):
        (gradient,) = torch.autograd.grad((log_q - prior.log_prob(z)).sum(), features, retain_graph=True)
        assert (gradient.abs().max() < 1e-12) == noiseless


def estimating_model(prior: Prior | None, posterior: PosteriorFamily | None = None) -> Autoencoder:
    torch.manual_seed(0)
    likelihood = Gaussian(image_shape=IMAGE, scale=Fixed(image_shape=IMAGE, value=1.0), bounded_mean=False)
    return Autoencoder(
        encoder=nn.Sequential(nn.Flatten(), nn.Linear(16, posterior.features if posterior else 6)),
        decoder=nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, IMAGE)),
        likelihood=likelihood,
        latent_dim=3,
        prior=prior,
        posterior=posterior,
    )


def standard_mixture() -> Mixture:
    mixture = Mixture(latent_dim=3, components=1)
    with torch.no_grad():
        mixture.means.zero_()
    return mixture


def gradient_of_rate(model: Autoencoder, samples: int, seed: int = 0) -> Tensor:
    noise = torch.randn(samples, 2, 3, generator=torch.Generator().manual_seed(seed))
    rate = model.infer(torch.linspace(0, 1, 32).view(2, *IMAGE), None, noise).rate
    return torch.cat([g.flatten() for g in torch.autograd.grad(rate.sum(), list(model.encoder.parameters()))])


def test_the_estimated_rate_of_a_model_has_the_gradient_of_the_closed_form() -> None:
    estimated, exact = (gradient_of_rate(estimating_model(prior), 100_000) for prior in (standard_mixture(), None))
    torch.testing.assert_close(estimated, exact, rtol=0.02, atol=0.01)


def test_the_gradient_of_an_estimated_rate_is_less_noisy_than_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def variance(family: PosteriorFamily | None, prior: Prior | None) -> float:
        model = estimating_model(prior, family)
        with torch.no_grad():
            for parameter in model.encoder.parameters():
                parameter *= 0.1  # near N(0, I), where a rate begins
        return torch.stack([gradient_of_rate(model, 1, seed) for seed in range(200)]).var(0).sum().item()

    def variances() -> list[float]:
        torch.manual_seed(0)
        iaf = InverseAutoregressive(latent_dim=3, steps=2, hidden=7, context=3)
        return [
            variance(None, standard_mixture()),
            variance(Full(latent_dim=3), standard_mixture()),
            variance(iaf, None),
        ]

    ours = variances()
    for family in (DiagonalGaussian, FullGaussian, FlowPosterior):
        monkeypatch.setattr(family, "path_log_prob", family.log_prob)
    whole = variances()
    assert all(a < 0.8 * b for a, b in zip(ours, whole, strict=True)), (ours, whole)


def test_the_density_along_the_path_is_exact_for_tiny_standard_deviations() -> None:
    noise = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    for log_var in (-20.0, -60.0, -89.0):
        mean = torch.full((5, 3), 3.0)
        diagonal = DiagonalGaussian(mean, torch.full((5, 3), log_var))
        full = FullGaussian(mean, math.exp(log_var / 2) * torch.eye(3).expand(5, 3, 3))
        for posterior in (diagonal, full):
            torch.testing.assert_close(posterior.path_log_prob(noise), posterior.log_prob(noise))


def test_each_latent_of_an_autoregressive_step_depends_on_those_before_it() -> None:
    network = families(4)["iaf"].steps[0]  # type: ignore[index]
    context = torch.randn(1, 3)
    for part in (0, 1):
        jacobian = torch.autograd.functional.jacobian(
            lambda z: network(z[None, None], context)[part][0, 0],  # noqa: B023
            torch.randn(4),
        )
        assert (jacobian.triu() == 0).all() and (jacobian.tril(-1)[1:, 0] != 0).all()


# Priors.


def grid() -> tuple[Tensor, float]:
    """Points of a plane [N, 2], and the area that each stands for."""
    axis = torch.linspace(-14, 14, 1201)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("name", options("prior"))
def test_priors_integrate_to_one_and_samples_have_their_density(name: str) -> None:
    prior = priors()[name]
    points, area = grid()
    with torch.no_grad():
        log_prob = torch.cat([prior.log_prob(part).double() for part in points.split(100_000)])
        density = log_prob.exp() * area
        assert density.sum().item() == pytest.approx(1, abs=2e-4)
        torch.manual_seed(1)
        z = prior.sample(100_000)
        for function in (
            lambda z: prior.log_prob(z.float()),
            lambda z: z[:, 0],
            lambda z: z[:, 1],
            lambda z: z[:, 0] * z[:, 1],
            lambda z: torch.sigmoid(2 * z[:, 0] - z[:, 1]),
        ):
            values = function(z).double()
            expected = (density * function(points).double()).sum().item()
            assert values.mean().item() == pytest.approx(expected, abs=5 * values.std().item() / 100_000**0.5 + 1e-4)


@pytest.mark.parametrize("name", ["mixture", "vamp"])
def test_mixtures_have_the_density_of_pytorch(name: str) -> None:
    prior = priors()[name]
    assert isinstance(prior, MixtureOfGaussians)
    parts = Independent(Normal(prior.means, torch.exp(0.5 * prior.log_vars)), 1)
    exact = MixtureSameFamily(Categorical(logits=prior.log_weights), parts)
    z = torch.randn(3, 5, 2)
    torch.testing.assert_close(prior.log_prob(z), exact.log_prob(z))


def test_a_flow_has_the_determinant_of_its_jacobian_and_an_inverse() -> None:
    torch.manual_seed(0)
    layers = Flow(latent_dim=5, layers=3, hidden=8).double().layers
    for parameter in layers.parameters():
        parameter.data.copy_(0.5 * torch.randn_like(parameter))
    z = torch.randn(5, dtype=torch.float64)
    for layer in layers:
        u, log_det = layer(z)
        jacobian = torch.autograd.functional.jacobian(lambda z: layer(z)[0], z)  # noqa: B023
        torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet)
        torch.testing.assert_close(layer.inverse(u), z)  # type: ignore[operator]


def test_a_temperature_of_zero_leaves_the_centers_of_a_prior() -> None:
    for name, prior in priors().items():
        z = prior.sample(50, temperature=0.0)
        if isinstance(prior, MixtureOfGaussians):
            assert torch.cdist(z, prior.means).min(1).values.max() < 1e-5, name
        else:
            assert (z == z[0]).all(), name


@pytest.mark.parametrize("name", options("prior"))
def test_a_generator_decides_the_samples(name: str) -> None:
    prior = priors()[name]
    one, other = (prior.sample(9, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, other) and len(one.unique(dim=0)) == 9


# In a model.


class Given(Prior):
    """A prior with given parameters."""

    def __init__(self, distribution: LatentDistribution) -> None:
        super().__init__(latent_dim=LATENTS)
        self.distribution = distribution

    def forward(self, encode: object) -> LatentDistribution:
        return self.distribution


def linear_model(prior: LatentDistribution | None = None) -> Autoencoder:
    model = ppca(shift=0.5, widen=2.0)
    if prior is not None:
        model.prior = Given(prior)
    return model


def images() -> Images:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(60, 196, (COUNT, *SHAPE), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.zeros(COUNT, dtype=torch.int64))


MIXTURE = MixtureOfGaussians(
    torch.tensor([0.0, 0.7]),
    torch.tensor([[0.5, -0.3, 0.2], [-1.0, 0.4, 0.0]]),
    torch.tensor([[-0.5, 0.1, -0.2], [0.3, -0.4, 0.2]]),
)


def log_evidence(x: Tensor) -> Tensor:
    """log p(x) of the linear model with the mixture as its prior: a mixture of Gaussians, too."""
    weight = linear_model().decoder.weight.detach().double()
    assert isinstance(weight, Tensor)
    parts = []
    for log_weight, mean, log_var in zip(MIXTURE.log_weights, MIXTURE.means, MIXTURE.log_vars, strict=True):
        covariance = weight @ torch.diag(log_var.double().exp()) @ weight.T + SIGMA**2 * torch.eye(len(weight))
        density = multivariate_normal((0.3 + weight @ mean.double()).numpy(), covariance.numpy())
        parts.append(log_weight.double() + torch.from_numpy(density.logpdf(x.flatten(1).double().numpy())))
    return torch.stack(parts).logsumexp(0)


def test_the_importance_weighted_nll_with_a_mixture_prior_is_that_of_the_exact_evidence() -> None:
    x = images().pixels.double() / 255
    estimate = importance_nll(evaluation_of(linear_model(MIXTURE), images()), lambda pixels: pixels.float() / 255, 4000)
    assert estimate.nll == pytest.approx(-log_evidence(x).mean().item(), abs=0.01)


def test_a_monte_carlo_rate_is_that_in_closed_form() -> None:
    """Of a mixture whose components all are N(0, I), from 200 samples for each image."""
    one = MixtureOfGaussians(torch.zeros(3), torch.zeros(3, LATENTS), torch.zeros(3, LATENTS))
    numbers, exact = (
        evaluate(evaluation_of(linear_model(prior), images(), objective_samples=200)) for prior in (one, None)
    )
    assert "rate_per_latent" in exact and "rate_per_latent" not in numbers
    for name in ("rate", "elbo", "loss"):
        assert numbers[name] == pytest.approx(exact[name], abs=0.05)
    assert numbers["distortion"] == pytest.approx(exact["distortion"], rel=1e-6)
    assert 0 < numbers["elbo_draw_stderr"] < exact["elbo_draw_stderr"]  # type: ignore[operator]


def test_the_bound_of_the_exact_posterior_is_tight_with_any_prior_family() -> None:
    """The log ratio does not depend on how a prior is written: N(0, I) as a mixture, and as a flow that is new."""
    torch.manual_seed(0)
    posterior = DiagonalGaussian(torch.randn(4, 3), torch.randn(4, 3))
    noise = torch.randn(5, 4, 3)
    z = posterior.at(noise)
    expected = StandardNormal(3, z.device).log_ratio(posterior, z, noise)
    one = MixtureOfGaussians(torch.zeros(1), torch.zeros(1, 3), torch.zeros(1, 3))
    for prior in (one, Flow(latent_dim=3, layers=2, hidden=4)(encode)):
        torch.testing.assert_close(prior.log_ratio(posterior, z, noise), expected, rtol=1e-5, atol=1e-5)


def test_pseudo_inputs_start_as_training_images(tiny: list[str]) -> None:
    experiment = build(composed(*tiny, "prior=vamp", "prior.components=4"))
    pseudo_inputs = experiment.model.prior.pseudo_inputs
    assert isinstance(pseudo_inputs, Tensor)
    train = experiment.dataset.to_float(experiment.dataset.train.pixels)
    assert all((train == x).flatten(1).all(1).any() for x in pseudo_inputs)
    posterior = experiment.model.encode(pseudo_inputs)
    prior = experiment.model.latent_prior()
    assert isinstance(prior, MixtureOfGaussians) and torch.equal(prior.means, posterior.mean)


def test_all_pixels_of_pseudo_inputs_learn(tiny: list[str]) -> None:
    """Black and white pixels, too, with which binary images start."""
    prior = build(composed(*tiny, "prior=vamp", "prior.components=4", "dataset.binarize=threshold")).model.prior
    assert isinstance(prior, Vamp)
    images = prior.pseudo_images()
    assert set(images.unique().tolist()) == {0.0, 1.0}
    (gradient,) = torch.autograd.grad(images.sum(), [prior.pseudo_inputs])
    assert (gradient == 1).all()
    prior.pseudo_inputs.data += 0.5
    images = prior.pseudo_images()
    assert images.min() == 0.5 and images.max() == 1


def test_networks_have_the_same_initial_weights_with_any_prior(tiny: list[str]) -> None:
    def weights(*options: str) -> dict[str, Tensor]:
        model = build(composed(*tiny, "start=zero", *options)).model
        return {**model.encoder.state_dict(prefix="encoder."), **model.decoder.state_dict(prefix="decoder.")}

    expected = weights()
    for prior in options("prior"):
        of_prior = weights(f"prior={prior}", *for_tests("prior", prior))
        assert all(torch.equal(value, expected[name]) for name, value in of_prior.items()), prior


def test_free_bits_are_as_many_nats_with_any_prior(tiny: list[str]) -> None:
    objective = build(composed(*tiny, "objective.free_bits=0.5", "latent_dim=4")).objective
    assert isinstance(objective, VAE)
    zero = torch.zeros(())
    assert objective.loss(zero, torch.zeros(4), objective.beta) == 2
    assert objective.loss(zero, torch.zeros(1), objective.beta, group_sizes=4) == 2


@pytest.mark.parametrize(
    "prior, posterior", [*itertools.product(options("prior"), options("posterior"))], ids=lambda name: name
)
def test_priors_and_posteriors_train_together(prior: str, posterior: str, data: dict[str, list[str]]) -> None:
    n = options("prior").index(prior) + options("posterior").index(posterior)
    overrides = [*data[["mnist", "sprites"][n % 2]], "architecture.hidden=[64]", "optimizer.lr=0.005", "latent_dim=4"]
    for group, option in (("prior", prior), ("posterior", posterior)):
        overrides += [f"{group}={option}", *for_tests(group, option)]
    objective = [[], ["objective=iwae"], ["objective=capacity", "objective.warmup=0"]][n % 3]
    if prior == "vamp" and posterior != "diagonal":
        with pytest.raises(UserError, match="needs a Gaussian with independent latents; use posterior=diagonal"):
            build(composed(*overrides, *objective))
    else:
        assert_trains([*overrides, *objective], steps=10)


def fit_together(prior: str, posterior: str, objective: str) -> bool:
    """What docs/latents.md says."""
    if prior == "vamp" and posterior != "diagonal":
        return False
    usual = (prior, posterior) == ("standard", "diagonal")
    return usual or objective not in ("beta_tc", "dip", "mmd", "ae", "rae")


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["mnist", "sprites"])
@pytest.mark.parametrize("objective", options("objective"))
@pytest.mark.parametrize(
    "prior, posterior", [*itertools.product(options("prior"), options("posterior"))], ids=lambda name: name
)
def test_priors_posteriors_and_objectives_train_and_evaluate_or_are_refused(
    prior: str, posterior: str, objective: str, dataset: str, data: dict[str, list[str]]
) -> None:
    chosen = {"prior": prior, "posterior": posterior, "objective": objective}
    small = [override for group, option in chosen.items() for override in for_tests(group, option)]
    overrides = [f"{group}={option}" for group, option in chosen.items()] + small
    overrides += ["likelihood=bernoulli"] if dataset == "sprites" else []
    config = composed(*data[dataset], "architecture.hidden=[32]", "latent_dim=4", *overrides)
    if not fit_together(prior, posterior, objective):
        with pytest.raises(UserError, match="use (posterior=diagonal|prior=standard|objective=vae)$"):
            build(config)
        return
    experiment = build(config)
    step = TrainingStep(experiment, experiment.dataset.train)
    for n in range(3):
        step(torch.arange(n * config.batch_size, (n + 1) * config.batch_size) % len(step.images))
    sums = step.sums.take()
    assert not sums.skipped and all(map(math.isfinite, sums.sums.values()))
    evaluation = Evaluation(experiment.model, experiment.objective, experiment.dataset, samples=4, fid="none")
    results, _ = measure(evaluation, MEASUREMENTS)
    assert all(math.isfinite(value) for value in results.values() if isinstance(value, float))
    if experiment.objective.stochastic:
        assert results["test/nll"] <= -results["test/elbo"] + 5 * results["test/elbo_draw_stderr"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=ae", "prior=mixture"], "prior: Mixture: objective AE has no distribution of z"),
        (["objective=rae", "posterior=full"], "posterior: Full: objective RAE has no distribution of z"),
        (["objective=beta_tc", "posterior=full"], "needs a Gaussian with independent latents"),
        (["objective=mmd", "prior=flow"], "is defined for p.z. = N"),
        (["prior=vamp", "prior.components=4", "conditional=true"], "cannot use labels"),
        (["prior=vamp", "prior.components=4000"], "there are only 1000; set fewer"),
        (["prior=mixture", "prior.components=0"], "prior.components=0: must be >= 1"),
        (["prior=flow", "latent_dim=1"], "at least 2 latents"),
        (
            ["objective.coarse_first=true", "objective.warmup=5"],
            "one group of latents; use architecture=ladder with several",
        ),
        (["posterior=iaf", "posterior.steps=0"], "posterior.steps=0: must be >= 1"),
        (
            ["objective=iwae", "objective.doubly_reparametrized=true", "posterior=iaf"],
            "needs a Gaussian with independent latents",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_combinations_that_make_no_sense_say_why(overrides: list[str], message: str, tiny: list[str]) -> None:
    with pytest.raises(UserError, match=message):
        build(composed(*tiny, *overrides))


class OwnRate(StandardNormal):
    """A prior of another package, with a closed form of its own."""

    def rate(self, posterior: Posterior) -> Tensor:
        return posterior.mean.square()


def test_a_prior_may_have_a_rate_of_its_own() -> None:
    model = linear_model(OwnRate(LATENTS, torch.device("cpu")))
    x = torch.rand(4, *SHAPE)
    latents = model.infer(x, None, torch.randn(2, 4, LATENTS))
    torch.testing.assert_close(latents.rate, model.encode(x).mean.square())


class Wrong(LatentDistribution):
    """Without the sum over latents."""

    def sample(self, count: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(count, 5)

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * z.square()


class WithoutSamples(LatentDistribution):
    def log_prob(self, z: Tensor) -> Tensor:
        return z.sum(-1)


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        (Normal(0, 1), "prior: Standard returns a Normal, but must return a LatentDistribution"),
        (WithoutSamples(), "WithoutSamples must define sample"),
        (Wrong(), r"prior: log_prob\(z\) of Standard returns \[2, 5\], but must return a tensor \[2\]"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused_before_training(
    distribution: object, message: str, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Standard, "forward", lambda self, encode: distribution)
    with pytest.raises(UserError, match=message):
        build(composed(*tiny, "latent_dim=5"))


def test_a_tight_bound_needs_no_noise() -> None:
    """With the exact posterior, every log weight is log p(x)."""
    model = ppca()
    x = torch.rand(4, *SHAPE)
    with torch.no_grad():
        latents = model.infer(x, None, torch.randn(6, 4, LATENTS))
        log_weights = model.decode(latents.z).log_prob(x) + latents.log_ratio()
    assert log_weights.std(0).max() < 1e-3 * math.sqrt(LATENTS)
