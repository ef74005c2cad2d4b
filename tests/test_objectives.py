"""What beta, warm-up, free bits and several samples mean."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from conftest import composed, for_tests, metrics, results
from scipy.integrate import quad
from scipy.stats import norm
from test_model import rate_of
from torch.nn import functional as F

from vaex.build import build, build_model
from vaex.data.dataset import Dataset, Images, Source
from vaex.errors import UserError
from vaex.evaluation.bound import Numbers, evaluate
from vaex.evaluation.measure import Evaluation
from vaex.latents.posterior import DiagonalGaussian
from vaex.latents.prior import StandardNormal
from vaex.model import Autoencoder
from vaex.objectives import AE, DIP, IWAE, MMD, RAE, VAE, Batch, Capacity, Objective, TargetRate, TotalCorrelation
from vaex.objectives.latents import aggregate_log_prob, squared_mmd
from vaex.training.step import TrainingStep

SHAPE = (1, 8, 8)
START = torch.zeros(())


def vae(beta: float = 1.0, samples: int = 1, warmup: int = 0, free_bits: float = 0.0) -> VAE:
    return VAE(beta=beta, samples=samples, warmup=warmup, free_bits=free_bits)


def model_and_batch(*overrides: str, stochastic: bool = True):
    torch.manual_seed(0)
    model = build_model(composed("architecture.hidden=[16]", *overrides), SHAPE, classes=0, stochastic=stochastic)
    x = torch.rand(6, *SHAPE)
    return model, Batch(x, x, torch.zeros(6, dtype=torch.int64))


def evaluated(model: Autoencoder, objective: Objective, batch: Batch, **options: Any) -> Numbers:
    """The metrics of the batch, rounded to 256 levels."""
    images = Images((batch.x * 255).to(torch.uint8), batch.labels)
    dataset = Dataset(source=Source(images, images, 0), validation=0, binarize="none", dequantize="none")
    return evaluate(Evaluation(model, objective, dataset, **options))


def gradient(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    parts = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


@pytest.mark.parametrize("beta", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_effective_beta_is_the_kld_weight_of_mean_squared_error_code(beta: float, sigma: float) -> None:
    model, batch = model_and_batch("likelihood/scale=fixed", f"likelihood.scale.value={sigma}")
    torch.manual_seed(1)
    ours = vae(beta)(model, batch, START)

    kld_weight = evaluated(model, vae(beta), batch)["effective_mse"]
    assert kld_weight == pytest.approx(beta * 2 * sigma**2 / 64)

    torch.manual_seed(
        1
    )  # the loss as it is written elsewhere: both terms means over the batch, the error over pixels too
    posterior = model.encode(batch.x)
    mean = model.decode(posterior.rsample(1)[0]).mean
    theirs = F.mse_loss(mean, batch.x) + kld_weight * rate_of(posterior).sum(1).mean()
    a, b = gradient(model, ours.loss), gradient(model, theirs)
    torch.testing.assert_close(a / a.norm(), b / b.norm(), rtol=1e-4, atol=1e-6)
    assert (a.norm() / b.norm()).item() == pytest.approx(64 / (2 * sigma**2), rel=1e-4)


def test_terms_are_named_for_what_they_are() -> None:
    model, batch = model_and_batch()
    terms = vae(beta=3.0, samples=5)(model, batch, START)
    assert terms.distortion.shape == (6,) and terms.rate.shape == (6, 20)
    expected = (terms.distortion + 3 * terms.rate.sum(1)).mean()
    torch.testing.assert_close(terms.loss, expected)


def test_several_samples_keep_each_image_with_its_own_codes() -> None:
    """Mixing the examples up would leave the batch's sum alone, so look at single images."""
    model, batch = model_and_batch()
    many = vae(samples=4000)(model, batch, START).distortion
    alone = torch.stack(
        [vae(samples=4000)(model, Batch(x[None], x[None], batch.labels[:1]), START).distortion[0] for x in batch.x]
    )
    assert many.std() > 1
    torch.testing.assert_close(many, alone, rtol=0.01, atol=0.2)


