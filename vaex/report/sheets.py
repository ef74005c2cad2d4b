"""Aligned pictures of many models: every column shows the same test image, or the same z."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vaex.data.dataset import Dataset
from vaex.errors import UserError
from vaex.evaluation.split import evaluating, fixed_noise
from vaex.figures.figure import has_standard_prior
from vaex.figures.sheet import encode_png, enlarged, framed, grid, writable
from vaex.model import Autoencoder
from vaex.report.collect import Run

COLUMNS = 12  # images in a row
MOST_ROWS = 8  # models in a sheet
MOST_MODELS = 40  # in a report
SEED = 1  # of z

Rows = tuple[str, Sequence[tuple[str, Run]]]  # title of a sheet, and its labeled runs from top to bottom
Models = Sequence[tuple[str, Autoencoder]]


@dataclass(frozen=True)
class Loaders:
    """How the model of a run and its dataset are loaded. Both raise UserError if that is impossible."""

    model: Callable[[Path], Autoencoder]
    dataset: Callable[[Path], Dataset]


@dataclass(frozen=True)
class Sheet:
    """The pictures of one line of the plots. `images` are float [rows, columns, C, H, W] in [0, 1]."""

    title: str
    labels: tuple[str, ...]
    images: Tensor

    def png(self) -> bytes:
        """The sheet with its labels, dark on white."""
        labels = [writable(label, str(n)) for n, label in enumerate(self.labels)]
        return encode_png(framed(grid(self.images, rows=labels)))

    def strips(self) -> list[bytes]:
        """One PNG for each row, transparent between the images."""
        return [_strip(row) for row in self.images]


@dataclass(frozen=True)
class Sheets:
    """`remarks` say which rows are left out and why."""

    reconstructions: list[Sheet] = field(default_factory=list)
    samples: list[Sheet] = field(default_factory=list)
    seeds: dict[str, None] = field(default_factory=dict)
    remarks: dict[str, None] = field(default_factory=dict)

    def remark(self, text: str) -> None:
        self.remarks[text] = None


def draw(rows: Sequence[Rows], loaders: Loaders) -> Sheets:
    """Load one model for each row, and decode its codes of the test images and samples of z."""
    sheets = Sheets()
    rows, left_out = choose(rows)
    if left_out:
        sheets.remark(f"Left out for lack of space: {', '.join(left_out)}.")
    for title, cells in rows:
        first: tuple[Tensor, Tensor] | None = None
        models = []
        for label, run in cells:
            name = ", ".join(filter(None, (title, label))) or run.name
            try:
                images = _test_images(loaders.dataset(run.path))
            except UserError as error:
                sheets.remark(f"{name if first else title or 'All rows'}: left out; {error}")
                if first is None:  # the next rows are probably of the same dataset, which could be a slow download
                    break
                continue
            first = first or images
            if not torch.equal(images[0], first[0]):
                sheets.remark(f"{name}: left out, because its test images differ from those in the rows above.")
                continue
            try:
                models.append((label, loaders.model(run.path)))
                sheets.seeds[str(run.seed)] = None
            except Exception as error:  # also of a user's own model code: one run must not cost the report
                sheets.remark(f"{name}: left out; {str(error).splitlines()[0] if str(error) else repr(error)}")
        if first is None or not models:
            continue
        sheets.reconstructions.append(reconstruct(title, models, *first))
        stochastic = [(label, model) for label, model in models if model.stochastic]
        if stochastic:
            sheets.samples.append(sample(title, stochastic))
            if len({model.latent_dim for _, model in stochastic if has_standard_prior(model)}) > 1:
                sheets.remark(f"{title or 'Samples'}: a z of fewer dimensions is the first part of a longer one.")
            if any(model.classes for _, model in stochastic):
                sheets.remark(f"{title or 'Samples'}: the columns are given the classes in turn as their labels.")
    return sheets


def _test_images(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The first test images, float [columns, C, H, W] with the same noise every time, and their labels."""
    batch = dataset.test[:COLUMNS]
    with fixed_noise(torch.device("cpu")):
        return dataset.to_float(batch.pixels), batch.labels


def reconstruct(title: str, models: Models, x: Tensor, labels: Tensor) -> Sheet:
    """The images, and below them the decoder's mean at the posterior mean of each model."""
    rows = [x]
    for _, model in models:
        with evaluating(model):
            rows.append(model.decode(model.encode(x, labels).mean, labels).mean)
    return Sheet(title, ("test images", *(label for label, _ in models)), torch.stack(rows))


def sample(title: str, models: Models) -> Sheet:
    """The decoder's means at samples from the prior; conditional models are given the classes in turn.

    Models whose prior is N(0, I) share the samples.
    """
    z = prior_samples(max(model.latent_dim for _, model in models))
    rows = []
    for _, model in models:
        labels = torch.arange(COLUMNS) % model.classes if model.classes else None
        with evaluating(model):
            own = z[:, : model.latent_dim]
            if not has_standard_prior(model):
                own = model.latent_prior().sample(COLUMNS, generator=torch.Generator().manual_seed(SEED))
            rows.append(model.decode(own, labels).mean)
    return Sheet(title, tuple(label for label, _ in models), torch.stack(rows))


def prior_samples(latent_dim: int) -> Tensor:
    """[columns, latent_dim], the same every time."""
    return torch.randn(COLUMNS, latent_dim, generator=torch.Generator().manual_seed(SEED))


def _strip(images: Tensor, gap: int = 2) -> bytes:
    """float [N, C, H, W] in [0, 1] -> PNG of one row, transparent between the images."""
    pixels = enlarged(images).numpy()
    count, channels, height, width = pixels.shape
    row = np.zeros((height, count * (width + gap) - gap, channels + 1), dtype=np.uint8)
    for n, image in enumerate(pixels):
        left = n * (width + gap)
        row[:, left : left + width, :channels] = image.transpose(1, 2, 0)
        row[:, left : left + width, channels] = 255
    file = BytesIO()
    Image.fromarray(row, "LA" if channels == 1 else "RGBA").save(file, format="PNG", optimize=False)
    return file.getvalue()


def choose(rows: Sequence[Rows]) -> tuple[list[Rows], list[str]]:
    """At most MOST_ROWS evenly spaced rows of each sheet and MOST_MODELS in all, and the labels of the others."""
    selected: list[Rows] = []
    omitted = []
    room = MOST_MODELS
    for title, cells in rows:
        count = min(len(cells), MOST_ROWS, room)
        positions = {round(n * (len(cells) - 1) / max(1, count - 1)) for n in range(count)}
        if count:
            selected.append((title, [cell for n, cell in enumerate(cells) if n in positions]))
            room -= count
        others = [label for n, (label, _) in enumerate(cells) if n not in positions]
        if others:
            omitted.append(f"{title}: {', '.join(others)}" if title and count else title or ", ".join(others))
    return selected, omitted
