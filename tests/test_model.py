"""The posterior's arithmetic, and the shapes that cross the model's borders."""

import math

import pytest
import torch
from conftest import SMALL_NETWORKS, composed

from vaex.architectures.vit import positions
from vaex.build import build_model
from vaex.latents.posterior import DiagonalGaussian
from vaex.latents.prior import StandardNormal


def rate_of(posterior: DiagonalGaussian) -> torch.Tensor:
    rate = StandardNormal(posterior.mean.shape[1], posterior.mean.device).rate(posterior)
    assert rate is not None
    return rate


def test_closed_form_rate_is_the_monte_carlo_one() -> None:
    torch.manual_seed(0)
    posterior = DiagonalGaussian(torch.randn(3, 4), torch.randn(3, 4))
    z = posterior.rsample(400_000)
    q = torch.distributions.Normal(posterior.mean, posterior.std)
    p = torch.distributions.Normal(0.0, 1.0)
    differences = q.log_prob(z) - p.log_prob(z)
    error = differences.std(0) / 400_000**0.5
    assert ((differences.mean(0) - rate_of(posterior)).abs() < 5 * error).all()


def test_rate_at_the_numbers_that_a_wrong_formula_misses() -> None:
    rate = rate_of(DiagonalGaussian(torch.zeros(1, 1), torch.full((1, 1), -2.0)))  # log std -1
    assert rate.item() == pytest.approx(0.5677, abs=1e-4)


def test_rate_keeps_its_digits_near_the_prior() -> None:
    log_var = torch.tensor([[1e-3, -1e-3]])
    exact = 0.5 * (torch.expm1(log_var.double()) - log_var.double())
    torch.testing.assert_close(rate_of(DiagonalGaussian(torch.zeros(1, 2), log_var)).double(), exact, rtol=1e-3, atol=0)


def test_a_point_mass_is_its_own_sample_and_infinitely_far_from_the_prior() -> None:
    point = DiagonalGaussian(torch.randn(2, 3), torch.full((2, 3), -torch.inf))
    assert (point.rsample(4) == point.mean).all()
    assert rate_of(point).isinf().all()


@pytest.mark.parametrize(
    "architecture, size",
    [(name, size) for name in ("mlp", "conv") for size in ((28, 28), (29, 41), (32, 32), (64, 48))]
    + [("vit", (28, 28)), ("vit", (64, 48))],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("conditional", [False, True])
def test_any_image_size(architecture: str, size: tuple[int, int], channels: int, conditional: bool) -> None:
    config = composed(
        f"architecture={architecture}",
        f"conditional={conditional}",
        "likelihood/scale=per_pixel",
        *SMALL_NETWORKS[architecture],
    )
    model = build_model(config, (channels, *size), classes=7, stochastic=True)
    x, labels = torch.rand(5, channels, *size), torch.arange(5)
    posterior = model.encode(x, labels)
    assert posterior.mean.shape == posterior.log_var.shape == (5, 20)
    distribution = model.decode(posterior.rsample(3), labels)
    assert distribution.batch_shape == (3, 5)
    assert distribution.mean.shape == (3, 5, channels, *size)
    assert model.reconstruct(x, labels).shape == x.shape
    if conditional:
        other = model.decode(posterior.mean, labels.flip(0)).mean
        assert not torch.equal(other[0], model.decode(posterior.mean, labels).mean[0])
        with pytest.raises(ValueError, match="conditional"):
            model.encode(x)


def test_a_size_that_does_not_fit_says_what_would() -> None:
    from vaex.errors import UserError

    with pytest.raises(UserError, match=r"architecture.widths has 3 layers.*at least 8 × 8.*6 × 9"):
        build_model(composed("architecture=conv"), (1, 6, 9), classes=0, stochastic=True)
    with pytest.raises(UserError, match=r"architecture.patch_size=5: must divide.*28 × 42; possible are 1, 2, 7, 14"):
        build_model(composed("architecture=vit", "architecture.patch_size=5"), (1, 28, 42), classes=0, stochastic=True)


def test_positions_of_a_transformer_tell_patches_apart() -> None:
    table = positions((3, 4), 8)
    assert table.shape == (12, 8)
    expected = [math.sin(2), math.sin(2 / 100), math.cos(2), math.cos(2 / 100)]  # of row 2
    assert table[2 * 4 + 1, :4].tolist() == pytest.approx(expected)
    assert table[2 * 4 + 1, 4:].tolist() == pytest.approx([math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)])
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.01


def test_hidden_layers_may_be_bfloat16_but_nothing_after_them() -> None:
    config = composed("precision=bf16", "architecture.hidden=[16]")
    model = build_model(config, (1, 8, 8), classes=0, stochastic=True)
    x = torch.rand(4, 1, 8, 8)
    seen = []
    for layer in (model.encoder.layers[0], model.encoder.output):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert model.encode(x).mean.dtype == torch.float32
    assert model.decode(torch.randn(4, 20)).log_prob(x).dtype == torch.float32
    model.eval()
    model.encode(x)
    assert seen == [torch.bfloat16, torch.float32, torch.float32, torch.float32]
