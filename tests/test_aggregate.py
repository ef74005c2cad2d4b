"""The division of the rate, of models whose aggregate posterior is known."""

import math
from collections.abc import Sequence

import pytest
import torch
from test_importance import LATENTS, SHAPE, evaluation_of, ppca
from torch import Tensor, nn

from vaex.data.dataset import Images
from vaex.evaluation.aggregate import aggregate_posterior
from vaex.evaluation.bound import evaluate
from vaex.model import Autoencoder


class Codes(nn.Module):
    """Images whose first pixel is 0, 1, 2, … have the given codes in the first latent, N(0, 1) in the others."""

    def __init__(self, means: Sequence[float], std: float) -> None:
        super().__init__()
        self.means, self.std = torch.tensor(means), std

    def forward(self, x: Tensor) -> Tensor:
        mean, log_var = torch.zeros(len(x), LATENTS), torch.zeros(len(x), LATENTS)
        mean[:, 0] = self.means[(x[:, 0, 0, 0] * 255).round().long()]
        log_var[:, 0] = 2 * math.log(self.std)
        return torch.cat([mean, log_var], dim=1)


def model_with(means: Sequence[float], std: float) -> tuple[Autoencoder, Images]:
    model = ppca()
    model.encoder = Codes(means, std)
    pixels = torch.arange(len(means), dtype=torch.uint8).repeat_interleave(400).view(-1, 1, 1, 1).expand(-1, *SHAPE)
    return model, Images(pixels.contiguous(), torch.zeros(len(pixels), dtype=torch.int64))


def test_a_posterior_that_is_the_prior_has_nothing_to_divide() -> None:
    numbers = aggregate_posterior(evaluation_of(*model_with([0.0, 0.0], 1.0)))
    for name in ("index_code_mi", "aggregate_kl", "total_correlation"):
        assert numbers[f"test/{name}"] == pytest.approx(0, abs=1e-5)
    assert numbers["test/aggregate_images"] == 800


def test_images_with_codes_far_apart_are_told_apart() -> None:
    """q(z) has four modes of equal weight, so that z says which of four kinds an image is of, and no more."""
    numbers = aggregate_posterior(evaluation_of(*model_with([-30.0, -10.0, 10.0, 30.0], 0.5)))
    assert numbers["test/index_code_mi"] == pytest.approx(math.log(4), abs=1e-4)
    rate = 0.5 * (500 + 0.25 - 1 - math.log(0.25))
    assert numbers["test/aggregate_kl"] == pytest.approx(rate - math.log(4), abs=0.02 * rate)
    assert numbers["test/total_correlation"] == pytest.approx(0, abs=1e-4)


def test_the_parts_add_up_to_the_rate() -> None:
    evaluation = evaluation_of(*model_with([-1.0, 0.3, 2.0], 0.4))
    numbers, rate = aggregate_posterior(evaluation), evaluate(evaluation)["rate"]
    assert isinstance(rate, float)
    parts = numbers["test/index_code_mi"] + numbers["test/aggregate_kl"]
    assert parts == pytest.approx(rate, abs=5 * 2 / 1200**0.5)
    assert 0 < numbers["test/index_code_mi"] < math.log(3)
