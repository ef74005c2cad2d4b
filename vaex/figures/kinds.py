"""The kinds of pictures there are, when each has a meaning, and how it is drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vaex.data.dataset import Dataset
from vaex.figures import curves, denoising, grids, interpolation, latents, manifold, plot, projector, scale, traversal
from vaex.figures.sheet import writable
from vaex.model import Autoencoder

Files = dict[str, Tensor | bytes]  # by name: a sheet uint8 [1 or 3, height, width], or a file's content


@dataclass(frozen=True)
class Subject:
    """What is drawn.

    Attributes:
        model: on its device.
        dataset: its test images are drawn, wherever they lie.
        corruption: what the encoder saw of an image in training; torch.nn.Identity for all of it.
        metrics: metrics.jsonl, if there is one.
        title: of the model, beside others.
        grid: images in a grid of reconstructions or of samples.
        count: images, pairs or codes of every kind; None: as many as suit the kind.
        parameter: whether reconstructions also show the raw parameter.
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
        """One for each class, in letters that the pictures have; none for images without classes."""
        names = self.dataset.source.class_names or tuple(map(str, range(self.dataset.classes)))
        return [writable(name, str(n)) for n, name in enumerate(names)]


@dataclass(frozen=True)
class Kind:
    """`why_not` gives the reason why this can't be drawn, or None."""

    why_not: Callable[[Subject], str | None]
    draw: Callable[[Subject], Files]
    on_request: bool = False  # drawn only where it is asked for by name
    beside_events: bool = False  # its files belong into the run's folder itself


def _anything(subject: Subject) -> str | None:
    return None


def _needs_prior(subject: Subject) -> str | None:
    return None if subject.model.stochastic else "needs a prior, and objective=ae has none"


def _needs_corruption(subject: Subject) -> str | None:
    clean = isinstance(subject.corruption, torch.nn.Identity)
    return "needs a corruption, and this run's encoder sees the images themselves" if clean else None


def _needs_pair(subject: Subject) -> str | None:
    same = subject.model.classes > 0
    labels = subject.dataset.test.labels[: interpolation.SEARCHED]
    if len(interpolation.find_pairs(labels, 1, same)):
        return None
    return f"needs two test images{' of one class' if same else ''}, and there are {len(labels)} in all"


def _needs_plane(subject: Subject) -> str | None:
    if subject.model.latent_dim != 2:
        return f"needs latent_dim=2, this run has {subject.model.latent_dim}"
    return _needs_prior(subject)


def _needs_metrics(subject: Subject) -> str | None:
    if reason := plot.why_no_plots():
        return reason
    if subject.metrics is None or not subject.metrics.is_file():
        return f"needs {subject.metrics or 'metrics.jsonl'}, which is not there"
    return None if curves.read(subject.metrics, "train") else f"{subject.metrics} holds no training numbers"


def _reconstructions(s: Subject) -> Files:
    sheet = grids.reconstructions(s.model, s.dataset.test, s.dataset.to_float, s.count or s.grid, parameter=s.parameter)
    return {"reconstructions.png": sheet}


def _samples(s: Subject) -> Files:
    return {"samples.png": grids.samples(s.model, s.model.device, s.count or s.grid, class_names=s.class_names)}


def _denoising(s: Subject) -> Files:
    sheet = denoising.denoising(s.model, s.dataset.test, s.dataset.to_float, s.corruption, s.count or 24)
    return {"denoising.png": sheet}


def _interpolation(s: Subject) -> Files:
    return {"interpolation.png": interpolation.interpolation(s.model, s.dataset.test, s.dataset.to_float, s.count or 4)}


def _traversals(s: Subject) -> Files:
    arguments = (s.model, s.dataset.test, s.dataset.to_float)
    sheet = traversal.traversals(*arguments, count=s.count or 2, class_names=s.class_names)
    return {"traversals.png": sheet, "traversals.gif": traversal.animation(*arguments, count=s.count or 7)}


def _manifold(s: Subject) -> Files:
    return {"manifold.png": manifold.manifold(s.model, s.count, s.class_names)}


def latent_panel(s: Subject) -> latents.Panel:
    return latents.panel(
        s.model,
        s.dataset.test,
        s.dataset.to_float,
        count=s.count or 2000,
        class_names=s.class_names,
        title=s.title,
    )


def _latents(s: Subject) -> Files:
    return {"latents.png": latents.latents([latent_panel(s)])}


def _scale(s: Subject) -> Files:
    return {"scale.png": scale.scales(s.model, s.dataset.test, s.dataset.to_float, s.count or 12)}


def _curves(s: Subject) -> Files:
    assert s.metrics is not None
    return {"curves.png": curves.curves(s.metrics)}


def _projector(s: Subject) -> Files:
    names = s.dataset.source.class_names or s.class_names
    return {**projector.projector(s.model, s.dataset.test, s.dataset.to_float, s.count or 1000, names)}


KINDS = {
    "reconstructions": Kind(_anything, _reconstructions),
    "samples": Kind(_needs_prior, _samples),
    "denoising": Kind(_needs_corruption, _denoising),
    "interpolation": Kind(_needs_pair, _interpolation),
    "traversals": Kind(_anything, _traversals),
    "manifold": Kind(_needs_plane, _manifold),
    "latents": Kind(lambda subject: plot.why_no_plots(), _latents),
    "scale": Kind(lambda subject: scale.why_no_scale(subject.model), _scale),
    "curves": Kind(_needs_metrics, _curves),
    "projector": Kind(_anything, _projector, on_request=True, beside_events=True),
}
