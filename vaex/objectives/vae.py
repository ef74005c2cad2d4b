"""The autoencoder, and the variational autoencoder with beta, warm-up and free bits."""

import math

import torch
from torch import Tensor

from vaex.model import Autoencoder
from vaex.objectives.base import Batch, Objective, Terms, at_least_one, infer_and_decode


class AE(Objective):
    """Deterministic autoencoder: the loss is the distortion of the code, under any likelihood."""

    stochastic = False

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor | None) -> Terms:
        code = model.encode(batch.input, batch.labels)
        distribution = model.decode(code.mean, batch.labels, batch.x)
        distortion = -distribution.log_prob(batch.x)
        return Terms(distortion.mean(), distortion, None, code, distribution)


class VAE(Objective):
    """distortion + beta · rate. Kingma & Welling 2014, eq. 7 (beta = 1); Higgins et al. 2017, eq. 4.

    Args:
        beta: weight of the rate.
        samples: number of Monte Carlo samples of z for each image.
        warmup: number of steps over which beta grows linearly from 0; 0 for no warm-up.
        delay: number of steps before that, in which beta is 0.
        cycle: number of steps after which beta starts from 0 again, with its delay and its warm-up; None for never. Fu
            et al. 2019.
        free_bits: rate of each latent in nats, averaged over the batch, up to which it is not penalized. Kingma et al.
            2016, eq. 15. If latents have no rates of their own, as many times this value for a group of them together.
        coarse_first: whether a hierarchical model learns to use its coarse groups first. The warm-up then has as many
            equal parts as there are groups, and beta grows from 0 in one part for each group, that of the finest group
            in the first part. Otherwise the finest groups, which learn fastest, may leave the others unused.

    Raises:
        ValueError: if a value is out of range.
    """

    stochastic = True
    beta: Tensor
    free_bits: Tensor
    warmup: Tensor
    delay: Tensor

    def __init__(
        self,
        *,
        beta: float,
        samples: int,
        warmup: int,
        free_bits: float,
        delay: int = 0,  # older runs have no value for this and the next two
        cycle: int | None = None,
        coarse_first: bool = False,
    ) -> None:
        super().__init__()
        self.samples = at_least_one(samples)
        for name, steps in (("warmup", warmup), ("delay", delay)):
            if steps < 0:
                raise ValueError(f"objective.{name}={steps}: must be >= 0 optimizer steps")
        if cycle is not None and (cycle < delay + warmup or not delay + warmup):
            raise ValueError(
                f"objective.cycle={cycle}: must be at least objective.delay + objective.warmup, {delay + warmup} "
                "optimizer steps, which must not be 0; or null"
            )
        if not (math.isfinite(free_bits) and free_bits >= 0):
            raise ValueError(f"objective.free_bits={free_bits}: must be a finite number >= 0, in nats for each latent")
        if coarse_first and not warmup:
            raise ValueError("objective.coarse_first=true: orders the groups in the warm-up; set objective.warmup")
        self.hold(beta=beta, warmup=warmup, delay=delay, free_bits=free_bits)
        self.cycle, self.warms_up, self.delays = cycle, warmup > 0, delay > 0
        self.coarse_first = self.needs_groups = coarse_first
        self.linear_in_batch = free_bits == 0  # free bits clamp the mean rate of the whole batch

    def beta_at(self, step: Tensor | None, groups: int = 1) -> Tensor:
        """The weight of the rate after so many steps, [], or [groups] with `coarse_first`; the whole for step None."""
        if step is None or not (self.warms_up or self.delays):
            return self.beta
        step = step % self.cycle if self.cycle else step
        grown = (step - self.delay) / self.warmup if self.warms_up else (step >= self.delay).float()
        if self.coarse_first:  # the groups are in order, the coarsest first
            grown = groups * grown - torch.arange(groups - 1, -1, -1, device=grown.device)
        return self.beta * grown.clamp(0, 1)

    def loss(self, distortion: Tensor, rate: Tensor, beta: Tensor, *, group_sizes: Tensor | int = 1) -> Tensor:
        """The loss [] of a mean distortion [] and the mean rates [groups], each of so many latents.

        beta is [] or [groups].
        """
        if not self.linear_in_batch:
            rate = rate.clamp(min=self.free_bits * group_sizes)
        return distortion + ((beta * rate).sum() if beta.ndim else beta * rate.sum())

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor | None) -> Terms:
        latents, distribution, distortion = infer_and_decode(model, batch, self.samples)
        beta = self.beta_at(step, latents.rate.shape[1])
        loss = self.loss(distortion.mean(), latents.rate.mean(0), beta, group_sizes=latents.group_sizes)
        logged = None if beta is self.beta else beta.mean()
        return Terms(loss, distortion, latents.rate, latents.posterior, distribution, logged)