def loss_at(objective: VAE, step: torch.Tensor | None) -> float:
    """The loss of a distortion of 5 and of two latents with rates of 1 and 2, after so many steps."""
    return objective.loss(torch.tensor(5.0), torch.tensor([1.0, 2.0]), objective.beta_at(step)).item()


def test_beta_warms_up_linearly_and_evaluation_uses_all_of_it() -> None:
    objective = vae(beta=2.0, warmup=10)
    losses = [loss_at(objective, torch.tensor(float(step))) for step in (0, 5, 10, 99)]
    assert losses == [5, 8, 11, 11]
    assert loss_at(objective, None) == 11


def test_beta_waits_and_starts_again() -> None:
    objective = VAE(beta=2.0, samples=1, warmup=10, free_bits=0.0, delay=4, cycle=20)
    losses = [loss_at(objective, torch.tensor(step)) for step in (0, 4, 9, 14, 19, 20, 29)]
    assert losses == [5, 5, 8, 11, 11, 5, 8]
    at_once = VAE(beta=2.0, samples=1, warmup=0, free_bits=0.0, delay=4)
    assert [loss_at(at_once, torch.tensor(step)) for step in (0, 3, 4, 99)] == [5, 5, 11, 11]
    for changes in ({"delay": -1}, {"warmup": 10, "delay": 5, "cycle": 14}, {"cycle": 5}, {"coarse_first": True}):
        with pytest.raises(ValueError, match=f"objective.{list(changes)[-1]}="):
            VAE(**{"beta": 1.0, "samples": 1, "warmup": 0, "free_bits": 0.0} | changes)  # type: ignore[arg-type]


def test_free_bits_are_free_for_each_latent() -> None:
    objective = vae(beta=2.0, free_bits=1.5)
    assert loss_at(objective, None) == 5 + 2 * (1.5 + 2.0)


def test_an_autoencoder_has_a_distortion_and_no_rate() -> None:
    model, batch = model_and_batch("objective=ae", stochastic=False)
    terms = AE()(model, batch, START)
    assert terms.rate is None
    torch.testing.assert_close(terms.loss, -model.decode(model.encode(batch.x).mean).log_prob(batch.x).mean())
    assert not {"elbo", "rate", "active_units"} & set(evaluated(model, AE(), batch))


@pytest.mark.parametrize("samples", [0, -1])
def test_an_importance_weighted_bound_needs_a_sample(samples: int) -> None:
    with pytest.raises(ValueError, match="objective.samples="):
        iwae(samples)


@pytest.mark.parametrize(
    "arguments", [{"samples": 0}, {"warmup": -1}, {"free_bits": -1.0}, {"free_bits": float("nan")}]
)
def test_values_out_of_range_are_refused_by_name(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"objective.{next(iter(arguments))}="):
        vae(**arguments)


def iwae(samples: int, doubly_reparametrized: bool = False) -> IWAE:
    return IWAE(samples=samples, doubly_reparametrized=doubly_reparametrized)


@pytest.mark.parametrize("doubly", [False, True])
def test_one_importance_sample_gives_the_elbo_with_a_sampled_kl(doubly: bool) -> None:
    model, batch = model_and_batch()
    torch.manual_seed(1)
    terms = iwae(1, doubly)(model, batch, START)
    torch.manual_seed(1)
    posterior = model.encode(batch.x)
    z = posterior.rsample(1)[0]
    log_q = torch.distributions.Normal(posterior.mean, posterior.std).log_prob(z).sum(1)
    log_p = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    distortion = -model.decode(z).log_prob(batch.x)
    torch.testing.assert_close(terms.loss, (distortion + log_q - log_p).mean())
    torch.testing.assert_close(terms.distortion, distortion)
    torch.testing.assert_close(terms.rate, rate_of(posterior))


