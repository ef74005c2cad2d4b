"""Inverse autoregressive flow: a diagonal Gaussian, transformed step by step. Kingma et al. 2016."""

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaex.latents.posterior import DiagonalGaussian, Posterior, PosteriorFamily


class MaskedNetwork(nn.Module):
    """Two numbers for each latent, from the latents before it and from a context. Germain et al. 2015 (MADE).

    Args:
        latent_dim: number of latents.
        hidden: number of hidden units.
        context: number of features of the context.
    """

    input_mask: Tensor
    output_mask: Tensor

    def __init__(self, *, latent_dim: int, hidden: int, context: int) -> None:
        super().__init__()
        self.input, self.context = nn.Linear(latent_dim, hidden), nn.Linear(context, hidden, bias=False)
        self.output = nn.Linear(hidden, 2 * latent_dim)
        latents = torch.arange(latent_dim)
        units = torch.linspace(0, max(0, latent_dim - 2), hidden).round()  # each sees the latents up to this one
        self.register_buffer("input_mask", (latents <= units[:, None]).float(), persistent=False)
        self.register_buffer("output_mask", (units < latents[:, None]).float().repeat(2, 1), persistent=False)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z [K, B, latent_dim] and context [B, context] -> twice [K, B, latent_dim]."""
        hidden = F.elu(F.linear(z, self.input.weight * self.input_mask, self.input.bias) + self.context(context))
        m, s = F.linear(hidden, self.output.weight * self.output_mask, self.output.bias).chunk(2, dim=-1)
        return m, s


class FlowPosterior(Posterior):
    """A Gaussian whose samples go through an inverse autoregressive flow."""

    def __init__(self, base: DiagonalGaussian, context: Tensor, steps: nn.ModuleList) -> None:
        self.base, self.context, self.steps = base, context, steps
        self._noise: Tensor | None = None

    @cached_property
    def mean(self) -> Tensor:  # type: ignore[override]
        return self._transform(torch.zeros_like(self.base.mean)[None])[0][0]

    def at(self, noise: Tensor) -> Tensor:
        return self._transformed(noise)[0]

    def log_scales(self, noise: Tensor) -> Tensor:
        return self._transformed(noise)[1]

    def path_log_prob(self, noise: Tensor) -> Tensor:
        of_steps = (self.log_scales(noise) - self.base.log_scales(noise)).sum(-1)
        return self.base.path_log_prob(noise) - of_steps

    def _transformed(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        if self._noise is not noise:
            self._noise, self._result = noise, self._transform(noise)
        return self._result

    def _transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Kingma et al. 2016, eq. 10 and 11, in the numerically stable form of their section 3."""
        z, log_scales = self.base.at(noise), self.base.log_scales(noise)
        for step in self.steps:
            m, s = step(z, self.context)
            gate = torch.sigmoid(s + 2)  # close to the identity at first
            z = gate * z + (1 - gate) * m
            log_scales = log_scales + F.logsigmoid(s + 2)
            # The next step has the latents in reverse, so that the first ones depend on the others, too.
            z, log_scales = z.flip(-1), log_scales.flip(-1)
        return z, log_scales


class InverseAutoregressive(PosteriorFamily):
    """Inverse autoregressive flow. Kingma et al. 2016, algorithm 1.

    Args:
        latent_dim: number of latents.
        steps: number of transformations.
        hidden: hidden units of the network of each.
        context: features of an image that the encoder gives to these networks.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(self, *, latent_dim: int, steps: int, hidden: int, context: int) -> None:
        super().__init__(latent_dim=latent_dim)
        for name, value in (("steps", steps), ("hidden", hidden), ("context", context)):
            if value < 1:
                raise ValueError(f"posterior.{name}={value}: must be >= 1")
        self.features = 2 * latent_dim + context
        self.steps = nn.ModuleList(
            MaskedNetwork(latent_dim=latent_dim, hidden=hidden, context=context) for _ in range(steps)
        )

    def forward(self, features: Tensor) -> FlowPosterior:
        d = self.latent_dim
        mean, log_var, context = torch.split(features, [d, d, self.features - 2 * d], dim=1)
        return FlowPosterior(DiagonalGaussian(mean, log_var), context, self.steps)
