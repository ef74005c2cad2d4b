"""The regularized autoencoder: a deterministic code whose size and decoder are penalized instead of a rate."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vaex.model import Autoencoder
from vaex.objectives.base import Batch, Objective, Terms, not_negative


class RAE(Objective):
    """distortion + code · ½|z|² + decoder · ½|θ|² + gradient · |∂x̂/∂z|². Ghosh et al. 2020.

    θ are the decoder's weights, and x̂ is the mean of p(x|z). The squared norm of its derivatives is estimated from one
    random direction for each image, without bias.

    Args:
        code: nats for each unit of ½|z|², which is -log p(z) of a standard normal prior up to a constant.
        decoder: nats for each unit of ½|θ|².
        gradient: nats for each unit of |∂x̂/∂z|²; 0 saves a second backward pass.

    Raises:
        ValueError: if a weight is negative.
    """

    stochastic = False

    def __init__(self, *, code: float, decoder: float, gradient: float) -> None:
        super().__init__()
        self.code, self.decoder = not_negative("code", code), not_negative("decoder", decoder)
        self.gradient = not_negative("gradient", gradient)
        terms = {"½|z|²": code, "½|θ|²": decoder, "|∂x̂/∂z|²": gradient}
        self.formula = "distortion" + "".join(f" + {weight:g} · {term}" for term, weight in terms.items() if weight)

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor | None) -> Terms:
        code = model.encode(batch.input, batch.labels)
        distribution = model.decode(code.mean, batch.labels, batch.x)
        distortion = -distribution.log_prob(batch.x)
        loss = distortion.mean() + self.code * 0.5 * code.mean.square().sum(1).mean()
        if self.decoder:
            norms = [parameter.square().sum() for parameter in model.decoder.parameters()]
            loss = loss + self.decoder * 0.5 * torch.stack(norms).sum()
        if self.gradient:
            loss = loss + self.gradient * self._squared_derivatives(model, code.mean, batch)
        return Terms(loss, distortion, None, code, distribution)

    def _squared_derivatives(self, model: Autoencoder, z: Tensor, batch: Batch) -> Tensor:
        """|∂x̂/∂z|², mean over the batch, []: E |vᵀ ∂x̂/∂z|² for v from N(0, I)."""
        training = torch.is_grad_enabled()
        z = z if training else z.detach().requires_grad_()
        # The fused kernels of attention have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            mean = model.decode(z, batch.labels, batch.x).mean
            direction = batch.noise(1, mean[0].numel())[0].view_as(mean)
            (product,) = torch.autograd.grad((mean * direction).sum(), z, create_graph=training)
        return product.square().sum(1).mean()