def test_the_bound_grows_with_samples_towards_the_evidence() -> None:
    """Burda et al. 2016, theorem 1; p(x) by quadrature over a single latent."""
    model, batch = model_and_batch("latent_dim=1", "likelihood/scale=fixed")
    z = torch.linspace(-8, 8, 4001)[:, None, None].expand(-1, 6, 1)
    with torch.no_grad():
        log_joint = model.decode(z).log_prob(batch.x) + torch.distributions.Normal(0, 1).log_prob(z[..., 0])
        evidence = (torch.logsumexp(log_joint, 0) + math.log(16 / 4000)).mean().item()
        torch.manual_seed(0)
        bounds = [-sum(iwae(k)(model, batch, None).loss.item() for _ in range(n)) / n for k, n in ((1, 400), (5, 200))]
        bounds.append(-iwae(5000)(model, batch, None).loss.item())
    assert bounds[0] < bounds[1] < bounds[2] == pytest.approx(evidence, abs=0.003)


def test_both_gradients_of_the_importance_weighted_bound_have_one_mean() -> None:
    """And the doubly reparametrized one of the encoder strays less from it; the decoder's is the same draw by draw."""
    model, batch = model_and_batch("latent_dim=3")
    encoder, decoder = list(model.encoder.parameters()), list(model.decoder.parameters())

    def draws(doubly: bool, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        parts = []
        for _ in range(count):
            gradients = torch.autograd.grad(iwae(4, doubly)(model, batch, START).loss, encoder + decoder)
            flat = [
                torch.cat([g.flatten() for g in some])
                for some in (gradients[: -len(decoder)], gradients[-len(decoder) :])
            ]
            parts.append(flat)
        return torch.stack([p[0] for p in parts]), torch.stack([p[1] for p in parts])

    (plain, plain_decoder), (doubly, doubly_decoder) = draws(False, 300), draws(True, 300)
    torch.testing.assert_close(plain_decoder[:20], doubly_decoder[:20], rtol=1e-3, atol=1e-2)
    # Squared distance of the means, beside what their own noise makes of it.
    apart = (plain.mean(0) - doubly.mean(0)).square().sum()
    noise = (plain.var(0).sum() + doubly.var(0).sum()) / len(plain)
    assert apart < 3 * noise
    assert not torch.allclose(plain[0], doubly[0], rtol=0.01)
    assert doubly.var(0).sum() < plain.var(0).sum()
    assert plain.mean(0).norm() > 3 * noise.sqrt()  # there is something to agree on


def test_doubly_reparametrized_groups_are_bounds_of_their_own() -> None:
    """The gradient of two groups is the mean of those of each, with the noise of that group."""
    model, batch = model_and_batch("latent_dim=3")
    noise = torch.randn(8, 6, 3)
    encoder = list(model.encoder.parameters())

    def of(objective: IWAE, noise: torch.Tensor) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Batch, "noise", lambda self, samples, latents: noise)
            return gradient_of(objective(model, batch, START).loss, encoder)

    both = of(IWAE(samples=4, groups=2, doubly_reparametrized=True), noise)
    each = [of(iwae(4, doubly_reparametrized=True), part) for part in noise.split(4)]
    torch.testing.assert_close(both, torch.stack(each).mean(0), rtol=1e-4, atol=1e-4)


def gradient_of(loss: torch.Tensor, parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])


def with_the_same_noise(objective: Objective, model: Autoencoder, batch: Batch) -> torch.Tensor:
    torch.manual_seed(1)
    return objective(model, batch, START).loss


