"""What a figure is drawn from, and how a kind of figure is declared."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vaex.data.dataset import Dataset
from vaex.evaluation.split import batches, evaluating, fixed_noise
from vaex.figures.sheet import writable
from vaex.model import Autoencoder

Files = dict[str, Tensor | bytes]  # file name -> a sheet, uint8 [1 or 3, height, width], or the content of the file

BATCH = 512  # codes decoded at once


@dataclass(frozen=True)
class Encoded:
    """Images x [N, C, H, W] in [0, 1], their posterior means z [N, latent_dim] and labels int64 [N], on one device."""

    x: Tensor
    z: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Subject:
    """What figures are drawn of: a model and the images that it was trained on.

    Attributes:
        model: on its device.
        dataset: figures show its test images, which may lie on any device.
        corruption: changes an image before the encoder sees it in training; torch.nn.Identity leaves it as it is.
        metrics: the run's metrics.jsonl, or None.
        title: of the model's panel in the figure `latents`.
        grid: number of images in `reconstructions` and `samples`.
        count: number of images, pairs or codes in every figure; None for each figure's own default.
        parameter: whether `reconstructions` also shows the raw parameter of the likelihood.
    """

    model: Autoencoder
    dataset: Dataset
    corruption: Callable[[Tensor], Tensor]
    metrics: Path | None = None
    title: str = ""
    grid: int = 64
    count: int | None = None
    parameter: bool = False

    @property
    def class_names(self) -> list[str]:
        """One name for each class, in letters that figures can show; empty for images without labels."""
        names = self.dataset.source.class_names or tuple(map(str, range(self.dataset.classes)))
        return [writable(name, str(n)) for n, name in enumerate(names)]

    def encode(self, rows: slice | Tensor) -> Encoded:
        """Encode these test images, on the model's device. The noise of dequantization starts anew in every call."""
        images = self.dataset.test[rows].to(self.model.device)
        with evaluating(self.model), fixed_noise(self.model.device):
            x = self.dataset.to_float(images.pixels)
            return Encoded(x, self.model.encode(x, images.labels).mean, images.labels)

    def codes(self, count: int) -> tuple[Tensor, Tensor | None]:
        """The codes of the first `count` test images [N, latent_dim], and the mean rate of each latent [latent_dim].

        Both are on the CPU. The rates are None if latents have no rates of their own.
        """
        model, means, rates = self.model, [], []
        for batch in batches(model, self.dataset.test[:count], self.dataset.to_float, batch_size=500):
            posterior = model.encode(batch.x, batch.labels)
            rate = model.latent_prior().rate(posterior) if model.stochastic else None
            means.append(posterior.mean.cpu())
            rates += [] if rate is None or rate.shape != posterior.mean.shape else [rate.cpu()]
        return torch.cat(means), torch.cat(rates).mean(0) if rates else None

    def decode(self, z: Tensor, labels: Tensor) -> Tensor:
        """Means of p(x|z) for codes [N, latent_dim] with labels [N]: [N, C, H, W] on the CPU, decoded in batches."""
        device = self.model.device
        parts = zip(torch.split(z, BATCH), torch.split(labels, BATCH), strict=True)
        with evaluating(self.model):
            return torch.cat([self.model.decode(a.to(device), b.to(device)).mean.cpu() for a, b in parts])


@dataclass(frozen=True)
class FigureKind:
    """A kind of figure.

    Attributes:
        name: as on the command line.
        function: draws the figure. It runs in evaluation mode, without gradients, and with the same noise every time.
        why_not: the reason why this figure cannot be drawn of a subject, or None.
        on_request: whether it is drawn only if the user names it.
        beside_events: whether its files belong beside the TensorBoard events rather than into the folder `figures`.
    """

    name: str
    function: Callable[[Subject], Files]
    why_not: Callable[[Subject], str | None] = lambda subject: None
    on_request: bool = False
    beside_events: bool = False

    def draw(self, subject: Subject) -> Files:
        """The files of the figure. The model's mode and the random state are left as they were."""
        with evaluating(subject.model), fixed_noise(subject.model.device):
            return self.function(subject)


def has_standard_prior(model: Autoencoder) -> bool:
    """Whether p(z) is N(0, I)."""
    return model.stochastic and model.prior.is_standard


def needs_prior(subject: Subject) -> str | None:
    return None if subject.model.stochastic else "needs a prior, and this objective has none"
