"""The posterior of a hierarchical model, whose groups of latents are inferred by its decoder. Nats."""

from functools import cached_property

import torch
from torch import Tensor

from vaex.architectures.ladder import Decoder, Pass
from vaex.data.noise import normal
from vaex.latents.posterior import Posterior, PosteriorFamily


class LadderPosterior(Posterior):
    """q(z|x) = Π_l q(z_l|x, z_<), each a Gaussian with independent latents.

    Args:
        decoder: which infers the groups.
        features: what the encoder returns for B images.
    """

    def __init__(self, decoder: Decoder, features: Tensor) -> None:
        self.decoder, self.features = decoder, features
        self._latest: Pass | None = None

    @cached_property
    def mean(self) -> Tensor:  # type: ignore[override]  # computed only where it is used
        """The latents if each is the mean of its q given those before it, [B, latent_dim]."""
        return self.decoder.infer(self.features, self.features.new_zeros(1, *self._shape)).z[0]

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.features), self.decoder.latent_dim

    def rsample(self, samples: int) -> Tensor:
        return self.at(normal(samples, *self._shape, device=self.features.device))

    def at(self, noise: Tensor) -> Tensor:
        return self._pass(noise).z

    def log_scales(self, noise: Tensor) -> Tensor:
        return self._pass(noise).log_std

    def standard_rate(self, noise: Tensor) -> Tensor:
        return self._pass(noise).rates.mean(0)

    def output(self, noise: Tensor) -> Tensor:
        return self._pass(noise).output

    def _pass(self, noise: Tensor) -> Pass:
        # z, its density, its rate and its image come from one pass through the decoder.
        if self._latest is None or self._latest.noise is not noise:
            self._latest = self.decoder.infer(self.features, noise)
        return self._latest


class Ladder(PosteriorFamily):
    """The posteriors that a decoder infers.

    Args:
        decoder: part of the model, which registers it.
    """

    runs_decoder = True
    sizes: Tensor

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(latent_dim=decoder.latent_dim)
        self.features = decoder.features
        self._decoder = (decoder,)  # in a tuple, so that this module does not register it a second time
        self.groups = [group.latents for group in decoder.groups]
        self.register_buffer("sizes", torch.tensor(self.groups, dtype=torch.float32), persistent=False)

    def forward(self, features: Tensor) -> LadderPosterior:
        return LadderPosterior(self._decoder[0], features)

    def group_sizes(self, groups: int) -> Tensor | int:
        return self.sizes if groups == len(self.sizes) else super().group_sizes(groups)
