"""What should not decide a comparison of likelihoods has no part in it: the initial scale, the direction of gray, the
order of channels, and for a shared scale the networks' learning rate. scripts/fairness.py measures it in longer runs.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed
from scipy import stats
from torch import Tensor

from vaex.build import build, build_model
from vaex.data.dataset import Images, Source
from vaex.data.stream import IndexStream
from vaex.start import fit_offset
from vaex.training.step import TrainingStep

SHAPE = (3, 4, 5)
SIGMOID = ["gaussian", "laplace", "logistic", "student_t"]
PER_PIXEL = [f"{family} likelihood/scale=per_pixel" for family in SIGMOID]
BINS = [*(f"{family} likelihood.discretize=true" for family in SIGMOID[:2]), "discretized_logistic"]


def images() -> Tensor:
    """Color images [65, 3, 4, 5] in the middle of levels, so that 1 - x is exact; each channel and pixel differs."""
    random = torch.Generator().manual_seed(0)
    center = torch.linspace(40, 240, math.prod(SHAPE)).view(SHAPE)
    noise = torch.empty(65, *SHAPE).exponential_(generator=random) * 30 - 20
    return ((center + noise).clamp(0, 255).round() + 0.5) / 256


@dataclass(frozen=True)
class Start:
    """A fitted offset [out_channels / 3, C, H, W], the scale there (1 if there is none), and nats per image."""

    offset: Tensor
    scale: Tensor
    distortion: float


def start(likelihood: str, x: Tensor, *overrides: str) -> Start:
    config = composed(*f"likelihood={likelihood}".split(), *overrides)
    model = build_model(config, SHAPE, classes=0, stochastic=True)
    offset, distortion = fit_offset(model.likelihood.train(), x)
    scale = model.likelihood(offset.unsqueeze(0)).scale
    return Start(offset.view(-1, *SHAPE), torch.ones(()) if scale is None else scale.detach(), distortion.item())


@pytest.mark.parametrize("likelihood", [*SIGMOID, *PER_PIXEL[:2], *BINS])
def test_the_initial_scale_does_not_move_the_start(likelihood: str) -> None:
    x = images()
    first, *others = (start(likelihood, x, f"likelihood.scale.init={init}") for init in (0.1, 0.9))
    for other in others:
        assert torch.allclose(first.offset[0], other.offset[0], atol=0.015)  # the location, or its logit
        assert torch.allclose(first.scale, other.scale, rtol=0.03)
        assert first.distortion == pytest.approx(other.distortion, abs=0.004)  # 1e-4 bits/dim


@pytest.mark.parametrize("likelihood", [*SIGMOID, *PER_PIXEL, "gaussian likelihood/scale=per_dimension"])
def test_inverted_images_have_the_mirrored_start(likelihood: str) -> None:
    original, inverted = start(likelihood, images()), start(likelihood, 1 - images())
    assert torch.allclose(inverted.offset[0], -original.offset[0], atol=1e-5)
    assert torch.allclose(inverted.offset[1:], original.offset[1:], atol=1e-5)
    assert torch.allclose(inverted.scale, original.scale, rtol=1e-5)
    assert original.offset[0].abs().max() > 1


@pytest.mark.parametrize("likelihood", ["continuous_bernoulli", "cross_entropy", "beta"])
def test_inverted_images_have_the_mirrored_start_without_a_scale(likelihood: str) -> None:
    original, inverted = start(likelihood, images()), start(likelihood, 1 - images())
    mirrored = original.offset.flip(0) if likelihood == "beta" else -original.offset  # of a beta: alpha, beta
    assert torch.allclose(inverted.offset, mirrored, atol=1e-5)


@pytest.mark.parametrize("likelihood", BINS)
def test_inverted_images_have_nearly_the_mirrored_start_if_the_location_is_linear(likelihood: str) -> None:
    """The fit of a linear location begins at black, from where the way to white is longer."""
    original, inverted = start(likelihood, images()), start(likelihood, 1 - images())
    assert inverted.distortion == pytest.approx(original.distortion, abs=0.004)  # 1e-4 bits/dim
    assert torch.allclose(inverted.offset[0], 1 - original.offset[0], atol=1.5 / 255)
    assert torch.allclose(inverted.scale, original.scale, rtol=0.01)


@pytest.mark.parametrize("likelihood", [*SIGMOID, *PER_PIXEL[:2], *BINS, "continuous_bernoulli", "beta"])
def test_channels_in_another_order_have_the_same_start(likelihood: str) -> None:
    original, changed = start(likelihood, images()), start(likelihood, images().flip(1))
    assert torch.allclose(changed.offset, original.offset.flip(1), atol=1e-5)
    scale = original.scale.flip(-3) if original.scale.ndim > 3 else original.scale
    assert torch.allclose(changed.scale, scale, rtol=1e-5)


@pytest.mark.parametrize("rate", [2e-4, 2e-3, 1e-2])
@pytest.mark.parametrize("likelihood", ["gaussian", "laplace", "discretized_logistic"])
def test_a_shared_scale_arrives_whatever_the_learning_rate(likelihood: str, rate: float, tiny: list[str]) -> None:
    """Even from start=zero it ends within 0.02 bits/dim of the best one for the model's own locations."""
    steps, overrides = 150, ["device=cpu", "start=zero", f"likelihood={likelihood}", f"optimizer.lr={rate}"]
    experiment = build(composed(*tiny, *overrides, f"steps={steps}"))
    model, images = experiment.model, experiment.dataset.train
    step, stream = TrainingStep(experiment, images), IndexStream(len(images), 32, 0, experiment.device)
    for number in range(steps):
        for group, lr in zip(experiment.optimizer.param_groups, experiment.learning_rates, strict=True):
            group["lr"].fill_(lr * experiment.schedule(number))
        step(stream.batch(number))
    x = experiment.dataset.to_float(images.pixels)
    with torch.no_grad():
        distribution = model.eval().decode(model.encode(x).rsample(1)[0])
    error, scale = x - distribution.loc, distribution.scale.double().item()
    if likelihood == "gaussian":  # the mean of -log p is log sigma + MSE / (2 sigma²) + const.
        mse = error.double().square().mean().item()
        nats = math.log(scale) + mse / (2 * scale**2) - (math.log(mse) + 1) / 2
    elif likelihood == "laplace":  # log b + MAE / b + log 2
        mae = error.double().abs().mean().item()
        nats = math.log(scale) + mae / scale - math.log(mae) - 1
    else:
        factors = np.linspace(0.5, 2, 61)
        nats = -logistic_bins(x, distribution.loc, scale) + max(
            logistic_bins(x, distribution.loc, scale * factor) for factor in factors
        )
    assert -1e-3 < nats < 0.02 * math.log(2)


