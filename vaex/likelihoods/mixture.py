"""Mixture of discretized logistics on the levels k/255. Salimans et al. 2017 (PixelCNN++), section 2.1. Nats per image.

All channels of a pixel share the component. With `conditional_channels` the location of a channel also depends linearly
on the preceding channels, as in eq. 3 of the paper.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vaex.likelihoods.base import MAX_LEVEL, Likelihood, PixelDistribution
from vaex.likelihoods.location_scale import DiscretizedDistribution, log_bin_mass
from vaex.likelihoods.logistic import StandardLogistic
from vaex.likelihoods.scale import SoftFloor

LOGISTIC = StandardLogistic()


class LogisticMixtureDistribution(PixelDistribution):
    """K components for each pixel.

    Args:
        log_weights: [..., K, 1, H, W], normalized over K.
        loc, log_scale: [..., K, C, H, W].
        coefficients: [..., K, C, C, H, W]. coefficients[i, j] · x_j is added to loc of channel i for each j < i. None
            for independent channels.
    """

    def __init__(self, log_weights: Tensor, loc: Tensor, log_scale: Tensor, coefficients: Tensor | None = None) -> None:
        super().__init__(loc.shape[:-4] + loc.shape[-3:])
        self.log_weights, self.loc, self.log_scale, self.coefficients = log_weights, loc, log_scale, coefficients

    def _conditional_loc(self, x: Tensor) -> Tensor:
        """Locations [..., K, C, H, W], each given the preceding channels in x [..., K or 1, C, H, W]."""
        if self.coefficients is None:
            return self.loc
        return self.loc + (self.coefficients * x.unsqueeze(-4)).sum(-3)

    def log_prob(self, value: Tensor) -> Tensor:
        x = value.unsqueeze(-4)
        channels = log_bin_mass(x, self._conditional_loc(x), self.log_scale, LOGISTIC)
        components = channels.sum(-3, keepdim=True) + self.log_weights
        return torch.logsumexp(components, dim=-4).flatten(-3).sum(-1)

    @property
    def mean(self) -> Tensor:
        """Exact for independent channels. Otherwise preceding channels are replaced by their mean, which makes a
        difference only where a component extends beyond [0, 1]."""
        weights, channels = self.log_weights.exp(), []
        means = torch.zeros_like(self.loc)
        for channel in range(self.loc.shape[-3]):
            loc = self._conditional_loc(means)
            part = DiscretizedDistribution(loc[..., channel, :, :], self.log_scale[..., channel, :, :], LOGISTIC).mean
            channels.append(part)
            means = torch.stack([*channels, *[torch.zeros_like(part)] * (means.shape[-3] - len(channels))], dim=-3)
        return (weights * means).sum(-4)

    @property
    def has_cdf(self) -> bool:
        return self.coefficients is None

    @property
    def _components(self) -> DiscretizedDistribution:
        if self.coefficients is not None:
            raise NotImplementedError("with conditional channels a channel's own distribution has no closed form")
        return DiscretizedDistribution(self.loc, self.log_scale, LOGISTIC)

    def cdf(self, value: Tensor) -> Tensor:
        return self._mixed(self._components.cdf(value.unsqueeze(-4)))

    def cdf_below(self, value: Tensor) -> Tensor:
        return self._mixed(self._components.cdf_below(value.unsqueeze(-4)))

    def _mixed(self, components: Tensor) -> Tensor:
        return (self.log_weights.exp() * components).sum(-4)

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        with torch.no_grad():
            shape = (*sample_shape, *self.loc.shape)
            log_weights = self.log_weights.expand(*sample_shape, *self.log_weights.shape)
            gumbel = -torch.empty_like(log_weights).exponential_().log()
            component = F.one_hot((log_weights + gumbel).argmax(-4), log_weights.shape[-4]).movedim(-1, -4)
            noise = self.log_scale.exp() * LOGISTIC.sample(self.loc.expand(shape))
            x = torch.zeros(shape, device=self.loc.device)
            for channel in range(shape[-3]):  # in order, because the next channel may depend on this one
                level = ((self._conditional_loc(x) + noise) * MAX_LEVEL).round().clamp(0, MAX_LEVEL) / MAX_LEVEL
                x[..., channel, :, :] = level[..., channel, :, :]
            return (component * x).sum(-4)


class DiscretizedLogisticMixture(Likelihood):
    """Mixture of discretized logistics with predicted weights, locations and scales.

    Args:
        image_shape: (channels, height, width).
        components: number K of components.
        conditional_channels: whether a channel depends on the preceding channels of the same pixel.
        floor: soft lower bound of the scales.
        init: scale at the start of training.
    """

    formula = "−log Σ π (F(x + 1/510) − F(x − 1/510))"
    support = "uint8"
    kind = "mass"
    start: Tensor

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        components: int,
        conditional_channels: bool,
        floor: float,
        init: float,
    ) -> None:
        super().__init__(image_shape=image_shape)
        if components < 1:
            raise ValueError(f"likelihood.components={components}: must be >= 1")
        if conditional_channels and image_shape[0] == 1:
            raise ValueError("likelihood.conditional_channels=true: grey images have one channel; set it to false")
        self.components, self.conditional_channels = components, conditional_channels
        self.soft_floor = SoftFloor(floor=floor, init=init)
        levels = (torch.arange(components) + 0.5) / components
        # Initial locations are spread over [0, 1], so that components differ from the start. Later they may leave it:
        # only a location beyond 0 or 1 gives an end bin all the mass.
        self.register_buffer("start", levels.view(components, 1, 1, 1), persistent=False)

    def _channels(self, image_channels: int) -> tuple[int, int, int]:
        """Number of decoder channels for log weights, for locations (and as many for scales), and for coefficients."""
        k, pairs = self.components, image_channels * (image_channels - 1) // 2
        return k, k * image_channels, k * pairs if self.conditional_channels else 0

    def _by_component(self, h: Tensor) -> Tensor:
        """[..., K · n, H, W] -> [..., K, n, H, W]."""
        return h.reshape(*h.shape[:-3], self.components, -1, *h.shape[-2:])

    def out_channels(self, image_channels: int) -> int:
        weights, each, coefficients = self._channels(image_channels)
        return weights + 2 * each + coefficients

    def forward(self, h: Tensor, x: Tensor | None = None) -> LogisticMixtureDistribution:
        channels = self.image_shape[0]
        weights, each, pairs = self._channels(channels)
        h_weights, h_loc, h_scale, h_pairs = torch.split(h, [weights, each, each, pairs], dim=-3)
        log_weights = torch.log_softmax(self._by_component(h_weights), dim=-4)
        loc = self._by_component(h_loc) + self.start
        log_scale = self.soft_floor(self._by_component(h_scale))
        if not self.conditional_channels:
            return LogisticMixtureDistribution(log_weights, loc, log_scale)
        flat = torch.tanh(self._by_component(h_pairs))  # as in the paper's code
        coefficients = flat.new_zeros(*loc.shape[:-3], channels, channels, *loc.shape[-2:])
        rows, columns = torch.tril_indices(channels, channels, offset=-1)
        coefficients[..., rows, columns, :, :] = flat
        return LogisticMixtureDistribution(log_weights, loc, log_scale, coefficients)
