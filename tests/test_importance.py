"""The importance-weighted NLL, and the error of the ELBO, against probabilistic PCA (Tipping & Bishop 1999).

Its log p(x) is known exactly.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from vaex.data.dataset import Dataset, Images, Source
from vaex.evaluation import importance
from vaex.evaluation.bound import evaluate
from vaex.evaluation.importance import importance_nll
from vaex.evaluation.measure import Evaluation
from vaex.evaluation.split import ToFloat
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.scale import Fixed
from vaex.model import Autoencoder
from vaex.objectives import VAE

SHAPE, LATENTS, SIGMA, COUNT = (1, 4, 4), 3, 0.2, 50
NORMS = (0.5, 0.3, 0.2)  # of W's columns, which are orthogonal: the exact posterior is diagonal


class LinearDecoder(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, z: Tensor) -> Tensor:
        return (0.3 + z @ self.weight.T).view(-1, *SHAPE)


class PosteriorEncoder(nn.Module):
    """The exact posterior, its mean moved by `shift` posterior sigmas and its variance times `widen`."""

    def __init__(self, weight: Tensor, shift: float, widen: float) -> None:
        super().__init__()
        precision = weight.square().sum(0) / SIGMA**2 + 1
        self.project = (weight / SIGMA**2) / precision
        self.variance, self.shift, self.widen = 1 / precision, shift, widen

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        mean = (x.flatten(1) - 0.3) @ self.project + self.shift * self.variance.sqrt()
        return torch.cat([mean, (self.variance * self.widen).log().expand_as(mean)], dim=1)


def ppca(shift: float = 0.0, widen: float = 1.0) -> Autoencoder:
    generator = torch.Generator().manual_seed(0)
    columns, _ = torch.linalg.qr(torch.randn(math.prod(SHAPE), LATENTS, generator=generator))
    weight = columns * torch.tensor(NORMS)
    return Autoencoder(
        encoder=PosteriorEncoder(weight, shift, widen),
        decoder=LinearDecoder(weight),
        likelihood=Gaussian(image_shape=SHAPE, scale=Fixed(image_shape=SHAPE, value=SIGMA), bounded_mean=False),
        latent_dim=LATENTS,
    )


@pytest.fixture(scope="module")
def images() -> Images:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (COUNT, *SHAPE), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.zeros(COUNT, dtype=torch.int64))


def estimate(
    model: Autoencoder,
    images: Images,
    samples: int,
    batch_size: int = 1000,
    to_float: ToFloat = lambda pixels: pixels.float() / 255,
    poll: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """The NLL and its standard error."""
    return importance_nll(evaluation_of(model, images, batch_size, poll=poll), to_float, samples)[:2]


def evaluation_of(
    model: Autoencoder, images: Images, batch_size: int = 1000, objective_samples: int = 1, **options: Any
) -> Evaluation:
    dataset = Dataset(source=Source(images, images, 0), validation=0, binarize="none", dequantize="none")
    objective = VAE(beta=1.0, samples=objective_samples, warmup=0, free_bits=0.0)
    return Evaluation(model, objective, dataset, images_per_batch=batch_size, **options)


@pytest.fixture(scope="module")
def exact(images: Images) -> Tensor:
    """-log p(x) of each image, N(x; mean, W Wᵀ + sigma² I)."""
    weight = ppca().decoder.weight.detach().double()
    assert isinstance(weight, Tensor)
    covariance = weight @ weight.T + SIGMA**2 * torch.eye(len(weight), dtype=torch.float64)
    x = (images.pixels.double() / 255).flatten(1).numpy()
    return -torch.from_numpy(multivariate_normal([0.3] * len(weight), covariance.numpy()).logpdf(x))


SHIFT, WIDEN = 0.5, 1.5
GAP = 0.5 * LATENTS * (WIDEN - 1 - math.log(WIDEN) + SHIFT**2)  # KL(q(z|x) || p(z|x)), the same for every x


@pytest.mark.parametrize("samples", [1, 7])
def test_with_the_exact_posterior_every_weight_is_p_of_x(images: Images, exact: Tensor, samples: int) -> None:
    nll, stderr = estimate(ppca(), images, samples)
    assert nll == pytest.approx(exact.mean().item(), abs=1e-4)
    assert stderr == pytest.approx(exact.std().item() / COUNT**0.5, rel=1e-4)


def test_with_a_wrong_posterior_one_sample_misses_the_kl_and_many_correct_it(images: Images, exact: Tensor) -> None:
    repeated = Images(images.pixels.repeat_interleave(400, 0), images.labels.repeat_interleave(400, 0))
    elbo, _ = estimate(ppca(SHIFT, WIDEN), repeated, 1, 50_000)
    assert elbo == pytest.approx(exact.mean().item() + GAP, abs=0.03)  # 1.1 / sqrt(20,000), four times
    nll, _ = estimate(ppca(SHIFT, WIDEN), images, 5000, 50_000)
    assert nll == pytest.approx(exact.mean().item(), abs=0.01)


def test_the_bound_tightens_with_samples_from_above(images: Images, exact: Tensor) -> None:
    repeated = Images(*(t.repeat_interleave(20, 0) for t in (images.pixels, images.labels)))
    nll = [estimate(ppca(SHIFT, WIDEN), repeated, k)[0] for k in (1, 4, 256)]
    error = 0.04  # of K = 1: a log weight's standard deviation is about 1.1, over 1,000 images
    assert all(later < earlier + error for earlier, later in zip(nll, nll[1:], strict=False)), nll
    assert nll[0] == pytest.approx(exact.mean().item() + GAP, abs=4 * error)
    assert nll[-1] == pytest.approx(exact.mean().item(), abs=0.02)


def with_correlated_latents(shift: float = 0.0, widen: float = 1.0) -> Autoencoder:
    """PCA with an encoder that knows the variances of p(z|x) at most, and not the covariances."""
    model = ppca(shift, widen)
    mixing = torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.6, -0.7], [0.0, 0.0, 0.7]])
    model.decoder.weight = nn.Parameter(model.decoder.weight.detach() @ mixing)  # type: ignore[assignment]
    return model


def exact_posterior(model: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of p(z|x), Tipping & Bishop 1999, eq. 8."""
    weight = model.decoder.weight.detach()
    assert isinstance(weight, Tensor)
    covariance = torch.linalg.inv(weight.T @ weight / SIGMA**2 + torch.eye(LATENTS))
    return (x.flatten(1) - 0.3) @ weight / SIGMA**2 @ covariance, covariance


