"""An objective whose beta is controlled during training so that the rate reaches a target."""

import math

import torch
from torch import Tensor

from vaex.model import Autoencoder
from vaex.objectives.base import Batch, Objective, Terms, infer_and_decode, not_negative

LARGEST_LOG_BETA = math.log(1e6)


class TargetRate(Objective):
    """distortion + beta · rate, with a beta that a controller sets in each step so that the rate reaches a target.

    The controller is proportional-integral, as in ControlVAE (Shao et al. 2020). ControlVAE sets beta from the error
    in nats. Here log beta is set from the relative error, so that the same gains work for every likelihood:

        error = rate / target - 1, from -1 to 1
        log beta = proportional · error + integral · Σ error, with the sum over all steps so far

    In evaluation the loss is the negative ELBO, so that losses of different steps can be compared.

    Args:
        rate: the target in nats, of the mean over a batch.
        proportional: gain of the error.
        integral: gain of the sum of errors.

    Raises:
        ValueError: if the target is not positive, or a gain is negative.
    """

    stochastic = True
    loss_changes = True  # with beta, and the rate must be the target before a loss means anything
    linear_in_batch = False  # beta depends on the mean rate of the whole batch
    target: Tensor
    proportional: Tensor
    integral: Tensor
    log_beta: Tensor  # its integral term
    reached_beta: Tensor

    def __init__(self, *, rate: float, proportional: float, integral: float) -> None:
        super().__init__()
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"objective.rate={rate}: must be a finite number > 0, in nats")
        not_negative("proportional", proportional)
        not_negative("integral", integral)
        self.hold(target=rate, proportional=proportional, integral=integral)
        self.register_buffer("log_beta", torch.zeros(()))
        self.register_buffer("reached_beta", torch.ones(()))
        self.formula = f"distortion + beta · KL(q(z|x) ‖ p(z)), with beta controlled for a rate of {rate:g} nats"

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor | None) -> Terms:
        latents, distribution, distortion = infer_and_decode(model, batch, samples=1)
        rate = latents.rate.sum(1).mean()
        beta = torch.ones_like(rate) if step is None else self._next_beta(rate.detach())
        loss = distortion.mean() + beta * rate
        logged = None if step is None else beta
        return Terms(loss, distortion, latents.rate, latents.posterior, distribution, logged)

    @torch.no_grad()
    def _next_beta(self, rate: Tensor) -> Tensor:
        """Beta for a batch of this mean rate [], []."""
        error = (rate / self.target - 1).clamp(-1, 1)
        error = torch.where(error.isfinite(), error, 0)  # such a step is skipped
        log_beta = (self.log_beta + self.integral * error).clamp(-LARGEST_LOG_BETA, LARGEST_LOG_BETA)
        self.log_beta.copy_(log_beta)
        self.reached_beta.copy_(torch.exp(log_beta + self.proportional * error))
        return self.reached_beta.clone()

    def results(self) -> dict[str, float]:
        return {"beta": self.reached_beta.item()}