@pytest.mark.parametrize("doubly", [False, True])
def test_groups_are_the_mean_of_bounds_and_as_many_as_samples_the_elbo(doubly: bool) -> None:
    model, batch = model_and_batch()
    torch.manual_seed(1)
    posterior = model.encode(batch.x)
    noise = batch.noise(6, 20)
    z = posterior.at(noise)
    log_weights = model.decode(z).log_prob(batch.x) + StandardNormal(20, z.device).log_ratio(posterior, z, noise)
    expected = torch.stack([part.logsumexp(0) - math.log(3) for part in log_weights.split(3)]).mean()
    grouped = IWAE(samples=3, groups=2, doubly_reparametrized=doubly)
    assert grouped.samples == 6
    loss = with_the_same_noise(grouped, model, batch)
    torch.testing.assert_close(loss, -expected)
    single = IWAE(samples=1, groups=6, doubly_reparametrized=False)
    torch.testing.assert_close(with_the_same_noise(single, model, batch), -log_weights.mean())
    decoder = list(model.decoder.parameters())
    ours, reference = (torch.autograd.grad(value, decoder) for value in (loss, -expected))
    torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prior", ["standard", "mixture"])
def test_the_partial_bound_trains_encoder_and_decoder_on_bounds_of_their_own(prior: str) -> None:
    """The decoder and the prior as one bound of six samples does, and the encoder as two of three."""
    model, batch = model_and_batch(f"prior={prior}")
    partial, whole, grouped = (
        with_the_same_noise(IWAE(samples=k, groups=groups, doubly_reparametrized=False, partial=part), model, batch)
        for k, groups, part in ((3, 2, True), (6, 1, False), (3, 2, False))
    )
    torch.testing.assert_close(partial, whole)
    for parameters, reference in (
        ([*model.decoder.parameters(), *model.likelihood.parameters(), *model.prior.parameters()], whole),
        (list(model.encoder.parameters()), grouped),
    ):
        ours = torch.autograd.grad(partial, parameters, retain_graph=True)
        torch.testing.assert_close(
            ours, torch.autograd.grad(reference, parameters, retain_graph=True), rtol=1e-3, atol=1e-4
        )


def test_the_elbo_is_mixed_into_the_bound() -> None:
    model, batch = model_and_batch()
    elbo, bound, mixed = (
        with_the_same_noise(IWAE(samples=4, doubly_reparametrized=False, elbo=weight), model, batch)
        for weight in (1.0, 0.0, 0.25)
    )
    torch.testing.assert_close(mixed, 0.25 * elbo + 0.75 * bound)
    assert bound < elbo
    each = IWAE(samples=1, groups=4, doubly_reparametrized=False)
    torch.testing.assert_close(elbo, with_the_same_noise(each, model, batch))


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"groups": 0}, "groups"),
        ({"elbo": 1.5}, "elbo"),
        ({"elbo": 0.5, "doubly_reparametrized": True}, "doubly_reparametrized"),
        ({"groups": 2, "elbo": 0.5, "partial": True}, "partial"),
        ({"groups": 2, "doubly_reparametrized": True, "partial": True}, "partial"),
        ({"partial": True}, "partial"),
    ],
)
def test_importance_weighted_bounds_out_of_range_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"objective.{key}="):
        IWAE(**{"samples": 2, "doubly_reparametrized": False} | changes)


def test_an_importance_weighted_model_reports_its_elbo_and_its_bound() -> None:
    model, batch = model_and_batch()
    one, many = (evaluated(model, iwae(k), batch) for k in (1, 64))
    assert many["elbo"] == pytest.approx(-many["distortion"] - many["rate"], abs=1e-3)
    assert many["rate"] == pytest.approx(one["rate"])
    assert -many["loss"] > one["elbo"]


def test_a_corrupted_input_is_scored_against_the_clean_image() -> None:
    model, batch = model_and_batch()
    clean = evaluated(model, vae(), batch)
    numbers = evaluated(model, vae(), batch, corruption=torch.zeros_like)
    assert {name: numbers[name] for name in ("elbo", "mse", "rate")} == {n: clean[n] for n in ("elbo", "mse", "rate")}
    x = (batch.x * 255).to(torch.uint8) / 255
    restored = model.decode(model.encode(torch.zeros_like(x)).mean).mean
    assert numbers["mse_restored"] == pytest.approx((restored - x).square().mean().item())
    assert numbers["mse_corrupted"] == pytest.approx(x.square().mean().item())
    assert numbers["loss"] != clean["loss"] and "mse_restored" not in clean


