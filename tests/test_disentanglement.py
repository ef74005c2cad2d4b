"""Disentanglement scores of constructed codes: perfect, entangled and random ones, closed forms, and invariances."""

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vaex.data.dataset import Dataset, Factor, Images, Source
from vaex.evaluation import disentanglement as module
from vaex.evaluation.disentanglement import (
    BINS,
    DISENTANGLEMENT,
    dci_completeness,
    dci_disentanglement,
    disentanglement,
    factor_vae_score,
    forest_importances,
    mig_of_samples,
    mutual_information,
    mutual_information_gap,
    separated_attribute_predictability,
    squared_correlation,
    threshold_accuracy,
)
from vaex.evaluation.measure import Evaluation
from vaex.latents.posterior import DiagonalGaussian
from vaex.likelihoods.bernoulli import CrossEntropy
from vaex.model import Autoencoder
from vaex.objectives import AE

pytest.importorskip("sklearn")

DESCRIBED = [Factor("shape", 3, False), Factor("scale", 4, True), Factor("x", 5, True)]
ORDERED = [factor.ordered for factor in DESCRIBED]
# Every combination of values equally often: what holds of independent factors holds exactly.
FACTORS = torch.cartesian_prod(*(torch.arange(factor.values) for factor in DESCRIBED)).repeat(16, 1)
CLEAN = (FACTORS - FACTORS.double().mean(0)) / FACTORS.double().std(0)
NOISE = torch.randn(len(FACTORS), 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PERFECT = torch.cat([CLEAN, NOISE[:, :2]], dim=1)
NOISY = torch.cat([CLEAN + 0.4 * NOISE[:, 2:], NOISE[:, :2]], dim=1)
# Two columns of a latent hold a factor equally, with 4/9 of its variance each.
ENTANGLED = CLEAN @ torch.tensor([[2.0, 2, -1], [2, -1, 2], [-1, 2, 2]], dtype=torch.float64) / 3


@pytest.fixture(autouse=True)
def fewer_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEPTHS", (2, 16))


def test_a_perfect_code_has_every_score_at_its_best() -> None:
    scores = disentanglement(PERFECT, FACTORS, DESCRIBED)
    assert 0.93 < scores["mig"] <= 1  # the noise of 960 images has a little information
    assert scores["factor_vae"] == 1
    # Gaps of 1 for the ordered factors and of 1 - 1/3 for the three shapes, less what thresholds find in noise.
    assert (1 + 1 + 2 / 3) / 3 - 0.02 < scores["sap"] <= (1 + 1 + 2 / 3) / 3
    for name in ("dci_disentanglement", "dci_completeness", "dci_informativeness"):
        assert scores[name] == pytest.approx(1, abs=1e-9)


def test_without_noise_latents_a_perfect_code_is_exactly_at_the_best() -> None:
    assert mutual_information_gap(CLEAN, FACTORS) == pytest.approx(1)
    assert separated_attribute_predictability(CLEAN, FACTORS, ORDERED) == pytest.approx((1 + 1 + 2 / 3) / 3)


def test_an_entangled_code_scores_low_but_is_informative() -> None:
    scores = disentanglement(ENTANGLED, FACTORS, DESCRIBED)
    assert scores["mig"] < 0.15
    assert scores["sap"] < 0.05
    assert scores["dci_disentanglement"] < 0.2
    assert scores["dci_completeness"] < 0.2
    assert scores["dci_informativeness"] > 0.9
    assert scores["factor_vae"] < 0.6


def test_random_codes_score_as_chance() -> None:
    scores = disentanglement(NOISE, FACTORS, DESCRIBED)
    assert scores.pop("factor_vae") == pytest.approx(1 / 3, abs=0.06)
    assert scores.pop("dci_disentanglement") < 0.2  # shallow trees split few latents
    assert scores.pop("dci_completeness") < 0.2
    assert max(map(abs, scores.values())) < 0.05
    assert scores.keys() == {"mig", "sap", "dci_informativeness"}


# Mutual information and MIG


def test_mutual_information_of_a_small_joint() -> None:
    """P(z, v) = 3/8 on the diagonal, 1/8 off it: 3/4 log(3/2) - 1/4 log 2."""
    codes = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1], dtype=torch.float64)[:, None]
    factor = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])[:, None]
    expected = 0.75 * math.log(1.5) - 0.25 * math.log(2)
    assert mutual_information(codes, factor).item() == pytest.approx(expected)