def test_the_fitted_posterior_is_the_exact_one(images: Images) -> None:
    """It is wider on purpose. Gradients of a few samples leave the covariance with errors of a tenth."""
    torch.manual_seed(0)
    model = with_correlated_latents(shift=3.0, widen=4.0)
    x = images.pixels.float() / 255
    steps: list[None] = []
    with torch.no_grad():
        fitted = importance.fit(model, model.encode(x), x, images.labels, lambda: steps.append(None))
    mean, covariance = exact_posterior(model, x)
    std = covariance.diagonal().sqrt()
    assert ((fitted.mean - mean) / std).square().mean().sqrt() < 0.01
    product = fitted.factor @ fitted.factor.mT / importance.width(LATENTS)
    assert ((product - covariance) / (std[:, None] * std)).square().mean().sqrt() < 0.16
    log_determinant = torch.linalg.slogdet(covariance).logabsdet + LATENTS * math.log(importance.width(LATENTS))
    assert 2 * fitted.log_scales(fitted.mean).sum(1).mean() == pytest.approx(log_determinant.item(), abs=0.1)
    assert len(steps) == importance.FIT_STEPS + 2 and not fitted.mean.requires_grad


def test_few_samples_of_a_fitted_posterior_give_log_p(images: Images) -> None:
    """Where a thousand samples of the encoder's do not, and with the same noise however the images are batched."""
    model = with_correlated_latents(shift=3.0, widen=4.0)
    weight = model.decoder.weight.detach().double()
    assert isinstance(weight, Tensor)
    covariance = weight @ weight.T + SIGMA**2 * torch.eye(len(weight), dtype=torch.float64)
    x = (images.pixels.double() / 255).flatten(1).numpy()
    exact = -multivariate_normal([0.3] * len(weight), covariance.numpy()).logpdf(x).mean()

    def score(samples: int, batch_size: int = 1000, fitted: bool = True) -> importance.Estimate:
        evaluation = evaluation_of(model, images, batch_size)
        return importance_nll(evaluation, lambda pixels: pixels.float() / 255, samples, fitted=fitted)

    assert score(20).nll == pytest.approx(exact, abs=0.02)
    assert abs(score(20).halving) < 0.02
    assert score(20, batch_size=28).nll == pytest.approx(score(20).nll, abs=1e-4)
    assert score(1000, fitted=False).nll > exact + 0.1


def test_an_image_whose_posterior_cannot_be_fitted_keeps_that_of_the_encoder(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "FIT_RATE", 1e30)
    model, x = ppca(SHIFT, WIDEN), images.pixels.float() / 255
    with torch.no_grad():
        encoder = model.encode(x)
        posterior = importance.fit(model, encoder, x, images.labels, lambda: None)
    assert torch.equal(posterior.mean, encoder.mean)
    assert torch.equal(posterior.factor, torch.diag_embed(encoder.std))


