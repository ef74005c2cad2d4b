"""Objectives that penalize the aggregate posterior q(z) = E_x q(z|x), and not only each q(z|x).

Each adds a penalty to distortion + beta · rate. It is estimated from a batch, so that these losses are no means over
images.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from vaex.latents.posterior import DiagonalGaussian
from vaex.model import Autoencoder
from vaex.objectives.base import Batch, Objective, Terms, infer_and_decode, not_negative

AT_ONCE = 2**23  # values of log q(z_ij|x_m)


class AggregateObjective(Objective):
    """distortion + beta · rate + penalty, with one sample of z for each image.

    Args:
        beta: weight of the rate.
    """

    stochastic = True
    linear_in_batch = False
    needs_diagonal = True
    needs_standard = True  # with another prior, the terms of the aggregate posterior are not those of the rate
    beta: Tensor

    def __init__(self, *, beta: float) -> None:
        super().__init__()
        self.hold(beta=beta)

    def penalty(self, posterior: DiagonalGaussian, z: Tensor, batch: Batch) -> Tensor:
        """What the loss adds for the aggregate posterior, in nats, [].

        Args:
            posterior: q(z|x) of the B images.
            z: a sample of each, [B, latent_dim].
        """
        raise NotImplementedError

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor | None) -> Terms:
        latents, distribution, distortion = infer_and_decode(model, batch, samples=1)
        posterior, rate = latents.posterior, latents.rate
        assert isinstance(posterior, DiagonalGaussian)  # `needs_diagonal`
        loss = distortion.mean() + self.beta * rate.sum(1).mean() + self.penalty(posterior, latents.z[0], batch)
        return Terms(loss, distortion, rate, posterior, distribution)


class TotalCorrelation(AggregateObjective):
    """distortion + beta · (rate - TC) + tc · TC, with TC = KL(q(z) || Π_j q(z_j)). Chen et al. 2018, eq. 4.

    The rate is the sum of the index-code mutual information, of the total correlation TC and of
    Σ_j KL(q(z_j) || p(z_j)). With tc = beta this is a VAE.

    q(z) and q(z_j) are estimated by stratified sampling (their appendix C.2): of the N images of the split, z's own has
    weight 1 / N, and the other B - 1 of the batch share the rest. Their order does not matter here.

    Args:
        beta: weight of the rest of the rate; 1 in the paper.
        tc: weight of the total correlation; beta in the paper.

    Raises:
        ValueError: if tc is negative.
    """

    tc: Tensor

    def __init__(self, *, beta: float, tc: float) -> None:
        super().__init__(beta=beta)
        self.hold(tc=not_negative("tc", tc))
        self.formula = f"distortion + {beta:g} · (KL(q(z|x) ‖ p(z)) − TC) + {tc:g} · TC"

    def penalty(self, posterior: DiagonalGaussian, z: Tensor, batch: Batch) -> Tensor:
        log_q, log_q_of_each = aggregate_log_prob(posterior, z, batch.population)
        return (self.tc - self.beta) * (log_q - log_q_of_each.sum(1)).mean()


def aggregate_log_prob(posterior: DiagonalGaussian, z: Tensor, population: int | None = None) -> tuple[Tensor, Tensor]:
    """Estimates of log q(z) [B] and of log q(z_j) [B, latent_dim], whose exponentials are unbiased.

    Args:
        posterior: q(z|x) of B images, drawn without replacement.
        z: a sample of q(z|x) of each image, [B, latent_dim].
        population: N, the number of images that q(z) covers; None for these B, for which the result is exact.
    """
    count = len(z)
    population = max(population or count, count)
    own, others = 1 / population, (population - 1) / (population * max(1, count - 1))
    if count == 1:
        own = 1.0  # nothing is known about the others
    log_weights = torch.full((count, count), others, device=z.device).fill_diagonal_(own).log()  # of q(z_i|x_m)
    rows = max(1, AT_ONCE // z.numel())  # not all in an evaluation, which has large batches
    joint, marginals = [], []
    for some, their_weights in zip(torch.split(z, rows), torch.split(log_weights, rows), strict=True):
        squares = ((some[:, None] - posterior.mean) / posterior.std).square()
        log_prob = -0.5 * (squares + posterior.log_var + math.log(2 * math.pi))  # [rows, B, latent_dim]
        joint.append(torch.logsumexp(log_prob.sum(2) + their_weights, 1))
        marginals.append(torch.logsumexp(log_prob + their_weights[..., None], 1))
    return torch.cat(joint), torch.cat(marginals)


class DIP(AggregateObjective):
    """distortion + beta · rate + off_diagonal · Σ_{i≠j} C_ij² + diagonal · Σ_i (C_ii - 1)². Kumar et al. 2018.

    C is the covariance matrix of the posterior means over the batch (DIP-VAE-I), or of z itself, which adds the mean of
    the posterior variances (DIP-VAE-II).

    Args:
        beta: weight of the rate; 1 in the paper.
        off_diagonal: nats for each squared covariance of two latents.
        diagonal: nats for each squared distance of a variance from 1.
        of: `means` or `samples`: what C is the covariance of.

    Raises:
        ValueError: if a value is out of range.
    """

    off_diagonal: Tensor
    diagonal: Tensor

    def __init__(self, *, beta: float, off_diagonal: float, diagonal: float, of: Literal["means", "samples"]) -> None:
        super().__init__(beta=beta)
        if of not in ("means", "samples"):
            raise ValueError(f"objective.of={of}: must be means or samples")
        self.hold(off_diagonal=not_negative("off_diagonal", off_diagonal), diagonal=not_negative("diagonal", diagonal))
        self.of = of
        terms = f"{off_diagonal:g} · Σ C_ij² + {diagonal:g} · Σ (C_ii − 1)², C the covariance of {of}"
        self.formula = f"distortion + {beta:g} · KL(q(z|x) ‖ p(z)) + {terms}"

    def penalty(self, posterior: DiagonalGaussian, z: Tensor, batch: Batch) -> Tensor:
        centered = posterior.mean - posterior.mean.mean(0)
        covariance = centered.T @ centered / len(centered)
        if self.of == "samples":
            covariance = covariance + torch.diag_embed(posterior.log_var.exp().mean(0))
        variances = covariance.diagonal()
        off_diagonal = covariance.square().sum() - variances.square().sum()
        return self.off_diagonal * off_diagonal + self.diagonal * (variances - 1).square().sum()


class MMD(AggregateObjective):
    """distortion + beta · rate + mmd · MMD²(q(z), p(z)).

    Zhao et al. 2019 (InfoVAE), with beta = 1 - alpha and mmd = alpha + lambda - 1; with beta = 0 the objective of
    Tolstikhin et al. 2018 (WAE-MMD), whose kernel is `imq`.

    MMD² is estimated from the batch and as many samples of p(z), without bias for independent samples (Gretton et al.
    2012, lemma 6).

    Args:
        beta: weight of the rate.
        mmd: weight of MMD², in nats.
        kernel: `imq`, the sum of 2ds / (2ds + |z - z'|²) over s = 0.1, 0.2, 0.5, 1, 2, 5 and 10; or `rbf`,
            exp(-|z - z'|² / (2d)); d is the number of latents.

    Raises:
        ValueError: if a value is out of range.
    """

    mmd: Tensor

    def __init__(self, *, beta: float, mmd: float, kernel: Literal["imq", "rbf"]) -> None:
        super().__init__(beta=beta)
        if kernel not in ("imq", "rbf"):
            raise ValueError(f"objective.kernel={kernel}: must be imq or rbf")
        self.hold(mmd=not_negative("mmd", mmd))
        self.kernel = kernel
        self.formula = f"distortion + {beta:g} · KL(q(z|x) ‖ p(z)) + {mmd:g} · MMD²(q(z), p(z))"

    def penalty(self, posterior: DiagonalGaussian, z: Tensor, batch: Batch) -> Tensor:
        prior = batch.noise(1, z.shape[1])[0]
        return self.mmd * squared_mmd(z, prior, self.kernel)


def squared_mmd(a: Tensor, b: Tensor, kernel: str) -> Tensor:
    """An unbiased estimate of MMD² from samples [N, d] of two distributions, []; 0 for a single sample."""
    count, dimensions = a.shape
    if count == 1:
        return a.new_zeros(())

    def mean_kernel(a: Tensor, b: Tensor, *, same: bool) -> Tensor:
        squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        if kernel == "rbf":
            values = torch.exp(-squares / (2 * dimensions))
        else:
            scales = [2 * dimensions * scale for scale in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
            values = torch.stack([scale / (scale + squares) for scale in scales]).sum(0)
        if same:  # without the pairs of a sample with itself
            return (values.sum() - values.diagonal().sum()) / (count * (count - 1))
        return values.mean()

    return mean_kernel(a, a, same=True) + mean_kernel(b, b, same=True) - 2 * mean_kernel(a, b, same=False)
