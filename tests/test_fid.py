"""Fréchet distance against closed forms and scipy, and the neighbor measures on sets whose answer can be counted."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from vaex.evaluation import fid
from vaex.evaluation.fid import (
    FeatureStatistics,
    frechet_distance,
    neighborhoods,
    real_against_real_floor,
)


def precision_recall(real: torch.Tensor, fake: torch.Tensor, k: int = 3) -> tuple[float, float]:
    values = neighborhoods(real, fake, k=k, k_density=1)
    return values["precision"], values["recall"]


def density_coverage(real: torch.Tensor, fake: torch.Tensor, k: int = 5) -> tuple[float, float]:
    values = neighborhoods(real, fake, k=1, k_density=k)
    return values["density"], values["coverage"]


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics(seed: int, dimension: int = 24, rank: int | None = None) -> FeatureStatistics:
    factor = random(seed, dimension, rank or 2 * dimension)
    return FeatureStatistics(1000, random(seed + 1000, dimension), factor @ factor.T / dimension)


def test_statistics_are_numpys() -> None:
    features = random(0, 50, 6) * 3 + 1000  # far from zero: a one-pass variance would lose its digits
    of = FeatureStatistics.of(features)
    assert of.count == 50
    np.testing.assert_allclose(of.mean, np.mean(features.numpy(), axis=0), rtol=1e-12)
    np.testing.assert_allclose(of.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-10)


def test_float32_features_are_summed_in_float64() -> None:
    features = (random(0, 5000, 3) + 300).float()
    of = FeatureStatistics.of(features)
    np.testing.assert_allclose(of.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-10)


def test_distance_of_diagonal_gaussians() -> None:
    """Σ (mean difference)² + Σ (difference of standard deviations)²."""
    std_a, std_b = torch.tensor([1.0, 2.0, 0.5, 0.0]).double(), torch.tensor([3.0, 2.0, 0.25, 1.0]).double()
    mean_a, mean_b = torch.tensor([0.0, 1.0, -1.0, 0.0]).double(), torch.tensor([1.0, 1.0, 2.0, 0.0]).double()
    a, b = (FeatureStatistics(99, m, torch.diag(s**2)) for m, s in ((mean_a, std_a), (mean_b, std_b)))
    expected = (1 + 9) + (4 + 0.0625 + 1)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_distance_is_that_of_scipys_matrix_root(seed: int) -> None:
    a, b = statistics(seed), statistics(seed + 50)
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    expected = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * root.trace()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-8)


@pytest.mark.parametrize("rank", [None, 5])
def test_distance_is_symmetric_and_zero_only_to_itself(rank: int | None) -> None:
    a, b = statistics(0, rank=rank), statistics(1, rank=rank)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-8)
    assert frechet_distance(a, b) > 1
    assert 0 <= frechet_distance(a, a) < 1e-8


def test_distance_does_not_change_under_a_rotation() -> None:
    a, b = statistics(0), statistics(1)
    rotation = torch.linalg.qr(random(2, 24, 24)).Q
    turned = [FeatureStatistics(s.count, rotation @ s.mean, rotation @ s.covariance @ rotation.T) for s in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-8)


def test_bias_of_the_floor_is_one_over_n() -> None:
    """Two sets of N from N(0, I): means add 2 F / N, and covariances ‖S_a - S_b‖² / 4 = F (F + 1) / (2 N)."""
    dimension = 40
    features = random(0, 16_000, dimension)
    for total in (4_000, 16_000):
        expected = (2 * dimension + dimension * (dimension + 1) / 2) / (total // 2)
        assert real_against_real_floor(features[:total], splits=5) == pytest.approx(expected, rel=0.1)


def test_halves_are_drawn_at_random_by_the_seed() -> None:
    """Cut in the middle, a set sorted by class would give a distance between classes."""
    features = torch.cat([random(0, 2000, 4), random(1, 2000, 4) + 10])
    floor = real_against_real_floor(features, splits=1, seed=1)
    assert floor < 1
    assert floor == real_against_real_floor(features, splits=1, seed=1)
    assert floor != real_against_real_floor(features, splits=1, seed=2)


def test_floor_is_the_mean_of_different_splits() -> None:
    features = random(0, 400, 4)
    floors = torch.tensor([real_against_real_floor(features, splits=20, seed=seed) for seed in range(10)])
    single = torch.tensor([real_against_real_floor(features, splits=1, seed=seed) for seed in range(10)])
    assert floors.std() < single.std() / 2


def test_too_few_images_are_refused() -> None:
    few, many = (FeatureStatistics.of(random(0, n, 12)) for n in (12, 13))
    for pair in ((few, many), (many, few)):
        with pytest.raises(ValueError, match="more than 12 images on each side, got N=12") as caught:
            frechet_distance(*pair)
        assert "\n" not in str(caught.value)
    frechet_distance(many, many)


def line(*positions: float) -> torch.Tensor:
    return torch.tensor(positions)[:, None]


REAL = line(0, 1, 2, 10, 11, 13)  # for k=1 the balls are [-1,1] [0,2] [1,3] [9,11] [10,12] [11,15]
FAKE = line(0.5, 2.5, 2.75, 100)  # for k=1 the balls are [-1.5,2.5] [2.25,2.75] [2.5,3] [2.75,197.25]


def test_precision_and_recall_of_a_counted_set() -> None:
    precision, recall = precision_recall(REAL, FAKE, k=1)
    assert precision == 3 / 4  # all but 100
    assert recall == 6 / 6  # 0, 1, 2 in the first; 10, 11, 13 in the last, which an outlier makes wide
    assert precision_recall(REAL, FAKE[:3], k=1) == (1.0, 3 / 6)
    assert precision_recall(FAKE[:3], REAL, k=1) == (3 / 6, 1.0)


def test_density_and_coverage_of_a_counted_set() -> None:
    density, coverage = density_coverage(REAL, FAKE, k=1)
    assert density == (2 + 1 + 1 + 0) / 4  # balls that hold 0.5, 2.5, 2.75 and 100
    assert coverage == 3 / 6  # the first three
    density, coverage = density_coverage(REAL, FAKE, k=2)  # [-2,2] [0,2] [0,4] [7,13] [9,13] [10,16]
    assert density == pytest.approx((3 + 1 + 1 + 0) / (2 * 4))
    assert coverage == 3 / 6


def test_neighbors_leave_out_the_point_itself_and_a_ball_is_closed() -> None:
    real = line(0, 4, 10)  # for k=1: [-4,4] [0,8] [4,16]; for k=2: [-10,10] [-2,10] [0,20]
    assert precision_recall(real, line(-4, 16, 17, -5), k=1)[0] == 2 / 4
    assert precision_recall(real, line(20, 21, -10, -11), k=2)[0] == 2 / 4
    assert density_coverage(real, line(-4, -5), k=1) == (1 / 2, 1 / 3)


def test_mode_collapse_and_memorising() -> None:
    """One mode of two: precise, without recall. A copy: everything found."""
    modes = torch.cat([random(0, 200, 4), random(1, 200, 4) + 50])
    collapsed = random(2, 400, 4)
    assert precision_recall(modes, collapsed)[0] > 0.9
    assert precision_recall(modes, collapsed)[1] < 0.5
    assert 0.4 < density_coverage(modes, collapsed)[1] <= 0.5
    assert precision_recall(modes, modes) == (1.0, 1.0)
    assert density_coverage(modes, modes)[1] == 1.0
    assert precision_recall(modes, modes + 1000) == (0.0, 0.0)
    assert density_coverage(modes, modes + 1000) == (0.0, 0.0)


def test_one_distribution_gives_the_expected_density_and_coverage() -> None:
    """Naeem et al. 2020: density 1, and coverage 1 - Π (N - i) / (N + M - i) over i = 1 … k."""
    n, m, k = 1500, 1000, 5
    density, coverage = density_coverage(random(0, n, 8), random(1, m, 8), k)
    assert density == pytest.approx(1, abs=0.1)
    assert coverage == pytest.approx(1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1)), abs=0.02)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = random(0, 130, 5), random(1, 70, 5) + 0.5
    whole = precision_recall(real, fake), density_coverage(real, fake)
    monkeypatch.setattr(fid, "DISTANCES_AT_ONCE", 1000)
    assert (precision_recall(real, fake), density_coverage(real, fake)) == whole