@pytest.mark.parametrize("samples", [1, 4])
def test_the_standard_errors_of_the_elbo_are_those_in_closed_form(images: Images, samples: int) -> None:
    """With r = x - E[x|z] at the posterior's mean, orthogonal columns w and posterior std s, one sample of z has

    log p(x|z) = const. - |r - Σ_j w_j s_j e_j|² / (2 sigma²),
    variance Σ_j [4 (r·w_j)² s_j² + 2 |w_j|⁴ s_j⁴] / (2 sigma²)².
    """
    repeats = 200
    repeated = Images(images.pixels.repeat_interleave(repeats, 0), images.labels.repeat_interleave(repeats, 0))
    model = ppca(SHIFT, WIDEN)
    numbers = evaluate(evaluation_of(model, repeated, objective_samples=samples))
    x = images.pixels.flatten(1).double() / 255
    with torch.no_grad():
        posterior, weight = model.encode(images.pixels / 255), model.decoder.weight.double()
    mean, variance = posterior.mean.double(), posterior.log_var.double().exp()
    r = x - 0.3 - mean @ weight.T
    explained = weight.square().sum(0) * variance  # [B, latent_dim]
    of_z = (4 * (r @ weight).square() * variance + 2 * explained.square()).sum(1) / (2 * SIGMA**2) ** 2 / samples
    distortion = (r.square().sum(1) + explained.sum(1)) / (2 * SIGMA**2)
    elbo = -distortion - 0.5 * (mean.square() + variance - 1 - variance.log()).sum(1)
    count = COUNT * repeats
    assert numbers["elbo_draw_stderr"] == pytest.approx((of_z.mean().item() / count) ** 0.5, rel=0.04)
    total = elbo.var(correction=0).item() + of_z.mean().item()
    assert numbers["elbo_stderr"] == pytest.approx((total / count) ** 0.5, rel=0.01)
    constant = -0.5 * math.prod(SHAPE) * math.log(2 * math.pi * SIGMA**2)
    assert numbers["elbo"] == pytest.approx(elbo.mean().item() + constant, abs=4 * (of_z.mean().item() / count) ** 0.5)


def test_one_image_has_no_standard_error_over_images() -> None:
    one = Images(torch.zeros(1, *SHAPE, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    numbers = evaluate(evaluation_of(ppca(), one))
    assert "elbo_stderr" not in numbers and "elbo" in numbers


@pytest.mark.parametrize("batch_size", [50, 64, 10_000])
def test_chunks_make_no_difference(images: Images, monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    """The result is the logsumexp over all K weights, K = 130 being above and below the batch size."""
    chunks: list[Tensor] = []
    log_weights = importance._log_weights

    def recorded(*arguments: object) -> Tensor:
        chunks.append(log_weights(*arguments))  # type: ignore[arg-type]
        return chunks[-1]

    monkeypatch.setattr(importance, "_log_weights", recorded)
    nll, _ = estimate(ppca(SHIFT, WIDEN), images, 130, batch_size)
    assert max(chunk.numel() for chunk in chunks) <= max(batch_size, 1)
    by_image = [torch.cat([c for c in chunks[n:m]]) for n, m in _runs(chunks)]
    per_image = torch.cat([math.log(130) - weights.double().logsumexp(0) for weights in by_image])
    assert all(len(weights) == 130 for weights in by_image) and len(per_image) == COUNT
    assert nll == pytest.approx(estimate(ppca(SHIFT, WIDEN), images, 130, 777)[0], rel=1e-6)
    assert nll == pytest.approx(per_image.mean().item(), rel=1e-12)
    assert nll == pytest.approx(_reference(images), abs=0.1)


def _runs(chunks: list[Tensor]) -> list[tuple[int, int]]:
    """Which chunks are of the same images: those that add up to 130 samples."""
    runs, start, count = [], 0, 0
    for n, chunk in enumerate(chunks):
        count += len(chunk)
        if count == 130:
            runs.append((start, n + 1))
            start, count = n + 1, 0
    return runs


def _reference(images: Images) -> float:
    return estimate(ppca(SHIFT, WIDEN), images, 5000, 50_000)[0]


def test_noise_is_fixed_and_x_does_not_depend_on_the_number_of_samples(images: Images) -> None:
    seen: list[Tensor] = []

    def dynamic(pixels: Tensor) -> Tensor:
        seen.append((torch.rand(pixels.shape) < pixels / 255).float())
        return seen[-1]

    state = torch.get_rng_state()
    first, again, _ = (estimate(ppca(), images, k, 25, dynamic) for k in (3, 3, 80))
    assert first == again
    assert torch.equal(torch.cat(seen[:2]), torch.cat(seen[4:]))
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_conditional_model_is_scored_with_its_labels() -> None:
    class Shifted(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z[:, 1:].argmax(1).float().view(-1, 1, 1, 1)  # the label

    class Prior(nn.Module):
        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            return torch.zeros(len(x), 2)

    shape = (1, 1, 1)
    likelihood = Gaussian(image_shape=shape, scale=Fixed(image_shape=shape, value=1.0), bounded_mean=False)
    model = Autoencoder(encoder=Prior(), decoder=Shifted(), likelihood=likelihood, latent_dim=1, classes=3)
    images = Images(torch.zeros(3, *shape, dtype=torch.uint8), torch.arange(3))
    nll, _ = estimate(model, images, 5)
    assert nll == pytest.approx(0.5 * math.log(2 * math.pi) + (0 + 1 + 4) / 6, rel=1e-6)


def test_the_caller_can_stop_it(images: Images) -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        estimate(ppca(), images, 2, poll=stop)
