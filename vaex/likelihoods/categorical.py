"""Categorical likelihood over the 256 levels k/255 of every channel of every pixel. Nats per image.

It assumes nothing about neighboring levels, so the other likelihoods, which do, can be compared with it.
"""

import torch
from torch import Tensor, nn

from vaex.likelihoods.base import LEVELS, MAX_LEVEL, Likelihood, PixelDistribution


class CategoricalDistribution(PixelDistribution):
    """logits: [..., C, H, W, 256]."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits.shape[:-1])
        self.logits = logits

    @property
    def _levels(self) -> Tensor:
        return torch.arange(LEVELS, device=self.logits.device) / MAX_LEVEL

    @property
    def _probabilities(self) -> Tensor:
        return torch.softmax(self.logits, dim=-1)

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        level = (value * MAX_LEVEL).round().long()
        shape = torch.broadcast_shapes(level.shape, self.logits.shape[:-1])  # type: ignore[no-untyped-call]
        logits, level = self.logits.expand(*shape, LEVELS), level.expand(shape).unsqueeze(-1)
        return logits.gather(-1, level).squeeze(-1) - torch.logsumexp(self.logits, dim=-1)

    @property
    def mean(self) -> Tensor:
        return self._probabilities @ self._levels

    @property
    def variance(self) -> Tensor:
        distance = self._levels - self.mean.unsqueeze(-1)
        return (self._probabilities * distance.square()).sum(-1)

    @property
    def mode(self) -> Tensor:
        return self.logits.argmax(-1) / MAX_LEVEL

    def cdf(self, value: Tensor) -> Tensor:
        return self._sum_where(self._levels < value.unsqueeze(-1) + 0.5 / MAX_LEVEL)

    def cdf_below(self, value: Tensor) -> Tensor:
        return self._sum_where(self._levels < value.unsqueeze(-1) - 0.5 / MAX_LEVEL)

    def _sum_where(self, mask: Tensor) -> Tensor:
        return (self._probabilities * mask).sum(-1)

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        with torch.no_grad():
            count = torch.Size(sample_shape).numel()
            levels = torch.multinomial(self._probabilities.flatten(0, -2), count, replacement=True)
            return levels.t().reshape(*sample_shape, *self.logits.shape[:-1]) / MAX_LEVEL


class Categorical(Likelihood):
    """The decoder returns `features` numbers for each channel of each pixel, which a learned map turns into 256 logits.

    This keeps the decoder's last layer small; with features=256 there is no restriction.
    """

    formula = "−log softmax(h)[255x]"
    support = "uint8"
    kind = "mass"

    def __init__(self, *, image_shape: tuple[int, int, int], features: int) -> None:
        super().__init__(image_shape=image_shape)
        if features < 1:
            raise ValueError(f"likelihood.features={features}: must be >= 1")
        self.features = features
        self.to_logits = nn.Linear(features, LEVELS)

    def out_channels(self, image_channels: int) -> int:
        return image_channels * self.features

    def forward(self, h: Tensor, x: Tensor | None = None) -> CategoricalDistribution:
        shape = (*h.shape[:-3], self.image_shape[0], self.features, *h.shape[-2:])
        features = h.reshape(shape).movedim(-3, -1)  # [..., C, H, W, features]
        return CategoricalDistribution(self.to_logits(features))
