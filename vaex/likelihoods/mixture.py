"""Mixture of discretized logistics on the levels k/255. Salimans et al. 2017 (PixelCNN++), section 2.1. Nats per image.

All channels of a pixel share the component. With `conditional_channels` the location of a channel also depends linearly
on the preceding channels, as in eq. 3 of the paper.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vaex.likelihoods.base import MAX_LEVEL, Likelihood, PixelDistribution
from vaex.likelihoods.floor import AT_FLOOR, cost_of_floor
from vaex.likelihoods.location_scale import DiscretizedDistribution, bits_of_known_level, log_bin_mass
from vaex.likelihoods.logistic import StandardLogistic
from vaex.likelihoods.scale import SoftFloor

LOGISTIC = StandardLogistic()
POINTS = 128  # of the quadrature over the preceding channels


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
        """Exact for independent channels and for the first of conditional ones. The error of the others is about 1e-4,
        and at most 1e-3.
        """
        if self.coefficients is None:
            return self._mixed(self._components.mean)
        first = DiscretizedDistribution(self.loc[..., :1, :, :], self.log_scale[..., :1, :, :], LOGISTIC).mean
        return self._mixed(torch.cat([first, self._means_of_later_channels()], dim=-3))

    def _means_of_later_channels(self) -> Tensor:
        """The mean of each channel given the preceding ones, averaged over quasi-random values of those."""
        scales = self.log_scale.exp().unbind(-3)
        engine = torch.quasirandom.SobolEngine(len(scales))  # type: ignore[no-untyped-call]
        points = engine.draw(POINTS) + 0.5 / POINTS  # in the middle of the cells, so never 0
        totals = [torch.zeros_like(scale) for scale in scales[1:]]
        for point in points.logit().tolist():
            channels = self._channels([scale * noise for scale, noise in zip(scales, point, strict=True)])
            for total, scale, (loc, _) in zip(totals, scales[1:], channels[1:], strict=True):
                total += clipped_mean(loc, scale)
        return torch.stack(totals, dim=-3) / POINTS

    def _channels(self, noise: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Location and value of each channel, both [..., K, H, W], for its noise, [..., K, H, W].

        The location depends on the values of the preceding channels, so the channels are computed in their order.
        """
        channels: list[tuple[Tensor, Tensor]] = []
        for channel, loc in enumerate(self.loc.unbind(-3)):
            if self.coefficients is not None:
                for preceding, (_, value) in enumerate(channels):
                    loc = loc + self.coefficients[..., channel, preceding, :, :] * value
            level = ((loc + noise[channel]) * MAX_LEVEL).round().clamp(0, MAX_LEVEL)
            channels.append((loc, level / MAX_LEVEL))
        return channels

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

    def weight_below(self, scale: float) -> Tensor:
        """Weight of the components whose scale is at most `scale`, [..., C, H, W]."""
        return self._mixed((self.log_scale <= math.log(scale)).float())

    def _mixed(self, components: Tensor) -> Tensor:
        return (self.log_weights.exp() * components).sum(-4)

    def sample(self, sample_shape: torch.types._size = ()) -> Tensor:
        with torch.no_grad():
            shape = (*sample_shape, *self.loc.shape)
            log_weights = self.log_weights.expand(*sample_shape, *self.log_weights.shape)
            gumbel = -torch.empty_like(log_weights).exponential_().log()
            component = F.one_hot((log_weights + gumbel).argmax(-4), log_weights.shape[-4]).movedim(-1, -4)
            noise = self.log_scale.exp() * LOGISTIC.sample(self.loc.expand(shape))
            x = torch.stack([value for _, value in self._channels(noise.unbind(-3))], dim=-3)
            return (component * x).sum(-4)


def clipped_mean(loc: Tensor, scale: Tensor) -> Tensor:
    """E[clamp(loc + scale · e, 0, 1)] = scale · (softplus(loc / scale) - softplus((loc - 1) / scale)), e logistic."""
    # exp(-80) is as good as 0 here. A smaller result is not a normal float32 number, which makes exp slow on a CPU.
    below, above = (torch.exp(-(distance.abs() / scale).clamp(max=80)) for distance in (loc, loc - 1))
    return loc.clamp(0, 1) + scale * torch.log((1 + below) / (1 + above))


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
            raise ValueError("likelihood.conditional_channels=true: gray images have one channel; set it to false")
        self.components, self.conditional_channels = components, conditional_channels
        self.floor = floor
        self.soft_floor = SoftFloor(floor=floor, init=init)
        levels = (torch.arange(components) + 0.5) / components
        # Initial locations are spread over [0, 1], so that components differ from the start. Later they may leave it:
        # only a location beyond 0 or 1 gives an end bin all the mass.
        self.register_buffer("start", levels.view(components, 1, 1, 1), persistent=False)

    def bounds(self) -> dict[str, float]:
        return {"scale_floor": self.floor}

    def at_floor(self, distribution: PixelDistribution) -> Tensor | None:
        """The weight of the components whose scale is at the floor."""
        if not isinstance(distribution, LogisticMixtureDistribution):
            return None
        return distribution.weight_below(AT_FLOOR * self.floor)

    def floor_bits(self) -> float | None:
        return cost_of_floor(lambda log_scale: bits_of_known_level(log_scale, LOGISTIC, discretize=True), self.floor)

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
        weights, each, count = self._channels(channels)
        h_weights, h_loc, h_scale, h_pairs = torch.split(h, [weights, each, each, count], dim=-3)
        log_weights = torch.log_softmax(self._by_component(h_weights), dim=-4)
        loc = self._by_component(h_loc) + self.start
        log_scale = self.soft_floor(self._by_component(h_scale))
        if not self.conditional_channels:
            return LogisticMixtureDistribution(log_weights, loc, log_scale)
        flat = torch.tanh(self._by_component(h_pairs))  # as in the paper's code
        coefficients = flat.new_zeros(*loc.shape[:-3], channels, channels, *loc.shape[-2:])
        # Without index tensors, which would have to be copied to the device: a CUDA graph can't capture such a copy.
        pairs = ((row, column) for row in range(channels) for column in range(row))
        for coefficient, (row, column) in zip(flat.unbind(-3), pairs, strict=True):
            coefficients[..., row, column, :, :] = coefficient
        return LogisticMixtureDistribution(log_weights, loc, log_scale, coefficients)