def test_mutual_information_is_scikit_learns_of_numpys_bins() -> None:
    from sklearn.metrics import mutual_info_score

    information = mutual_information(NOISY, FACTORS)
    assert information.shape == (5, 3)
    for j, code in enumerate(NOISY.T.numpy()):
        binned = np.digitize(code, np.histogram(code, BINS)[1][:-1])
        for k, factor in enumerate(FACTORS.T.numpy()):
            assert information[j, k].item() == pytest.approx(mutual_info_score(binned, factor), abs=1e-12)


# v1 is known by z1, and by z2 but for 1 image in 4; v2 is independent of both.
TWO_FACTORS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1, 0, 0]]).T
TWO_LATENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 0, 1, 1, 1]], dtype=torch.float64).T
THREE_LATENTS = torch.cat([TWO_LATENTS, TWO_FACTORS[:, 1:] * 3.0], dim=1)  # and z3 = v2
ENTROPY_OF_A_QUARTER = 2 - 0.75 * math.log2(3)  # bits


def transposed_gap(codes: Tensor, factors: Tensor) -> float:
    """MIG gone wrong: the gap of the two best factors of each latent. The factors are of one bit each."""
    best = mutual_information(codes, factors).topk(2, dim=1).values
    return float((best[:, 0] - best[:, 1]).mean() / math.log(2))


def test_mig_of_samples_by_hand() -> None:
    """One latent tells four values apart, with modes far from each other; the others are noise: the gap is 1.

    With two latents that both do, it is 0.
    """
    factors = torch.arange(4).repeat_interleave(300)[:, None]
    mean = torch.zeros(1200, 3)
    mean[:, 0] = 20.0 * factors[:, 0]
    posterior = DiagonalGaussian(mean, torch.zeros(1200, 3))
    z = posterior.at(torch.randn(1200, 3, generator=torch.Generator().manual_seed(0)))
    assert mig_of_samples(posterior, z, factors) == pytest.approx(1, abs=1e-3)
    both = DiagonalGaussian(mean[:, [0, 0, 1]], torch.zeros(1200, 3))
    assert mig_of_samples(both, both.at(z - mean), factors) == pytest.approx(0, abs=1e-3)


def test_mig_by_hand() -> None:
    """In bits I(z1; v1) = 1, I(z2; v1) = 1 - h(1/4), I(z; v2) = 0: gaps h(1/4) and 0."""
    assert mutual_information_gap(TWO_LATENTS, TWO_FACTORS) == pytest.approx(ENTROPY_OF_A_QUARTER / 2)


def test_mig_by_hand_of_three_latents_and_two_factors() -> None:
    assert mutual_information_gap(THREE_LATENTS, TWO_FACTORS) == pytest.approx((ENTROPY_OF_A_QUARTER + 1) / 2)


@pytest.mark.parametrize(
    "codes, wrong",
    [(TWO_LATENTS, (2 - ENTROPY_OF_A_QUARTER) / 2), (THREE_LATENTS, (3 - ENTROPY_OF_A_QUARTER) / 3)],
    ids=["two", "three"],
)
def test_a_gap_over_factors_instead_of_latents_is_told_apart(codes: Tensor, wrong: float) -> None:
    assert transposed_gap(codes, TWO_FACTORS) == pytest.approx(wrong)
    assert abs(mutual_information_gap(codes, TWO_FACTORS) - wrong) > 0.1


def test_mig_of_more_values_than_bins_stays_below_one() -> None:
    """Two of 40 evenly spaced values fall in each of 20 bins."""
    factor = torch.arange(40)[:, None]
    assert mutual_information_gap(factor * 0.3, factor) == pytest.approx(math.log(20) / math.log(40))


# SAP


