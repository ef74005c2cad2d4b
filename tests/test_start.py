"""A run begins as the best model of the training images that ignores z, whatever the likelihood."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed
from torch import Tensor
from torch.nn import functional as F

from vaex.architectures import mlp
from vaex.build import build, build_model, load_dataset
from vaex.data.dataset import Dataset, Images, Source
from vaex.errors import UserError
from vaex.likelihoods.base import Likelihood
from vaex.likelihoods.bernoulli import Bernoulli, BernoulliDistribution, CrossEntropy
from vaex.likelihoods.categorical import Categorical
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.laplace import Laplace
from vaex.likelihoods.scale import PerDimension, Shared
from vaex.start import fit_offset, fit_start, start_images

SHAPE = (1, 3, 4)


def images(seed: int = 0) -> Tensor:
    """Images [257, 1, 3, 4] on levels from 20 to 235, with another center at each pixel."""
    random = torch.Generator().manual_seed(seed)
    center = torch.linspace(60, 195, 12).view(SHAPE)
    noise = torch.empty(257, *SHAPE).exponential_(generator=random) * 30 - 20
    return (center + noise).clamp(20, 235).round() / 255


def fitted(likelihood: Likelihood, x: Tensor) -> Tensor:
    offset, distortion = fit_offset(likelihood.train(), x)
    h = offset.unsqueeze(0).expand(len(x), *offset.shape)
    with torch.no_grad():
        assert -likelihood(h, x).log_prob(x).mean() == pytest.approx(distortion.item(), rel=1e-5)
    return offset


def test_a_gaussian_starts_at_the_mean_image_and_the_root_mean_square() -> None:
    x = images()
    likelihood = Gaussian(image_shape=SHAPE, scale=Shared(image_shape=SHAPE, floor=1e-3, init=0.3), bounded_mean=None)
    offset = fitted(likelihood, x)
    assert torch.allclose(offset.sigmoid(), x.mean(0), atol=1e-3)
    rms = (x - x.mean(0)).square().mean().sqrt().item()
    assert likelihood(offset.unsqueeze(0)).scale.item() == pytest.approx(rms, rel=1e-3)


def test_a_scale_of_each_dimension_starts_at_its_root_mean_square() -> None:
    x = images()
    scale = PerDimension(image_shape=SHAPE, floor=1e-3, init=0.3)
    likelihood = Gaussian(image_shape=SHAPE, scale=scale, bounded_mean=None)
    offset = fitted(likelihood, x)
    assert torch.allclose(likelihood(offset.unsqueeze(0)).scale.detach(), x.std(0, correction=0), rtol=5e-3)


def test_a_laplace_starts_at_the_median_and_the_mean_absolute_error() -> None:
    x = images()
    likelihood = Laplace(image_shape=SHAPE, scale=Shared(image_shape=SHAPE, floor=1e-3, init=0.3), bounded_mean=None)
    offset = fitted(likelihood, x)
    median = x.median(0).values
    assert torch.allclose(offset.sigmoid(), median, atol=1 / 255)
    mae = (x - median).abs().mean().item()
    assert likelihood(offset.unsqueeze(0)).scale.item() == pytest.approx(mae, rel=5e-3)


def test_a_bernoulli_starts_at_the_log_odds() -> None:
    probability = torch.linspace(0.05, 0.95, 12).view(SHAPE)
    x = (torch.rand(256, *SHAPE, generator=torch.Generator().manual_seed(0)) < probability).float()
    offset = fitted(Bernoulli(image_shape=SHAPE), x)
    assert torch.allclose(offset, x.mean(0).logit(), atol=0.05)
    assert torch.allclose(x.mean(0) - offset.sigmoid(), offset / (9 * 256), atol=1e-3)  # with the prior's derivative


def test_a_categorical_starts_at_the_log_frequencies() -> None:
    """Of the levels of all pixels, because each pixel has a number of features that is smaller than that of levels."""
    torch.manual_seed(0)
    likelihood = Categorical(image_shape=(1, 1, 1), features=4)
    x = torch.tensor([10, 20, 30, 40]).repeat_interleave(torch.tensor([100, 60, 40, 20])).view(-1, 1, 1, 1) / 255
    offset = fitted(likelihood, x)
    probability = F.softmax(likelihood(offset.unsqueeze(0)).logits.flatten(), dim=0)[[10, 20, 30, 40]]
    assert torch.allclose(probability, torch.tensor([100, 60, 40, 20]) / 220, atol=0.01)


ALWAYS_BLACK = torch.zeros(257, *SHAPE)


def test_pixels_that_never_vary_start_where_the_decoder_can_learn() -> None:
    likelihood = Laplace(image_shape=SHAPE, scale=Shared(image_shape=SHAPE, floor=1e-3, init=0.3), bounded_mean=None)
    offset = fitted(likelihood, ALWAYS_BLACK)
    assert torch.allclose(offset, torch.full(SHAPE, -4.0))  # the sigmoid still has a slope of 0.018


def dataset(pixels: Tensor) -> Dataset:
    part = Images(pixels, torch.zeros(len(pixels), dtype=torch.int64))
    source = Source(train=part, test=part[:1], classes=0)
    return Dataset(source=source, validation=0, binarize="none", dequantize="uniform")


def test_the_sample_has_an_image_of_noise_and_is_the_same_each_time() -> None:
    data = dataset(torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(100, *SHAPE).contiguous())
    torch.manual_seed(1)
    first = start_images(data, outputs=12)
    assert first.shape == (101, *SHAPE) and first[-1].std() > 0.1
    assert torch.equal((first[:-1] * 256).floor(), data.train.pixels.float())
    state = torch.get_rng_state()
    assert torch.equal(start_images(data, outputs=12), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(start_images(data, outputs=2**16)) == 17  # fewer images if each has many outputs


LIKELIHOODS = (
    "gaussian",
    "gaussian likelihood/scale=per_dimension",
    "gaussian likelihood/scale=per_image",
    "laplace likelihood/scale=per_pixel",
    "laplace likelihood/scale=optimal",
    "gaussian likelihood/scale=optimal_per_pixel",
    "logistic",
    "student_t",
    "truncated_normal likelihood/scale=per_pixel",
    "beta",
    "continuous_bernoulli",
    "discretized_logistic likelihood/scale=per_pixel dataset.dequantize=none",
    "discretized_logistic_mixture dataset.dequantize=none",
    "categorical dataset.dequantize=none",
    "cross_entropy dataset.dequantize=none",
    "bernoulli dataset.dequantize=none dataset.binarize=threshold",
)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_starts_better_than_at_zero(likelihood: str, tiny: list[str]) -> None:
    """On other images than those of the sample, too."""
    config = composed(*tiny, "dataset.dequantize=uniform", *f"likelihood={likelihood}".split())
    data = load_dataset(config.dataset)
    model = build_model(config, data.image_shape, data.classes, stochastic=True)
    x = data.to_float(data.validation.pixels)
    state = copy.deepcopy(model.state_dict())

    def distortion() -> float:
        h = model.offset.unsqueeze(0).expand(len(x), *model.offset.shape)
        log_prob: Tensor = copy.deepcopy(model.likelihood)(h, x).log_prob(x)  # a copy, because this may count batches
        return -log_prob.mean().item()

    before = distortion()
    random = torch.get_rng_state()
    fit_start(model, data)
    assert torch.equal(torch.get_rng_state(), random)
    assert distortion() < before - 50
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    own = {f"likelihood.{name}" for name, _ in model.likelihood.named_parameters()}
    assert changed == {"center", "offset"} | own


def test_the_start_is_a_setting_and_part_of_the_model(tiny: list[str]) -> None:
    config = composed(*tiny, "device=cpu")
    zero, data = build(replace(config, start="zero")).model, build(config).model
    assert not zero.offset.any() and not zero.center.any()
    mean = load_dataset(config.dataset).train.pixels[:768:3].float().mean(0) / 255
    assert torch.allclose(data.center, mean, atol=1e-6)
    for (name, a), b in zip(zero.encoder.named_parameters(), data.encoder.parameters(), strict=True):
        assert torch.equal(a, b), name
    z = torch.randn(5, 20)
    assert torch.allclose(data.decoder(z) + data.offset, zero.decoder(z) + data.offset)
    state = data.state_dict()
    del state["offset"], state["center"]  # of an older version
    data.load_state_dict(state)
    assert not data.offset.any() and not data.center.any()


class OneToOne(CrossEntropy):
    """A user's likelihood that is wrong for a single h and many images."""

    def forward(self, h: Tensor, x: Tensor | None = None) -> BernoulliDistribution:
        if x is not None and len(h) != len(x):
            raise ValueError("as many outputs as images are needed")
        return super().forward(h, x)