def logistic_bins(x: Tensor, loc: Tensor, scale: float) -> float:
    """Mean log mass of the levels of 40 images, from scipy's distribution function."""
    level, center = (255 * x[:40]).round().double().numpy(), loc[:40].double().numpy()
    upper = np.where(level == 255, np.inf, (level + 0.5) / 255)
    lower = np.where(level == 0, -np.inf, (level - 0.5) / 255)
    mass = stats.logistic.cdf(upper, center, scale) - stats.logistic.cdf(lower, center, scale)
    return float(np.log(np.maximum(mass, 1e-15)).mean())


def test_the_script_names_what_exceeds_its_bound(
    source: Source, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    import fairness

    few = Images(source.test.pixels[:200], source.test.labels[:200])
    monkeypatch.setattr(fairness, "mnist", lambda: Source(train=few, test=few, classes=10))
    original = fairness.digits(colored=True).test.pixels
    changed = fairness.digits(colored=True, inverted=True, reversed_channels=True).test.pixels
    assert original.shape == (200, 3, 14, 14) and torch.equal(255 - changed.flip(1), original)
    assert original[:, 0].float().mean() > 2 * original[:, 2].float().mean()

    gray = fairness.PERTURBATIONS
    monkeypatch.setattr(fairness, "SETTINGS", {"gaussian, shared": [*tiny, fairness.UNIFORM]})
    monkeypatch.setattr(fairness, "LEARNED_SCALES", {})
    monkeypatch.setattr(fairness, "PERTURBATIONS", {name: gray[name] for name in ("scale × 3", "rate × 2", "rate / 2")})
    monkeypatch.setattr(fairness, "COLORED", [])
    monkeypatch.setattr(fairness, "REVERSED", ["optimizer.lr=0.1"])
    monkeypatch.setattr(sys, "argv", ["fairness.py", "--steps", "3", "--seeds", "1"])
    with pytest.raises(SystemExit) as stop:
        fairness.main()
    out = capsys.readouterr().out
    assert stop.value.code == 1
    (line,) = [line for line in out.splitlines() if line.startswith("Bound exceeded")]
    moved = float(line.split("moves by ")[1].split()[0])
    assert moved > 0.01 and f"**{moved:+.4f}**" in out and "channels reversed" in line
