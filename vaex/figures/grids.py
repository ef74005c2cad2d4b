"""Grids of reconstructions, samples and restored images. An image is the mean of p(x|z); 0 is black and 1 is white."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vaex.figures.figure import FigureKind, Files, Subject, needs_prior
from vaex.figures.sheet import MARGIN, above, framed, grid, tile

COLUMNS = 16


def reconstructions(subject: Subject) -> Files:
    """Test images, their reconstructions below them, and below these the raw parameter if the subject asks for it."""
    images = subject.encode(slice(subject.count or subject.grid))
    distribution = subject.model.decode(images.z, images.labels)
    parts = [images.x, distribution.mean] + ([distribution.parameter] if subject.parameter else [])
    return {"reconstructions.png": _below_each_other(parts, COLUMNS, gap=6)}


def samples(subject: Subject) -> Files:
    """Decoded samples of z from the prior. A conditional model has a row for each class; z is the same in a column."""
    model, count = subject.model, subject.count or subject.grid
    columns = min(COLUMNS, count)
    if not model.classes:
        return {"samples.png": tile(model.sample(count), columns)}
    z = model.latent_prior().sample(columns).repeat(model.classes, 1)
    labels = torch.arange(model.classes, device=model.device).repeat_interleave(columns)
    means = model.decode(z, labels).mean
    sheet = grid(means.view(model.classes, columns, *means.shape[1:]), rows=subject.class_names)
    return {"samples.png": framed(sheet)}


def denoising(subject: Subject, columns: int = 12) -> Files:
    """Test images, the corrupted images that the encoder sees, cut to [0, 1], and the reconstructions of these."""
    images = subject.dataset.test[: subject.count or 24].to(subject.model.device)
    x = subject.dataset.to_float(images.pixels)
    corrupted = subject.corruption(x)
    parts = [x, corrupted, subject.model.reconstruct(corrupted, images.labels)]
    return {"denoising.png": framed(_below_each_other(parts, columns, rows=["clean", "corrupted", "restored"]))}


def pseudo_inputs(subject: Subject) -> Files:
    """The pseudo-inputs of a VampPrior."""
    images = subject.model.prior.pseudo_images()
    assert images is not None  # as `needs_pseudo_inputs` has checked
    return {"pseudo_inputs.png": tile(images[: subject.count or subject.grid], COLUMNS)}


def needs_pseudo_inputs(subject: Subject) -> str | None:
    return None if subject.model.prior.pseudo_images() is not None else "needs prior=vamp"


def needs_corruption(subject: Subject) -> str | None:
    return "needs a corruption; this run has corruption=none" if isinstance(subject.corruption, nn.Identity) else None


def _below_each_other(parts: Sequence[Tensor], columns: int, rows: Sequence[str] = (), gap: int = MARGIN) -> Tensor:
    """Several versions [N, C, H, W] of the same images, one below the other, with `columns` images in a row."""
    chunks = torch.split(torch.stack(list(parts)), columns, dim=1)
    return above(*(grid(chunk, rows=rows) for chunk in chunks), gap=gap)


RECONSTRUCTIONS = FigureKind("reconstructions", reconstructions)
SAMPLES = FigureKind("samples", samples, needs_prior)
DENOISING = FigureKind("denoising", denoising, needs_corruption)
PSEUDO_INPUTS = FigureKind("pseudo_inputs", pseudo_inputs, needs_pseudo_inputs)