def best_by_trying_all(code: np.ndarray, factor: np.ndarray) -> float:
    """Balanced accuracy of the best C - 1 thresholds and the best class of each interval."""
    classes, counts = np.unique(factor, return_counts=True)
    worth = dict(zip(classes, 1 / counts / len(classes), strict=True))
    between = np.unique(code)[1:]
    count = min(len(classes) - 1, len(between))
    best = 0.0
    for cuts in combinations(between, count):
        interval = np.digitize(code, cuts)
        for called in product(classes, repeat=count + 1):
            best = max(best, sum(worth[v] for v, i in zip(factor, interval, strict=True) if called[i] == v))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_thresholds_are_the_best_there_are(seed: int) -> None:
    """Codes with ties, classes of unequal size, and a class that no image has."""
    generator = np.random.default_rng(seed)
    factor = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 3, 3, 3, 3])
    code = generator.integers(0, 7, size=13) + 0.8 * factor * (seed % 2)
    accuracy = threshold_accuracy(torch.from_numpy(code * 1.0), torch.from_numpy(factor))
    assert accuracy == pytest.approx(best_by_trying_all(code, factor))


def test_squared_correlation_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    line = stats.linregress(NOISY[:, 1].numpy(), FACTORS[:, 1].numpy())
    assert squared_correlation(NOISY[:, 1], FACTORS[:, 1]) == pytest.approx(line.rvalue**2)


def test_sap_reads_an_unordered_factor_by_thresholds_and_an_ordered_one_by_a_line() -> None:
    """z = |v - 1| holds nothing linear of v in 0, 1, 2, but tells 1 from the others: accuracy (1 + 1 + 0)/3."""
    factor = torch.arange(3).repeat(10)[:, None]
    code = (factor - 1).abs().double()
    assert separated_attribute_predictability(code, factor, [True]) == pytest.approx(0)
    assert separated_attribute_predictability(code, factor, [False]) == pytest.approx(2 / 3)


# FactorVAE


def test_one_latent_can_name_one_factor() -> None:
    """Whatever it names is right for one vote in F."""
    assert factor_vae_score(CLEAN[:, :1], FACTORS, seed=0) == pytest.approx(1 / 3, abs=4 * (2 / 9 / 5000) ** 0.5)


def test_collapsed_latents_have_no_vote() -> None:
    collapsed = torch.cat([0.04 * NOISE[:, :2], torch.full_like(NOISE[:, :1], 3)], dim=1)
    expected = factor_vae_score(NOISY, FACTORS, seed=0)
    assert factor_vae_score(torch.cat([collapsed, NOISY], dim=1), FACTORS, seed=0) == expected
    # Beside random codes these would have most votes.
    telling = torch.cat([0.04 * CLEAN, NOISE], dim=1)
    assert factor_vae_score(telling, FACTORS, seed=0) == factor_vae_score(NOISE, FACTORS, seed=0)
    assert factor_vae_score(0.04 * CLEAN, FACTORS, seed=0) == 0


