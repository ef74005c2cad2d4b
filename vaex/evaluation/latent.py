"""A mixture of Gaussians fitted to the codes after training, to sample z where the prior fits them badly.

An autoencoder has no prior, and the aggregate posterior of a VAE may be far from its prior (Ghosh et al. 2020, section
4). Log densities are in nats per code, float64 on the CPU.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LOG_TWO_PI = math.log(2 * math.pi)
TOLERANCE = 1e-4  # nats per code
COVARIANCE_FLOOR = 1e-6  # of the codes' mean variance: without it a component could shrink onto a single code


class GaussianMixture:
    """Σ_k weights_k N(means_k, covariances_k).

    Args:
        weights: [K], with a sum of one.
        means: [K, latent_dim].
        covariances: [K, latent_dim, latent_dim], positive definite.
    """

    def __init__(self, *, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.weights, self.means, self.covariances = weights.double(), means.double(), covariances.double()
        self.roots = torch.linalg.cholesky(self.covariances)  # lower triangular

    def __len__(self) -> int:
        return len(self.weights)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples for a decoder, float32 [count, latent_dim] on the CPU, from a generator of the CPU."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], 1, generator=generator, dtype=torch.float64)
        z = self.means[component].float()
        for k in range(len(self)):
            rows = component == k
            z[rows] = (self.means[k] + noise[rows, :, 0] @ self.roots[k].T).float()
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        """z [N, latent_dim] -> [N] nats, float64."""
        return torch.logsumexp(self.log_joint(z.double().cpu()), dim=1)

    def log_joint(self, z: Tensor) -> Tensor:
        """log weights_k + log N(z; means_k, covariances_k), [N, K]."""
        columns = []
        for weight, mean, root in zip(self.weights, self.means, self.roots, strict=True):
            white = torch.linalg.solve_triangular(root, (z - mean).T, upper=False)  # [latent_dim, N]
            log_volume = root.diagonal().log().sum()
            columns.append(weight.log() - log_volume - 0.5 * (white.square().sum(0) + len(mean) * LOG_TWO_PI))
        return torch.stack(columns, dim=1)


def fit_mixture(
    codes_train: Tensor,
    codes_heldout: Tensor,
    components: Sequence[int] = (1, 2, 5, 10, 20, 50),
) -> GaussianMixture:
    """The mixture under which held-out codes are most probable.

    Args:
        codes_train: [N, latent_dim]; for a stochastic encoder samples of q(z|x), since its means lack their spread.
        codes_heldout: [M, latent_dim], of other images.
        components: numbers of components to try.

    Raises:
        ValueError: if the codes are too few, all equal or not finite.
    """
    if len(codes_train) < max(components):
        raise ValueError(
            f"a mixture of up to {max(components)} Gaussians needs as many training images, got {len(codes_train)}"
        )
    codes_train, codes_heldout = codes_train.double().cpu(), codes_heldout.double().cpu()
    variance = codes_train.var(0, correction=0).mean().item()
    if not 0 < variance < math.inf:
        raise ValueError(
            f"the codes' variance is {variance}: no mixture fits; train the model longer or at a lower beta"
        )
    mixtures = [expectation_maximization(codes_train, count) for count in components]
    return max(mixtures, key=lambda mixture: mixture.log_prob(codes_heldout).mean().item())


def expectation_maximization(codes: Tensor, components: int, *, iterations: int = 200) -> GaussianMixture:
    """Maximum-likelihood mixture of codes float64 [N, latent_dim], from a k-means++ start.

    Ends after `iterations`, or when the mean log density grows by less than TOLERANCE.
    """
    nearest = torch.cdist(codes, _spread_centers(codes, components)).argmin(1)
    responsibilities = torch.nn.functional.one_hot(nearest, components).double()  # [N, K]
    previous = -math.inf
    mixture = _maximize(codes, responsibilities)
    for _ in range(iterations):
        log_joint = mixture.log_joint(codes)
        log_density = torch.logsumexp(log_joint, dim=1, keepdim=True)
        mean = log_density.mean().item()
        if mean - previous < TOLERANCE:
            break
        previous = mean
        mixture = _maximize(codes, torch.exp(log_joint - log_density))
    return mixture


def _maximize(codes: Tensor, responsibilities: Tensor) -> GaussianMixture:
    """The mixture with the highest expected log joint density, for responsibilities [N, K] of components for codes."""
    counts = responsibilities.sum(0).clamp(min=1e-10)  # a component may have lost all its codes
    means = responsibilities.T @ codes / counts[:, None]
    floor = COVARIANCE_FLOOR * codes.var(0, correction=0).mean() * torch.eye(codes.shape[1], dtype=codes.dtype)
    covariances = []
    for k in range(len(counts)):
        centered = codes - means[k]
        covariances.append((responsibilities[:, k, None] * centered).T @ centered / counts[k] + floor)
    return GaussianMixture(weights=counts / counts.sum(), means=means, covariances=torch.stack(covariances))


def _spread_centers(codes: Tensor, count: int) -> Tensor:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): codes far from each other, [count, latent_dim]."""
    generator = torch.Generator().manual_seed(0)
    centers = codes[torch.randint(len(codes), (1,), generator=generator)]
    distance = (codes - centers).square().sum(1)  # to the nearest center
    candidates = 2 + int(math.log(count))
    while len(centers) < count:
        # The tiny addend keeps the probabilities valid when every code is a center.
        index = torch.multinomial(distance + torch.finfo(distance.dtype).tiny, candidates, True, generator=generator)
        after = torch.minimum(torch.cdist(codes, codes[index]).square(), distance[:, None])
        best = after.sum(0).argmin()
        centers, distance = torch.cat([centers, codes[index[best]][None]]), after[:, best]
    return centers
