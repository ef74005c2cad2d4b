"""Priors p(z). Nats for each z."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vaex.latents.posterior import LOG_TWO_PI, DiagonalGaussian, FullGaussian, Posterior

Encode = Callable[[Tensor], Posterior]  # x [B, C, H, W] in [0, 1] -> q(z|x)


class LatentDistribution:
    """A distribution of z."""

    def log_prob(self, z: Tensor) -> Tensor:
        """z [..., latent_dim] -> [...] nats."""
        raise NotImplementedError

    def sample(self, count: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Samples [count, latent_dim], on the device of the distribution.

        Args:
            temperature: factor on the standard deviations; of a flow on those of the noise that it transforms.
            generator: on any device; None for the default one.
        """
        raise NotImplementedError

    def rate(self, posterior: Posterior) -> Tensor | None:
        """KL(q(z|x) || p(z)) in closed form: [B, latent_dim] if the latents are independent in both, else [B, 1].

        None if there is no closed form.
        """
        return None

    def log_ratio(self, posterior: Posterior, z: Tensor, noise: Tensor) -> Tensor:
        """log p(z) - log q(z|x), [K, B] nats, for z = posterior.at(noise), [K, B, latent_dim]."""
        return self.log_prob(z) - posterior.log_prob(noise)


class StandardNormal(LatentDistribution):
    """N(0, I)."""

    def __init__(self, latent_dim: int, device: torch.device) -> None:
        self.latent_dim, self.device = latent_dim, device

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_TWO_PI).sum(-1)

    def sample(self, count: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        return temperature * normal_noise(count, self.latent_dim, self.device, generator)

    def rate(self, posterior: Posterior) -> Tensor | None:
        """Kingma & Welling 2014, appendix B."""
        if isinstance(posterior, DiagonalGaussian):
            return 0.5 * (posterior.mean.square() + torch.expm1(posterior.log_var) - posterior.log_var)
        if isinstance(posterior, FullGaussian):
            squares = posterior.mean.square().sum(1) + posterior.factor.square().sum((1, 2))
            return (0.5 * (squares - self.latent_dim) - posterior.log_scales(posterior.mean).sum(1))[:, None]
        return None

    def log_ratio(self, posterior: Posterior, z: Tensor, noise: Tensor) -> Tensor:
        # The terms in log 2π cancel.
        return 0.5 * (noise.square() + 2 * posterior.log_scales(noise) - z.square()).sum(-1)


class MixtureOfGaussians(LatentDistribution):
    """Σ_k weights_k N(means_k, diag exp(log_vars_k)).

    Args:
        log_weights: [K], up to a constant.
        means, log_vars: [K, latent_dim].
    """

    def __init__(self, log_weights: Tensor, means: Tensor, log_vars: Tensor) -> None:
        self.log_weights, self.means, self.log_vars = log_weights.log_softmax(0), means, log_vars

    def log_prob(self, z: Tensor) -> Tensor:
        squares = (z[..., None, :] - self.means).square() * torch.exp(-self.log_vars)  # [..., K, latent_dim]
        log_normalizers = 0.5 * (self.log_vars + LOG_TWO_PI).sum(1)
        return torch.logsumexp(self.log_weights - log_normalizers - 0.5 * squares.sum(-1), dim=-1)

    def sample(self, count: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        device = generator.device if generator else self.means.device
        chosen = torch.multinomial(self.log_weights.exp().to(device), count, replacement=True, generator=generator)
        chosen = chosen.to(self.means.device)
        noise = normal_noise(count, self.means.shape[1], self.means.device, generator)
        return self.means[chosen] + temperature * torch.exp(0.5 * self.log_vars[chosen]) * noise


def normal_noise(count: int, size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Samples from N(0, 1), [count, size]."""
    source = generator.device if generator else device
    return torch.randn(count, size, generator=generator, device=source).to(device)


class Prior(nn.Module):
    """Base class of priors.

    Args:
        latent_dim: number of latents.

    Attributes:
        images: number of training images that `start` needs.
        needs_diagonal: whether the posterior must be a Gaussian with independent latents.
        is_standard: whether p(z) is N(0, I).
        conditional: whether a conditional model may have this prior.
    """

    images: int = 0
    is_standard: bool = False
    conditional: bool = True
    needs_diagonal: bool = False

    def __init__(self, *, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self, encode: Encode) -> LatentDistribution:
        """p(z).

        Args:
            encode: the model's encoder, on which a prior may depend.
        """
        raise NotImplementedError

    def start(self, x: Tensor) -> None:
        """Initialize parameters from training images x [`images`, C, H, W]."""

    def pseudo_images(self) -> Tensor | None:
        """Images [K, C, H, W] in [0, 1] that the prior has learned; None if it has none."""
        return None


class Standard(Prior):
    """N(0, I)."""

    is_standard = True

    def __init__(self, *, latent_dim: int) -> None:
        super().__init__(latent_dim=latent_dim)
        self.register_buffer("origin", torch.zeros(()), persistent=False)  # knows the device

    origin: Tensor

    def forward(self, encode: Encode) -> StandardNormal:
        return StandardNormal(self.latent_dim, self.origin.device)


class Mixture(Prior):
    """A mixture of Gaussians with independent latents, whose weights, means and variances are learned.

    Args:
        latent_dim: number of latents.
        components: number of Gaussians.

    Raises:
        ValueError: if there are no components.
    """

    def __init__(self, *, latent_dim: int, components: int) -> None:
        super().__init__(latent_dim=latent_dim)
        _at_least_one("components", components)
        self.log_weights = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, latent_dim))
        self.log_vars = nn.Parameter(torch.zeros(components, latent_dim))

    def forward(self, encode: Encode) -> MixtureOfGaussians:
        return MixtureOfGaussians(self.log_weights, self.means, self.log_vars)


class Vamp(Prior):
    """The mean of the posteriors of learned pseudo-inputs: (1/K) Σ_k q(z|u_k). Tomczak & Welling 2018, eq. 9.

    Args:
        latent_dim: number of latents.
        image_shape: (channels, height, width) of the images.
        components: K, the number of pseudo-inputs, which start as training images.

    Raises:
        ValueError: if there are no pseudo-inputs.
    """

    needs_diagonal = True
    conditional = False  # its pseudo-inputs have no labels

    def __init__(self, *, latent_dim: int, image_shape: tuple[int, int, int], components: int) -> None:
        super().__init__(latent_dim=latent_dim)
        self.images = _at_least_one("components", components)
        self.pseudo_inputs = nn.Parameter(torch.zeros(components, *image_shape))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.pseudo_inputs.copy_(x)

    def pseudo_images(self) -> Tensor:
        # The gradient of clamp() is 0 at 0 and 1, where most pixels start.
        return self.pseudo_inputs + (self.pseudo_inputs.clamp(0, 1) - self.pseudo_inputs).detach()

    def forward(self, encode: Encode) -> MixtureOfGaussians:
        posterior = encode(self.pseudo_images())
        assert isinstance(posterior, DiagonalGaussian)
        return MixtureOfGaussians(torch.zeros_like(posterior.mean[:, 0]), posterior.mean, posterior.log_var)


class Coupling(nn.Module):
    """An affine coupling layer: half of the latents scale and shift the other half. Dinh et al. 2017, eq. 7.

    Args:
        latent_dim: number of latents.
        hidden: hidden units of its network.
        parity: which half is kept, 0 for the even latents or 1 for the odd ones.
    """

    kept: Tensor

    def __init__(self, *, latent_dim: int, hidden: int, parity: int) -> None:
        super().__init__()
        self.register_buffer("kept", (torch.arange(latent_dim) % 2 == parity).float(), persistent=False)
        output = nn.Linear(hidden, 2 * latent_dim)
        nn.init.zeros_(output.weight)  # the identity at first
        nn.init.zeros_(output.bias)
        self.network = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), output
        )

    def parameters_for(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log scale and shift of each latent, 0 for the half that is kept; both of the shape of z."""
        log_scale, shift = self.network(z * self.kept).chunk(2, dim=-1)
        return torch.tanh(log_scale) * (1 - self.kept), shift * (1 - self.kept)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Towards N(0, I): the transformed z [..., latent_dim], and the log determinant [...]."""
        log_scale, shift = self.parameters_for(z)
        return z * torch.exp(log_scale) + shift, log_scale.sum(-1)

    def inverse(self, u: Tensor) -> Tensor:
        """From N(0, I): the z [..., latent_dim] whose transform is u."""
        log_scale, shift = self.parameters_for(u)
        return (u - shift) * torch.exp(-log_scale)


class FlowDistribution(LatentDistribution):
    """z whose transform by coupling layers is distributed as N(0, I)."""

    def __init__(self, layers: nn.ModuleList, base: StandardNormal) -> None:
        self.layers, self.base = layers, base

    def log_prob(self, z: Tensor) -> Tensor:
        total = torch.zeros_like(z[..., 0])
        for layer in self.layers:
            z, log_det = layer(z)
            total = total + log_det
        return self.base.log_prob(z) + total

    def sample(self, count: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        z = self.base.sample(count, temperature=temperature, generator=generator)
        for layer in reversed(self.layers):
            assert isinstance(layer, Coupling)
            z = layer.inverse(z)
        return z


class Flow(Prior):
    """RealNVP. Dinh et al. 2017.

    Args:
        latent_dim: number of latents, at least 2.
        layers: number of affine coupling layers, which transform the two halves of the latents in turn.
        hidden: hidden units of the network of each.

    Raises:
        ValueError: if a number is too low.
    """

    def __init__(self, *, latent_dim: int, layers: int, hidden: int) -> None:
        super().__init__(latent_dim=latent_dim)
        if latent_dim < 2:
            raise ValueError(f"latent_dim={latent_dim}: prior=flow has two halves of z, so it needs at least 2 latents")
        _at_least_one("layers", layers)
        _at_least_one("hidden", hidden)
        self.layers = nn.ModuleList(Coupling(latent_dim=latent_dim, hidden=hidden, parity=n % 2) for n in range(layers))
        self.register_buffer("origin", torch.zeros(()), persistent=False)  # knows the device

    origin: Tensor

    def forward(self, encode: Encode) -> FlowDistribution:
        return FlowDistribution(self.layers, StandardNormal(self.latent_dim, self.origin.device))


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"prior.{name}={value}: must be >= 1")
    return value