def test_the_seed_fixes_the_factor_vae_score() -> None:
    first, again, other = (factor_vae_score(NOISE, FACTORS, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_value_that_one_image_has_is_not_held_fixed() -> None:
    """Images that are the same one have no variance, and the first latent would win."""
    factors = torch.cat([torch.zeros(50, 1), torch.ones(50, 1), torch.arange(2, 102)[:, None]]).long()
    assert factor_vae_score(torch.cat([NOISE[:200, :1], factors.double()], dim=1), factors, seed=0) == 1
    with pytest.raises(ValueError, match="no two of 100 images"):
        factor_vae_score(NOISE[:100], torch.arange(100)[:, None], seed=0)


# DCI


def test_dci_of_given_importances() -> None:
    importances = torch.tensor([[1, 0, 0], [0, 0.5, 0], [0, 0.5, 0], [0, 0, 1]], dtype=torch.float64)
    assert dci_disentanglement(importances) == pytest.approx(1)
    assert dci_completeness(importances) == pytest.approx((1 + (1 - math.log(2, 4)) + 1) / 3)
    # The rows sum to 1, 2 and 0: weights 1/3 and 2/3.
    importances = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.float64)
    assert dci_disentanglement(importances) == pytest.approx(1 / 3 + 2 / 3 * (1 - math.log(2, 3)))
    assert dci_completeness(importances) == pytest.approx(1)
    assert dci_disentanglement(torch.ones(4, 2)) == pytest.approx(0)
    assert dci_completeness(torch.ones(4, 2)) == pytest.approx(0)


def test_two_latents_for_one_factor_lower_completeness_alone() -> None:
    importances, _ = forest_importances(torch.cat([CLEAN, CLEAN[:, 2:]], dim=1), FACTORS, ORDERED)
    assert dci_disentanglement(importances) == pytest.approx(1)
    lowest = (1 + 1 + 1 - math.log(2, 4)) / 3  # both taken alike
    assert lowest - 1e-9 <= dci_completeness(importances) < lowest + 0.1


def test_one_latent_for_two_factors_lowers_disentanglement_alone() -> None:
    both = (5 * FACTORS[:, 1] + FACTORS[:, 2]).double()[:, None]
    importances, informativeness = forest_importances(
        torch.cat([both, CLEAN[:, :1], NOISE[:, :1]], dim=1), FACTORS, ORDERED
    )
    assert informativeness.tolist() == pytest.approx([1, 1, 1])
    assert dci_completeness(importances) == pytest.approx(1)
    # Two thirds of the importance are in a latent of two factors of three.
    assert dci_disentanglement(importances) == pytest.approx(1 - 2 / 3 * math.log(2, 3))


@pytest.mark.parametrize(
    "ordered, expected",
    [(True, 1 - 0.5 / 1.25**0.5), (False, 1 - 0.5 / 0.75)],
    ids=["ordered", "unordered"],
)
def test_informativeness_is_one_less_the_error_over_a_guess(ordered: bool, expected: float) -> None:
    """Four values of which the code tells pairs: an error of 1/2 beside a deviation of sqrt(5/4); 1/2 beside 3/4."""
    factor = torch.arange(4).repeat(1000)[:, None]
    code = torch.div(factor, 2, rounding_mode="floor").double()
    _, informativeness = forest_importances(code, factor, [ordered])
    assert informativeness.item() == pytest.approx(expected, abs=0.005 if ordered else 0.1)


def test_forests_see_latents_of_any_scale() -> None:
    """scikit-learn takes values within 1e-7 for equal."""
    scale = torch.tensor([1e-9, 1, 1e9], dtype=torch.float64)
    importances, informativeness = forest_importances(scale * CLEAN[:240], FACTORS[:240], ORDERED)
    torch.testing.assert_close(importances, torch.eye(3, dtype=torch.float64))
    assert informativeness.tolist() == pytest.approx([1, 1, 1])


# All scores


def test_order_sign_scale_and_shift_of_latents_do_not_matter() -> None:
    codes = torch.cat([ENTANGLED + CLEAN, NOISE[:, :2]], dim=1) + 0.3 * NOISE[:, [2, 3, 4, 0, 1]]
    changed = codes[:, [4, 2, 0, 3, 1]] * torch.tensor([-1, 20, -0.3, 5, 1]) + torch.tensor([0, -70, 3, 0.5, 100])
    scores, expected = (disentanglement(each, FACTORS, DESCRIBED) for each in (changed, codes))
    for name, score in expected.items():
        assert 0.2 < score < 0.98
        # A forest breaks ties by a random order of the latents.
        assert scores[name] == pytest.approx(score, abs=0.03 if name.startswith("dci") else 1e-12)


def test_order_of_images_does_not_matter_to_what_draws_none() -> None:
    rows = torch.randperm(len(FACTORS), generator=torch.Generator().manual_seed(0))
    for score in (mutual_information_gap, lambda z, v: separated_attribute_predictability(z, v, ORDERED)):
        assert score(NOISY[rows], FACTORS[rows]) == pytest.approx(score(NOISY, FACTORS), abs=1e-12)


def test_constant_latents_change_nothing_but_the_base_of_completeness() -> None:
    constant = torch.full_like(NOISE, 0.1)
    more = torch.cat([constant, NOISY], dim=1)
    for score in (mutual_information_gap, lambda z, v: separated_attribute_predictability(z, v, ORDERED)):
        assert score(more, FACTORS) == pytest.approx(score(NOISY, FACTORS), abs=1e-12)
    both = (torch.cat([constant, CLEAN], dim=1)[:240], CLEAN[:240])
    scores, expected = (disentanglement(codes, FACTORS[:240], DESCRIBED) for codes in both)
    assert scores == pytest.approx(expected, abs=1e-9)
    importances, _ = forest_importances(more, FACTORS, ORDERED)
    assert (importances[:5] == 0).all()


def test_constant_latents_alone_score_nothing() -> None:
    scores = disentanglement(torch.full((len(FACTORS), 3), 0.1), FACTORS, DESCRIBED)
    assert abs(scores.pop("dci_informativeness")) < 0.1
    assert scores == pytest.approx(dict.fromkeys(scores, 0.0), abs=1e-12)


def test_one_latent_is_enough() -> None:
    scores = disentanglement(CLEAN[:, 2:], FACTORS, DESCRIBED)
    assert scores["mig"] == pytest.approx(1 / 3)
    assert all(map(math.isfinite, scores.values()))


def test_a_factor_of_a_single_value_is_left_out() -> None:
    codes, few = PERFECT[:240], FACTORS[:240]
    factors = torch.cat([torch.full_like(few[:, :1], 2), few], dim=1)
    scores = disentanglement(codes, factors, [Factor("color", 3, False), *DESCRIBED])
    assert scores == disentanglement(codes, few, DESCRIBED)


def test_what_cannot_be_scored_is_an_error() -> None:
    for factors, described in ((None, DESCRIBED), (FACTORS[:, :0], [])):
        with pytest.raises(ValueError, match="no known factors.*dataset=sprites"):
            disentanglement(CLEAN, factors, described)
    with pytest.raises(ValueError, match="at least 10 test images, got 9"):
        disentanglement(PERFECT[:9], FACTORS[:9], DESCRIBED)
    with pytest.raises(ValueError, match="same factors"):
        disentanglement(CLEAN, torch.ones_like(FACTORS), DESCRIBED)
    for value in (math.nan, math.inf):
        codes = CLEAN.clone()
        codes[7, 1] = value
        with pytest.raises(ValueError, match="^1 of 960 codes are NaN or infinite"):
            disentanglement(codes, FACTORS, DESCRIBED)


# Codes of a model


@pytest.mark.parametrize("classes", [0, 3])
def test_codes_are_the_posterior_means_in_the_order_of_the_images(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Encoder(nn.Module):
        """Mean: the first two pixels, plus the label; log variance 2."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            assert not self.training and not torch.is_grad_enabled()
            label = 0 if condition is None else condition.argmax(1, keepdim=True)
            mean = x.flatten(1)[:, :2] * self.weight + label
            return torch.cat([mean, torch.full_like(mean, 2)], dim=1)

    model = Autoencoder(
        encoder=Encoder(),
        decoder=nn.Identity(),
        likelihood=CrossEntropy(image_shape=(1, 2, 2)),
        latent_dim=2,
        classes=classes,
    )
    pixels = torch.arange(23 * 4, dtype=torch.uint8).reshape(23, 1, 2, 2)
    labels = torch.arange(23) % 3
    polled: list[int] = []
    images = Images(pixels, labels)
    dataset = Dataset(source=Source(images, images, classes), validation=0, binarize="none", dequantize="none")
    evaluation = Evaluation(model, AE(), dataset, images_per_batch=10, poll=lambda: polled.append(1))
    monkeypatch.setattr(module, "disentanglement", lambda codes, *factors: {"codes": codes})
    codes = DISENTANGLEMENT.function(evaluation)["test/codes"]
    expected = pixels.flatten(1)[:, :2] / 255 + (labels[:, None] if classes else 0)
    torch.testing.assert_close(codes, expected, rtol=0, atol=0)
    assert len(polled) == 3 and model.training
