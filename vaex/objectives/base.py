"""What an objective is: a function of a model and a batch that returns the loss and its terms. Nats per image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaex.data.noise import normal
from vaex.latents.posterior import Posterior
from vaex.likelihoods.base import PixelDistribution
from vaex.model import Autoencoder, Latents


@dataclass(frozen=True)
class Batch:
    """Images on the device, or one process's part of them.

    Attributes:
        x: the images that are scored, [B, C, H, W] float32 in [0, 1].
        input: the encoder's input, [B, C, H, W]; x itself unless it is corrupted.
        labels: [B] int64.
        start: index of the first image within the whole batch.
        whole_size: number of images in the whole batch; None if this is the whole batch.
        population: number of images from which the batch is drawn; None for those of the batch alone.
    """

    x: Tensor
    input: Tensor
    labels: Tensor
    start: int = 0
    whole_size: int | None = None
    population: int | None = None

    def part(self, number: int, parts: int) -> "Batch":
        """Part `number` of `parts` equal parts, with the images in order."""
        size = len(self.x) // parts
        rows = slice(number * size, (number + 1) * size)
        return Batch(self.x[rows], self.input[rows], self.labels[rows], rows.start, len(self.x), self.population)

    def noise(self, samples: int, latent_dim: int) -> Tensor:
        """Samples from N(0, 1), [samples, B, latent_dim].

        A part draws noise for the whole batch and keeps its own rows, so that the noise of an image does not depend on
        the number of parts.
        """
        noise = normal(samples, self.whole_size or len(self.x), latent_dim, device=self.x.device)
        return noise[:, self.start : self.start + len(self.x)]


@dataclass(frozen=True)
class Terms:
    """The terms of an objective for a batch of B images.

    Attributes:
        loss: the scalar that is minimized, [].
        distortion: -E_q log p(x|z), [B].
        rate: KL(q(z|x) || p(z)), [B, groups] (see vaex.model.Latents); None without a posterior distribution.
        posterior: q(z|x).
        distribution: p(x|z), with batch shape [samples, B], or [B] without a posterior distribution.
        beta: weight of the rate in this step, [], or the mean over groups, to be logged; None if it is constant.
    """

    loss: Tensor
    distortion: Tensor
    rate: Tensor | None
    posterior: Posterior
    distribution: PixelDistribution
    beta: Tensor | None = None


class Objective(nn.Module):
    """Base class of objectives.

    Attributes:
        stochastic: whether the encoder must return a distribution.
        samples: number of samples of z for each image.
        needs_diagonal: whether q(z|x) must be a Gaussian with independent latents.
        needs_standard: whether p(z) must be N(0, I).
        needs_groups: whether the model must be hierarchical.
        separates_decoder: whether the decoder is trained on another loss than the encoder, so that it may not infer z.
        weighs_samples: whether samples of z are weighted by p(x|z), which then may not be computed from x itself.
        linear_in_batch: whether the loss of a batch is the mean of the losses of its equal parts.
        loss_changes: whether the loss itself changes in a way that makes the losses of two epochs incomparable.
        beta: weight of the rate, []; None for an objective without such a weight.
        formula: the loss, as text for the start message; empty for distortion + beta · rate.
    """

    stochastic: bool
    samples: int = 1
    needs_diagonal: bool = False
    needs_standard: bool = False
    needs_groups: bool = False
    separates_decoder: bool = False
    weighs_samples: bool = False
    linear_in_batch: bool = True
    loss_changes: bool = False
    beta: Tensor | None
    formula: str = ""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("beta", None, persistent=False)

    def hold(self, **values: float) -> None:
        """Keep numbers as tensors [] on the device: runs that differ only in these can be trained together."""
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)

    def forward(self, model: Autoencoder, batch: Batch, step: Tensor | None) -> Terms:
        """The terms of a batch.

        Args:
            model: on the batch's device.
            batch: B images.
            step: number of optimizer steps taken so far, []; None to evaluate with every warm-up completed.
        """
        raise NotImplementedError

    def results(self) -> dict[str, float]:
        """Values other than weights that training has determined, for results.json under train/."""
        return {}


def infer_and_decode(model: Autoencoder, batch: Batch, samples: int) -> tuple[Latents, PixelDistribution, Tensor]:
    """Samples of z, p(x|z), and the mean distortion of the samples [B]."""
    latents = model.infer(batch.input, batch.labels, batch.noise(samples, model.latent_dim))
    distribution = model.decode_latents(latents, batch.labels, batch.x)
    return latents, distribution, -distribution.log_prob(batch.x).mean(0)


def at_least_one(samples: int) -> int:
    """Raises ValueError for a number of samples below one."""
    if samples < 1:
        raise ValueError(f"objective.samples={samples}: must be >= 1")
    return samples


def not_negative(name: str, value: float) -> float:
    """Raises ValueError, with the key, for a weight that is negative or not finite."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"objective.{name}={value}: must be a finite number >= 0")
    return value