class Infinite(CrossEntropy):
    """A user's likelihood whose log-probability overflows."""

    def forward(self, h: Tensor, x: Tensor | None = None) -> BernoulliDistribution:
        return super().forward(h / 0, x)


class Biased(mlp.Decoder):
    """A user's decoder whose output is far from zero before training."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        torch.nn.init.constant_(self.output.bias, 2.0)


def test_the_start_does_not_depend_on_the_decoder(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    z = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0))
    plain, biased = (
        build(composed(*tiny, "device=cpu", f"architecture.decoder._target_={target}")).model
        for target in ("vaex.architectures.mlp.Decoder", f"{__name__}.Biased")
    )
    with torch.no_grad():
        first, second = ((model.decoder(z) + model.offset).mean(0) for model in (plain, biased))
    assert torch.allclose(first, second, atol=0.05)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("OneToOne", "fitting OneToOne failed (as many outputs as images are needed); use start=zero"),
        ("Infinite", "Infinite has an infinite log-probability or derivative for some training images; use start=zero"),
    ],
)
def test_a_likelihood_that_cannot_be_fitted_is_named(
    name: str, reason: str, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    config = composed(*tiny, "likelihood=cross_entropy", f"likelihood._target_={__name__}.{name}", "device=cpu")
    with pytest.raises(UserError) as error:
        build(config)
    assert str(error.value) == f"start=data: {reason}"


def test_a_learned_scale_has_its_own_learning_rate(tiny: list[str]) -> None:
    experiment = build(composed(*tiny, "device=cpu", "optimizer=adamw", "optimizer.lr=0.001"))
    rates = [(len(group["params"]), group["weight_decay"]) for group in experiment.optimizer.param_groups]
    assert experiment.learning_rates == (0.001, 0.001, 0.03)
    assert rates[2] == (1, 0.0) and rates[0][1] > 0
    (scale,) = experiment.optimizer.param_groups[2]["params"]
    assert scale is next(experiment.model.likelihood.parameters())
    same = build(composed(*tiny, "device=cpu", "likelihood.scale.lr=null"))
    assert len(same.optimizer.param_groups) == 1 and math.isclose(same.learning_rates[0], 0.002)
