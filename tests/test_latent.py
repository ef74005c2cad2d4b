"""Mixtures against scipy, against data whose components are known, and samples against the density's moments."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from vaex.evaluation.latent import (
    COVARIANCE_FLOOR,
    GaussianMixture,
    expectation_maximization,
    fit_mixture,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def mixture(components: int = 3, dimension: int = 4) -> GaussianMixture:
    factor = random(1, components, dimension, dimension)
    return GaussianMixture(
        weights=torch.arange(1, components + 1) / sum(range(1, components + 1)),
        means=2 * random(0, components, dimension),
        covariances=factor @ factor.mT + 0.1 * torch.eye(dimension),
    )


def clusters(count: int, seed: int = 0) -> torch.Tensor:
    """Draws from five well separated Gaussians of different shapes in 3 dimensions."""
    rng = generator(seed)
    means = 12 * torch.eye(5, 3).double() + torch.tensor([[0.0], [0], [0], [-8], [9]])
    factors = random(5, 5, 3, 3)
    which = torch.randint(5, (count,), generator=rng)
    noise = torch.randn(count, 3, 1, generator=rng, dtype=torch.float64)
    return means[which] + (factors[which] @ noise)[..., 0]


def test_log_prob_is_scipys() -> None:
    truth = mixture()
    z = 3 * random(2, 50, 4)
    densities = [
        math.log(weight) + scipy.stats.multivariate_normal.logpdf(z.numpy(), mean.numpy(), covariance.numpy())
        for weight, mean, covariance in zip(truth.weights.tolist(), truth.means, truth.covariances, strict=True)
    ]
    np.testing.assert_allclose(truth.log_prob(z), scipy.special.logsumexp(densities, axis=0), rtol=1e-10)


def test_samples_have_the_moments() -> None:
    sampler = mixture()
    z = sampler.sample(100_000, generator())
    assert z.shape == (100_000, 4) and z.dtype == torch.float32
    mean = sampler.weights @ sampler.means
    second = sampler.covariances + sampler.means[:, :, None] * sampler.means[:, None, :]
    covariance = torch.einsum("k,kij->ij", sampler.weights, second) - torch.outer(mean, mean)
    spread = covariance.diagonal().max().item()
    torch.testing.assert_close(z.double().mean(0), mean, rtol=0, atol=5 * math.sqrt(spread / 100_000))
    torch.testing.assert_close(z.double().T.cov(), covariance, rtol=0, atol=0.02 * spread)


def test_samples_are_a_function_of_the_generator() -> None:
    sampler = mixture()
    assert torch.equal(sampler.sample(10, generator(7)), sampler.sample(10, generator(7)))
    assert not torch.equal(sampler.sample(10, generator(7)), sampler.sample(10, generator(8)))


def test_one_component_is_the_codes_own_gaussian() -> None:
    codes = random(0, 500, 3) @ random(1, 3, 3) + 5
    fitted = expectation_maximization(codes, 1)
    covariance = codes.T.cov(correction=0)
    floor = COVARIANCE_FLOOR * covariance.diagonal().mean() * torch.eye(3)
    torch.testing.assert_close(fitted.means[0], codes.mean(0))
    torch.testing.assert_close(fitted.covariances[0], covariance + floor)
    assert fitted.weights.tolist() == [1.0]


def test_five_clusters_are_found() -> None:
    train, heldout = clusters(3000), clusters(1000, seed=1)
    fitted = fit_mixture(train, heldout, components=(1, 2, 5, 10))
    assert len(fitted) == 5
    others = {count: expectation_maximization(train, count).log_prob(heldout).mean() for count in (1, 2, 10)}
    score = fitted.log_prob(heldout).mean()
    assert score > max(others.values()) and score - others[1] > 1
    # Codes and the mixture's draws have each cluster in the same place and number.
    order = fitted.means[:, 0].argsort()
    expected = 12 * torch.eye(5, 3).double() + torch.tensor([[0.0], [0], [0], [-8], [9]])
    nearest = torch.cdist(expected, fitted.means[order])
    assert nearest.amin(1).max() < 0.3
    torch.testing.assert_close(fitted.weights, torch.full((5,), 0.2).double(), rtol=0, atol=0.03)


def test_known_mixture_is_recovered_by_its_density() -> None:
    """Held out, the fit is as probable as the truth, within what its parameters cost: about half a nat each over N."""
    truth = mixture()
    train, heldout = truth.sample(20_000, generator(0)), truth.sample(20_000, generator(1))
    fitted = expectation_maximization(train.double(), 3)
    parameters = 2 + 3 * 4 + 3 * 10
    gap = truth.log_prob(heldout).mean() - fitted.log_prob(heldout).mean()
    assert -0.002 < gap < 3 * parameters / (2 * 20_000)


def test_every_step_makes_the_codes_more_probable() -> None:
    codes = clusters(600)
    scores = [expectation_maximization(codes, 4, iterations=n).log_prob(codes).mean().item() for n in range(8)]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0]


def test_repeated_codes_and_a_dead_latent_still_fit() -> None:
    codes = torch.cat([random(0, 200, 2), torch.zeros(200, 1)], dim=1)
    codes[:50] = codes[0]
    fitted = fit_mixture(codes, codes[150:], components=(1, 8))
    z = fitted.sample(100, generator())
    assert z.isfinite().all()
    assert z[:, 2].abs().max() < 0.01


def test_what_can_not_be_fitted_is_refused() -> None:
    codes = random(0, 20, 3)
    with pytest.raises(ValueError, match="up to 50 Gaussians needs as many training images, got 20"):
        fit_mixture(codes, codes[:5])
    for broken in (torch.ones(20, 3), torch.full((20, 3), math.nan)):
        with pytest.raises(ValueError, match="the codes' variance is"):
            fit_mixture(broken, codes, components=(1, 2))
