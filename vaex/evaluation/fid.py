"""How similar generated and real images are in the features of a classifier (see vaex.evaluation.classifier).

Fréchet distance: Heusel et al. 2017, eq. 6. Precision and recall: Kynkäänniemi et al. 2019, eqs. 1 and 2. Density and
coverage: Naeem et al. 2020. All in float64. The numbers depend on the classifier and on the number of images: report
both, and the floor, with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DISTANCES_AT_ONCE = 10_000_000  # 80 MB in float64


@dataclass(frozen=True)
class FeatureStatistics:
    """Number of images, mean [F] and unbiased covariance [F, F] of their features, float64."""

    count: int
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """Statistics of features [N, F]."""
        count, features = len(features), features.double()
        mean = features.mean(0)
        centered = features - mean
        return cls(count, mean, centered.T @ centered / (count - 1))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mean_a - mean_b|² + tr(S_a + S_b - 2 (S_a S_b)^½), the squared distance of two Gaussians; 0 if they are equal.

    The trace of the root is the sum of the singular values of S_a^½ S_b^½. The estimate is biased upwards, by about
    c / N for N images: compare only distances of equally many images.

    Raises:
        ValueError: if there are not more images than features, so that a covariance has no full rank.
    """
    dimension = len(a.mean)
    fewest = min(a.count, b.count)
    if fewest <= dimension:
        raise ValueError(
            f"a Fréchet distance of {dimension} features needs more than {dimension} images on each side, "
            f"got N={fewest}; use 10,000, or at least {10 * dimension}"
        )
    # Roots before the product: the eigenvalues of S_a^½ S_b S_a^½ lose half the digits of the small ones.
    trace_of_root: Tensor = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance)).sum()
    squared: Tensor = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * trace_of_root
    return max(float(squared), 0.0)  # below zero only by rounding


def real_against_real_floor(features: Tensor, *, splits: int = 10, seed: int = 0) -> float:
    """Fréchet distance of two disjoint random halves of real images [2 N, F], the mean over `splits` random halvings.

    If both sides have one distribution, the distance is the bias, about c (1/N_a + 1/N_b): two sets of 2 N images each
    have half the floor of halves of N images.

    Raises:
        ValueError: if the halves are too small for a distance.
    """
    half = len(features) // 2
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(splits):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        first, second = features[order[:half]], features[order[half : 2 * half]]
        distances.append(frechet_distance(FeatureStatistics.of(first), FeatureStatistics.of(second)))
    return sum(distances) / splits


def neighborhoods(real: Tensor, fake: Tensor, *, k: int = 3, k_density: int = 5) -> dict[str, float]:
    """How fake features [M, F] lie among real ones [N, F].

    A ball around an image reaches to the k-th nearest other image of the same set; k is `k_density` for density and
    coverage.

    Returns:
        precision: fraction of fakes inside a ball around any real image.
        recall: fraction of real images inside a ball around any fake.
        density: number of balls around real images that hold a fake, over k, mean over fakes; it may exceed 1.
        coverage: fraction of balls around real images that hold any fake; about 1 - 2^-k for two sets of one
            distribution and one size, 0.97 for k = 5.
    """
    real, fake = real.double(), fake.double()
    around_real, wide = _squared_radii(real, k, k_density)
    (around_fake,) = _squared_radii(fake, k)
    precise, balls, recalled = [], [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    nearest = torch.full((len(real),), torch.inf, dtype=real.dtype, device=real.device)
    radii = torch.split(around_fake, _rows_at_once(real))
    for distances, radius in zip(_squared_distances(fake, real), radii, strict=True):  # some fakes, all real images
        precise.append((distances <= around_real).any(1))
        balls.append((distances <= wide).sum(1))
        recalled |= (distances <= radius[:, None]).any(0)
        nearest = torch.minimum(nearest, distances.amin(0))
    return {
        "precision": torch.cat(precise).double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": torch.cat(balls).double().mean().item() / k_density,
        "coverage": (nearest <= wide).double().mean().item(),
    }


def _squared_radii(points: Tensor, *ks: int) -> tuple[Tensor, ...]:
    """Squared distance of each point to its k-th nearest other point, [N], for each k."""
    nearest = [
        distances.topk(max(ks) + 1, largest=False).values  # the point itself is the nearest
        for distances in _squared_distances(points, points)
    ]
    return tuple(torch.cat(nearest)[:, k] for k in ks)


def _rows_at_once(b: Tensor) -> int:
    return max(1, DISTANCES_AT_ONCE // len(b))


def _squared_distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """|a - b|² of all pairs, some rows of a [N, F] at a time against all of b [M, F]: [rows, M] each."""
    b_norms = b.square().sum(1)
    for rows in torch.split(a, _rows_at_once(b)):
        products = torch.addmm(b_norms, rows, b.T, alpha=-2)
        yield products.add_(rows.square().sum(1, keepdim=True)).clamp_(min=0)  # below zero only by rounding


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a covariance [F, F]."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # below zero only by rounding
    return root