def posteriors(count: int, latents: int = 2) -> tuple[DiagonalGaussian, torch.Tensor]:
    """q(z|x) of some images, and a sample of each."""
    generator = torch.Generator().manual_seed(0)
    mean, log_var, noise = (torch.randn(count, latents, generator=generator).double() for _ in range(3))
    posterior = DiagonalGaussian(mean, log_var)
    return posterior, posterior.at(noise)


def mixture(posterior: DiagonalGaussian, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q(z) and q(z_j), by PyTorch's distributions."""
    parts = torch.distributions.Normal(posterior.mean, posterior.std)
    log_prob = parts.log_prob(z[:, None])
    return log_prob.sum(2).exp().mean(1), log_prob.exp().mean(1)


def test_the_aggregate_posterior_of_all_images_is_their_mixture() -> None:
    posterior, z = posteriors(7)
    for log_q, q in zip(aggregate_log_prob(posterior, z), mixture(posterior, z), strict=True):
        torch.testing.assert_close(log_q.exp(), q)


def test_the_aggregate_posterior_is_estimated_without_bias_from_a_batch() -> None:
    """The mean over all batches of three that contain an image is q at its z, of all six images."""
    posterior, z = posteriors(6)
    exact = mixture(posterior, z)
    for image in range(6):
        estimates = []
        for pair in itertools.combinations([n for n in range(6) if n != image], 2):
            rows = torch.tensor([image, *pair])
            part = DiagonalGaussian(posterior.mean[rows], posterior.log_var[rows])
            estimates.append([log_q[0].exp() for log_q in aggregate_log_prob(part, z[rows], population=6)])
        for n in (0, 1):
            mean = torch.stack([estimate[n] for estimate in estimates]).mean(0)
            torch.testing.assert_close(mean, exact[n][image])


def test_beta_tc_is_a_vae_where_all_parts_of_the_rate_weigh_the_same() -> None:
    model, batch = model_and_batch()
    losses = []
    for objective in (vae(beta=3.0), TotalCorrelation(beta=3.0, tc=3.0), TotalCorrelation(beta=3.0, tc=5.0)):
        torch.manual_seed(1)
        losses.append(objective(model, batch, START).loss)
    torch.testing.assert_close(losses[0], losses[1])
    torch.manual_seed(1)
    posterior = model.encode(batch.x)
    joint, marginals = aggregate_log_prob(posterior, posterior.at(batch.noise(1, 20))[0])
    torch.testing.assert_close(losses[2] - losses[0], 2 * (joint - marginals.sum(1)).mean())


def test_a_run_says_what_it_minimizes(
    here: Callable[..., object], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    here(*tiny, "steps=1", "figures.kinds=[]", "objective=beta_tc", "beta=2", "objective.tc=8")
    assert "beta_tc, distortion + 2 · (KL(q(z|x) ‖ p(z)) − TC) + 8 · TC\n" in capsys.readouterr().out
    here(*tiny, "steps=1", "figures.kinds=[]", "objective=rae", folder="rae")
    assert "rae, distortion + 1 · ½|z|² + 0.01 · ½|θ|²\n" in capsys.readouterr().out
    groups = ["objective.samples=2", "objective.groups=3", "objective.elbo=0.5"]
    here(*tiny, "steps=1", "figures.kinds=[]", "objective=iwae", *groups, folder="iwae")
    expected = "iwae, importance-weighted, the mean of 3 bounds of 2 samples of z each, and 0.5 · ELBO\n"
    assert expected in capsys.readouterr().out


def test_one_image_says_nothing_about_the_aggregate_posterior() -> None:
    posterior, z = posteriors(1)
    joint, marginals = aggregate_log_prob(posterior, z, population=100)
    torch.testing.assert_close(joint, marginals.sum(1))


def test_a_capacity_pulls_the_rate_from_both_sides_and_grows() -> None:
    model, batch = model_and_batch()
    rate = rate_of(model.encode(batch.x)).sum(1).mean().item()
    for capacity, step, distance in (
        (rate + 3, None, 3.0),
        (rate / 2, None, rate / 2),
        (rate, 5.0, rate / 2),
        (rate, 99.0, 0.0),
    ):
        objective = Capacity(capacity=capacity, weight=7.0, warmup=10)
        terms = objective(model, batch, None if step is None else torch.tensor(step))
        assert (terms.loss - terms.distortion.mean()).item() == pytest.approx(7 * distance, abs=1e-3)


def test_beta_is_controlled_until_the_rate_is_the_target() -> None:
    model, batch = model_and_batch("latent_dim=4")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    objective = TargetRate(rate=6.0, proportional=0.5, integral=0.02)
    betas, rates = [], []
    for step in range(1500):
        terms = objective(model, batch, torch.tensor(step))
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        assert terms.rate is not None and terms.beta is not None
        betas.append(terms.beta.item())
        rates.append(terms.rate.sum(1).mean().item())
    assert sum(rates[-200:]) / 200 == pytest.approx(6, rel=0.02)
    assert objective.results() == {"beta": betas[-1]} and betas[-1] > 1.5
    evaluated = objective(model, batch, None)
    torch.testing.assert_close(evaluated.loss, (evaluated.distortion + evaluated.rate.sum(1)).mean())
    assert objective.results() == {"beta": betas[-1]}  # an evaluation changes nothing


def test_a_run_says_which_beta_reached_the_rate(
    here: Callable[..., Any], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = here(*tiny, "steps=10", "figures.kinds=[]", "objective=target_rate", "trainer.log_every=1")
    beta = results(run)["train/beta"]
    assert (
        beta == pytest.approx(metrics(run, "train/beta")[-1])
        and f"beta  {beta:.4g} at the end" in capsys.readouterr().out
    )
    warm = here(*tiny, "steps=10", "figures.kinds=[]", "objective.warmup=5", "trainer.log_every=1", folder="warm")
    assert metrics(warm, "train/beta") == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1])
    assert "train/beta" not in results(warm)


def test_the_best_weights_are_not_chosen_by_a_loss_whose_beta_changes(tiny: list[str]) -> None:
    with pytest.raises(UserError, match="trainer.weights=best: .* use trainer.weights=last"):
        build(composed(*tiny, "objective=target_rate", "trainer.weights=best"))


def test_a_controller_goes_on_after_a_step_that_is_not_finite() -> None:
    objective = TargetRate(rate=6.0, proportional=0.5, integral=0.02)
    betas = [objective._next_beta(torch.tensor(rate)).item() for rate in (9.0, math.nan, 3.0, 6.0)]
    assert betas == pytest.approx([math.exp(0.01 + 0.25), math.exp(0.01), math.exp(-0.25), 1.0])


@pytest.mark.parametrize("changes", [{"rate": 0.0}, {"rate": math.inf}, {"proportional": -1.0}, {"integral": -1.0}])
def test_a_controller_out_of_range_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"objective.{next(iter(changes))}="):
        TargetRate(**{"rate": 5.0, "proportional": 0.5, "integral": 0.01} | changes)


