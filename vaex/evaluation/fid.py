"""How near generated images are to real ones, from the features of a classifier (see vaex.evaluation.classifier).

Fréchet distance: Heusel et al. 2017, eq. 6. Precision and recall: Kynkäänniemi et al. 2019, eqs. 1 and 2. Density and
coverage: Naeem et al. 2020. All in float64. The numbers belong to one classifier and one count of images:
give both, and the floor, with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DISTANCES_AT_ONCE = 10_000_000  # 80 MB of them in float64


@dataclass(frozen=True)
class FeatureStatistics:
    """Of `count` images: mean [F] and unbiased covariance [F, F] of their features, float64."""

    count: int
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """Features [N, F].

        Raises:
            ValueError: fewer than two images.
        """
        count = len(features)
        if count < 2:
            raise ValueError(f"a covariance needs the features of 2 images or more, got {count}")
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(count, mean, centred.T @ centred / (count - 1))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mean_a - mean_b|² + tr(S_a + S_b - 2 (S_a S_b)^½), the squared distance of two Gaussians; 0 when they are equal.

    The trace of the root is that of (S_a^½ S_b S_a^½)^½, the sum of the singular values of S_a^½ S_b^½. It is biased
    upwards, by about c / N for N images: compare only distances of the same counts.

    Raises:
        ValueError: there are no more images than features, which leaves a covariance without full rank.
    """
    dimension = len(a.mean)
    if len(b.mean) != dimension:
        raise ValueError(f"features of {dimension} and of {len(b.mean)} numbers: take both from one classifier")
    fewest = min(a.count, b.count)
    if fewest <= dimension:
        raise ValueError(
            f"a Fréchet distance of {dimension} features needs more than {dimension} images on each side, "
            f"got N={fewest}; take 10,000, or at least {10 * dimension}"
        )
    # Roots before the product: the eigenvalues of S_a^½ S_b S_a^½ lose half the digits of the small ones.
    trace_of_root: Tensor = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance)).sum()
    squared: Tensor = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * trace_of_root
    return max(float(squared), 0.0)  # below zero only by rounding


def real_against_real_floor(features: Tensor, *, splits: int = 10, seed: int = 0) -> tuple[float, int]:
    """Fréchet distance of two disjoint random halves of real images, and the number of images in each half.

    What is left of a distance when both sides have one distribution is the bias, about c (1/N_a + 1/N_b): with N images
    in a half, c is the floor × N / 2, and two sets of 2 N images each have half this floor.

    Args:
        features: of real images, [2 N, F].
        splits: random cuts in halves, whose distances are averaged: of a single one the last digits are chance.
        seed: of the cuts.

    Raises:
        ValueError: halves too small for a distance, or no splits.
    """
    if splits < 1:
        raise ValueError(f"splits must be >= 1, got {splits}")
    half = len(features) // 2
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(splits):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        first, second = features[order[:half]], features[order[half : 2 * half]]
        distances.append(frechet_distance(FeatureStatistics.of(first), FeatureStatistics.of(second)))
    return sum(distances) / splits, half


@dataclass(frozen=True)
class Neighbourhoods:
    """How samples lie among real images in feature space.

    A ball reaches from its centre to the centre's k-th nearest neighbour of the same set.

    Attributes:
        precision: share of fakes inside some ball around a real image.
        recall: share of real images inside some ball around a fake.
        density: balls around real images that hold a fake, over k, mean over the fakes; it may be above 1.
        coverage: share of balls around real images that hold any fake; for two sets of one distribution and of one
            size it is about 1 - 2^-k, 0.97 for k = 5.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhoods(real: Tensor, fake: Tensor, *, k: int = 3, k_density: int = 5) -> Neighbourhoods:
    """Real features [N, F] and fake ones [M, F]. `k` is for precision and recall, `k_density` for the other two.

    Raises:
        ValueError: a set has no k-th neighbour.
    """
    real, fake = real.double(), fake.double()
    around_real, wide = _squared_radii(real, k, k_density)
    (around_fake,) = _squared_radii(fake, k)
    held, balls, recalled = [], [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    nearest = torch.full((len(real),), torch.inf, dtype=real.dtype, device=real.device)
    start = 0
    for distances in _squared_distances(fake, real):  # some fakes against all real images
        rows = slice(start, start + len(distances))
        held.append((distances <= around_real).any(1))
        balls.append((distances <= wide).sum(1))
        recalled |= (distances <= around_fake[rows, None]).any(0)
        nearest = torch.minimum(nearest, distances.amin(0))
        start = rows.stop
    return Neighbourhoods(
        precision=torch.cat(held).double().mean().item(),
        recall=recalled.double().mean().item(),
        density=torch.cat(balls).double().mean().item() / k_density,
        coverage=(nearest <= wide).double().mean().item(),
    )


def _squared_radii(points: Tensor, *ks: int) -> tuple[Tensor, ...]:
    """Squared distance of each point to its k-th nearest other point, [N], for each k."""
    for k in ks:
        if not 1 <= k < len(points):
            raise ValueError(f"k={k} neighbours: must be from 1 to {len(points) - 1}, the images of the set less 1")
    nearest = [
        distances.topk(max(ks) + 1, largest=False).values  # the point itself is the nearest
        for distances in _squared_distances(points, points)
    ]
    ordered = torch.cat(nearest)
    return tuple(ordered[:, k] for k in ks)


def _squared_distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """|a - b|² of all pairs, some rows of a [N, F] at a time against all of b [M, F]: [rows, M] each."""
    b_norms = b.square().sum(1)
    for rows in torch.split(a, max(1, DISTANCES_AT_ONCE // len(b))):
        products = torch.addmm(b_norms, rows, b.T, alpha=-2)
        yield products.add_(rows.square().sum(1, keepdim=True)).clamp_(min=0)  # below zero only by rounding


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a covariance [F, F]."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # below zero only by rounding
    return root
