"""Posteriors q(z|x), and the families of them that an encoder's output can describe. Nats.

Every posterior maps noise from N(0, I) to z, so that log q(z|x) = log N(noise; 0, I) - log |det ∂z/∂noise|.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaex.data.noise import normal

LOG_TWO_PI = math.log(2 * math.pi)


class Posterior:
    """q(z|x) of B images.

    Attributes:
        mean: the mean, or for a flow the z of its base's mean: the code of an image, [B, latent_dim].
    """

    mean: Tensor

    @property
    def std(self) -> Tensor | None:
        """The standard deviation of each latent, [B, latent_dim]; None if it is not known."""
        return None

    def at(self, noise: Tensor) -> Tensor:
        """Reparametrized samples [samples, B, latent_dim] from noise of the same shape, drawn from N(0, 1)."""
        raise NotImplementedError

    def log_scales(self, noise: Tensor) -> Tensor:
        """The terms of log |det ∂z/∂noise|, one for each latent, broadcastable to the noise's shape."""
        raise NotImplementedError

    def log_prob(self, noise: Tensor) -> Tensor:
        """log q(z|x) for z = at(noise), [samples, B]."""
        return -(0.5 * (noise.square() + LOG_TWO_PI) + self.log_scales(noise)).sum(-1)

    def path_log_prob(self, noise: Tensor) -> Tensor:
        """log q(z|x) for z = at(noise), [samples, B], with another gradient, which usually varies less.

        The gradient of log q(z|x) is that along the path of z plus the score, ∂ log q(z|x) / ∂φ at a fixed z, whose
        expectation is 0. Gaussians leave the score out, and flows that of their Gaussian. Roeder et al. 2017, eq. 8.
        Losses that are linear in it, such as a mean rate times beta, have the same expected gradient with both.
        """
        return self.log_prob(noise)

    def standard_rate(self, noise: Tensor) -> Tensor | None:
        """KL(q(z|x) || N(0, I)) of each group of latents, [B, groups]; None if there is only an estimate of it.

        It is in closed form for each group given the samples of the groups before it.

        Args:
            noise: of the samples, [samples, B, latent_dim].
        """
        return None

    def output(self, noise: Tensor) -> Tensor | None:
        """The decoder's output for z = at(noise), [samples, B, out_channels, H, W], if it comes with the samples."""
        return None

    def rsample(self, samples: int) -> Tensor:
        """Reparametrized samples, [samples, B, latent_dim]."""
        return self.at(normal(samples, *self.mean.shape, device=self.mean.device))


@dataclass(frozen=True)
class DiagonalGaussian(Posterior):
    """N(mean, diag exp(log_var)), both [B, latent_dim] float32. A log_var of -inf is a point mass."""

    mean: Tensor
    log_var: Tensor

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.log_var)

    def at(self, noise: Tensor) -> Tensor:
        return self.mean + self.std * noise

    def log_scales(self, noise: Tensor) -> Tensor:
        return 0.5 * self.log_var

    def path_log_prob(self, noise: Tensor) -> Tensor:
        z, log_var = self.at(noise), self.log_var.detach()
        # (z - mean) / std with fixed parameters; the known noise is more exact than this quotient.
        noise = noise + (z - z.detach()) * torch.exp(-0.5 * log_var)
        return -0.5 * (noise.square() + LOG_TWO_PI + log_var).sum(-1)


@dataclass(frozen=True)
class FullGaussian(Posterior):
    """N(mean, factor · factorᵀ), with `factor` lower triangular, [B, latent_dim, latent_dim]."""

    mean: Tensor
    factor: Tensor

    @property
    def std(self) -> Tensor:
        return self.factor.square().sum(-1).sqrt()

    def at(self, noise: Tensor) -> Tensor:
        return self.mean + torch.einsum("bij,kbj->kbi", self.factor, noise)

    def log_scales(self, noise: Tensor) -> Tensor:
        # With diagonal() or diag_embed(), TorchInductor calls a deprecated function.
        return (self.factor * torch.eye(self.mean.shape[1], device=self.factor.device)).sum(-1).log()

    def path_log_prob(self, noise: Tensor) -> Tensor:
        z = self.at(noise)
        path = (z - z.detach()).permute(1, 2, 0)  # [B, latent_dim, samples], 0 with the gradient of z
        path = torch.linalg.solve_triangular(self.factor.detach(), path, upper=False)
        noise = noise + path.permute(2, 0, 1)
        return -(0.5 * (noise.square() + LOG_TWO_PI) + self.log_scales(noise).detach()).sum(-1)


class PosteriorFamily(nn.Module):
    """Base class of the families of posteriors.

    Args:
        latent_dim: number of latents.

    Attributes:
        features: number of features that the encoder returns for an image.
        groups: number of latents in each group, in the order in which they are inferred; all are in one group unless
            the model is hierarchical.
        runs_decoder: whether the decoder infers the posteriors, which are then computed in its precision.
        is_gaussian: whether the posteriors are Gaussians.
        is_diagonal: whether they are Gaussians with independent latents.
    """

    features: int
    runs_decoder: bool = False
    is_gaussian: bool = False
    is_diagonal: bool = False

    def __init__(self, *, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim, self.groups = latent_dim, [latent_dim]

    def forward(self, features: Tensor) -> Posterior:
        """The posteriors of B images, from features [B, `features`] float32."""
        raise NotImplementedError

    def group_sizes(self, groups: int) -> Tensor | int:
        """Number of latents in each group whose rate is known: [groups], or a number for all."""
        return self.latent_dim // groups


class Diagonal(PosteriorFamily):
    """A Gaussian with independent latents: the features are its mean and its log variance."""

    is_gaussian = is_diagonal = True

    def __init__(self, *, latent_dim: int) -> None:
        super().__init__(latent_dim=latent_dim)
        self.features = 2 * latent_dim

    def forward(self, features: Tensor) -> DiagonalGaussian:
        mean, log_var = features.chunk(2, dim=1)
        return DiagonalGaussian(mean, log_var)


class Full(PosteriorFamily):
    """A Gaussian with any covariance Σ = L Lᵀ, with L = diag(std) (I + strictly lower triangular)."""

    is_gaussian = True

    def __init__(self, *, latent_dim: int) -> None:
        super().__init__(latent_dim=latent_dim)
        self.features = 2 * latent_dim + latent_dim * (latent_dim - 1) // 2
        rows, columns = torch.tril_indices(latent_dim, latent_dim, -1)
        self.register_buffer("below", rows * latent_dim + columns, persistent=False)  # positions in a flat matrix

    below: Tensor

    def forward(self, features: Tensor) -> FullGaussian:
        d = self.latent_dim
        mean, log_var, values = torch.split(features, [d, d, len(self.below)], dim=1)
        flat = torch.zeros_like(mean[:, :1]).expand(-1, d * d)
        strictly_lower = flat.index_copy(1, self.below, values).unflatten(1, (d, d))  # type: ignore[no-untyped-call]
        std = torch.exp(0.5 * log_var)
        return FullGaussian(mean, std[:, :, None] * (torch.eye(d, device=std.device) + strictly_lower))