@pytest.mark.parametrize("of", ["means", "samples"])
def test_dip_penalizes_covariances_and_variances_that_are_not_one(of: Any) -> None:
    posterior, z = posteriors(50, latents=3)
    covariance = torch.cov(posterior.mean.T, correction=0)
    if of == "samples":
        covariance = covariance + posterior.std.square().mean(0).diag()
    distance = (covariance - torch.eye(3)).square()
    diagonal = distance.diagonal().sum()
    expected = 2 * (distance.sum() - diagonal) + 5 * diagonal
    objective = DIP(beta=1.0, off_diagonal=2.0, diagonal=5.0, of=of)
    torch.testing.assert_close(objective.penalty(posterior, z, Mock()), expected)


def expected_kernel(kernel: str, shift: float) -> float:
    """The mean of the kernel at z - z' with z from N(shift, 1) and z' from N(0, 1), by numerical integration."""

    def value(difference: float) -> float:
        if kernel == "rbf":
            return math.exp(-(difference**2) / 2)
        return sum(2 * scale / (2 * scale + difference**2) for scale in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    result: float = quad(lambda d: norm.pdf(d, shift, math.sqrt(2)) * value(d), -12, 14, limit=200)[0]
    return result


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_mmd_is_estimated_without_bias(kernel: str, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(2, 2000, 30, 1, generator=generator)
    estimates = torch.stack([squared_mmd(a + shift, b, kernel) for a, b in zip(*samples, strict=True)])
    exact = 2 * (expected_kernel(kernel, 0.0) - expected_kernel(kernel, shift))
    error = estimates.std().item() / math.sqrt(len(estimates))
    assert estimates.mean().item() == pytest.approx(exact, abs=4 * error)
    assert error < 0.02


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_the_kernels_are_those_of_the_papers(kernel: str) -> None:
    """In five dimensions, pair by pair."""
    a, b = torch.randn(2, 7, 5).double()

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        squares = (x - y).square().sum().item()
        if kernel == "rbf":
            return math.exp(-squares / 10)
        return sum(10 * s / (10 * s + squares) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    pairs = list(itertools.permutations(range(7), 2))
    same = sum(k(a[i], a[j]) + k(b[i], b[j]) for i, j in pairs) / len(pairs)
    expected = same - 2 * sum(k(x, y) for x in a for y in b) / 49
    assert squared_mmd(a, b, kernel).item() == pytest.approx(expected)


def test_the_aggregate_posterior_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, z = posteriors(40)
    whole = aggregate_log_prob(posterior, z, population=100)
    monkeypatch.setattr("vaex.objectives.latents.AT_ONCE", 3 * z.numel())
    torch.testing.assert_close(aggregate_log_prob(posterior, z, population=100), whole)


def test_an_objective_knows_how_many_images_there_are_and_the_step(tiny: list[str]) -> None:
    seen: list[tuple[int | None, int | None]] = []

    class Recorder(VAE):
        def forward(self, model: Autoencoder, batch: Batch, step: torch.Tensor | None) -> Any:
            seen.append((batch.population, None if step is None else int(step)))
            return super().forward(model, batch, step)

    objective = Recorder(beta=1.0, samples=1, warmup=10, free_bits=0.0)
    experiment = replace(build(composed(*tiny, "device=cpu")), objective=objective)
    train = experiment.dataset.train
    step = TrainingStep(experiment, train)
    step(torch.arange(8))
    step(torch.arange(8))
    assert seen == [(len(train), 0), (len(train), 1)]
    seen.clear()
    images = train[torch.arange(20)]
    evaluate(Evaluation(experiment.model, objective, experiment.dataset), images)
    assert set(seen) == {(20, None)}
    model, batch = model_and_batch()
    torch.manual_seed(1)
    terms = objective(model, batch, torch.tensor(5))
    torch.testing.assert_close(terms.loss, (terms.distortion + 0.5 * terms.rate.sum(1)).mean())


@pytest.mark.parametrize("architecture", ["mlp", "conv", "resnet", "vit"])
def test_derivatives_are_penalized_with_every_architecture(architecture: str) -> None:
    small = for_tests("architecture", architecture)
    overrides = [f"architecture={architecture}", *small, "objective=ae"]
    torch.manual_seed(0)
    model = build_model(composed(*overrides), (1, 28, 28), classes=0, stochastic=False)
    x = torch.rand(3, 1, 28, 28)
    loss = RAE(code=0.0, decoder=0.0, gradient=1.0)(model, Batch(x, x, torch.zeros(3, dtype=torch.int64)), START).loss
    assert gradient(model.decoder, loss).isfinite().all()


def test_a_wasserstein_autoencoder_has_no_rate_in_its_loss() -> None:
    model, batch = model_and_batch()
    torch.manual_seed(1)
    terms = MMD(beta=0.0, mmd=10.0, kernel="imq")(model, batch, START)
    torch.manual_seed(1)
    noise, prior = batch.noise(1, 20), batch.noise(1, 20)
    distance = squared_mmd(model.encode(batch.x).at(noise)[0], prior[0], "imq")
    torch.testing.assert_close(terms.loss, terms.distortion.mean() + 10 * distance)


def test_a_regularized_autoencoder_penalizes_its_code_and_its_decoder() -> None:
    model, batch = model_and_batch("objective=ae", stochastic=False)
    plain, code, decoder = (
        RAE(code=c, decoder=d, gradient=0.0)(model, batch, START).loss for c, d in ((0.0, 0.0), (2.0, 0.0), (0.0, 3.0))
    )
    torch.testing.assert_close(plain, AE()(model, batch, START).loss)
    z = model.encode(batch.x).mean
    torch.testing.assert_close(code - plain, z.square().sum(1).mean())
    weights = torch.cat([parameter.flatten() for parameter in model.decoder.parameters()])
    torch.testing.assert_close(decoder - plain, 1.5 * weights.square().sum())


def test_the_gradient_penalty_is_the_squared_jacobian_in_training_and_in_evaluation() -> None:
    model, batch = model_and_batch("objective=ae", stochastic=False)
    z = model.encode(batch.x).mean.detach()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: model.decode(z[None]).mean[0].flatten()))(z)
    exact = jacobian.square().sum((1, 2)).mean().item()
    plain, penalized = RAE(code=0.0, decoder=0.0, gradient=0.0), RAE(code=0.0, decoder=0.0, gradient=1.0)

    def penalty() -> float:
        return (penalized(model, batch, START).loss - plain(model, batch, START).loss).item()

    in_training = sum(penalty() for _ in range(400)) / 400
    with torch.no_grad():
        in_evaluation = sum(penalty() for _ in range(400)) / 400
    assert in_training == pytest.approx(exact, rel=0.1) and in_evaluation == pytest.approx(exact, rel=0.1)
    for part in (model.encoder, model.decoder):
        loss = penalized(model, batch, START).loss - plain(model, batch, START).loss
        assert gradient(part, loss).norm() > 0


@pytest.mark.parametrize(
    "make, key",
    [
        (lambda: TotalCorrelation(beta=1.0, tc=-1.0), "tc"),
        (lambda: DIP(beta=1.0, off_diagonal=math.inf, diagonal=1.0, of="means"), "off_diagonal"),
        (lambda: DIP(beta=1.0, off_diagonal=1.0, diagonal=1.0, of="pixels"), "of"),  # type: ignore[arg-type]
        (lambda: MMD(beta=1.0, mmd=math.nan, kernel="imq"), "mmd"),
        (lambda: MMD(beta=1.0, mmd=1.0, kernel="linear"), "kernel"),  # type: ignore[arg-type]
        (lambda: Capacity(capacity=-1.0, weight=1.0, warmup=0), "capacity"),
        (lambda: Capacity(capacity=1.0, weight=1.0, warmup=-1), "warmup"),
        (lambda: RAE(code=-1.0, decoder=0.0, gradient=0.0), "code"),
    ],
)
def test_penalties_out_of_range_are_refused_by_name(make: Callable[[], Objective], key: str) -> None:
    with pytest.raises(ValueError, match=f"objective.{key}="):
        make()
