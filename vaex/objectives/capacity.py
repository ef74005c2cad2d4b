"""An objective that holds the rate at a capacity."""

from torch import Tensor

from vaex.model import Autoencoder
from vaex.objectives.base import Batch, Objective, Terms, infer_and_decode, not_negative


class Capacity(Objective):
    """distortion + weight · |rate - capacity|. Burgess et al. 2018, eq. 8.

    Args:
        capacity: the rate to reach, in nats, a mean over the batch.
        weight: of the distance, gamma in the paper.
        warmup: number of steps over which the capacity grows linearly from 0; 0 for the whole capacity at once.

    Raises:
        ValueError: if a value is negative.
    """

    stochastic = True
    linear_in_batch = False  # |mean rate - capacity| is no mean over images
    capacity: Tensor
    weight: Tensor
    warmup: Tensor

    def __init__(self, *, capacity: float, weight: float, warmup: int) -> None:
        super().__init__()
        not_negative("warmup", warmup)
        self.hold(capacity=not_negative("capacity", capacity), weight=not_negative("weight", weight), warmup=warmup)
        self.warms_up = warmup > 0
        self.formula = f"distortion + {weight:g} · |KL(q(z|x) ‖ p(z)) − {capacity:g}|"
        self.formula += f", the capacity growing over {warmup:,} steps" if warmup else ""

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor | None) -> Terms:
        latents, distribution, distortion = infer_and_decode(model, batch, samples=1)
        rate = latents.rate
        capacity = self.capacity
        if self.warms_up and step is not None:
            capacity = capacity * (step / self.warmup).clamp(max=1)
        loss = distortion.mean() + self.weight * (rate.sum(1).mean() - capacity).abs()
        return Terms(loss, distortion, rate, latents.posterior, distribution)
