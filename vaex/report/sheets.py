"""Pictures of many models in line: the same test images, and the same z, run down the columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vaex.build import load_model
from vaex.data.dataset import Dataset
from vaex.errors import UserError
from vaex.evaluation.split import evaluating, fixed_noise
from vaex.figures.sheet import encode_png, enlarged, framed, grid, writable
from vaex.model import Autoencoder
from vaex.report.scores import Scored
from vaex.runs.find import LatestDataset

COLUMNS = 12  # pictures in a row
MOST_ROWS = 8  # models in a sheet
MOST_MODELS = 40  # in a report
SEED = 1  # of z

Asked = tuple[str, Sequence[tuple[str, Scored]]]  # title, and labelled runs from top to bottom


@dataclass(frozen=True)
class Sheet:
    """One likelihood's. `images` float [rows, columns, C, H, W] in [0, 1], a label for each row."""

    title: str
    labels: tuple[str, ...]
    images: Tensor

    def png(self) -> bytes:
        """With its labels, dark on white."""
        names = [writable(label, str(n)) for n, label in enumerate(self.labels)]
        return encode_png(framed(grid(self.images, rows=names)))

    def strips(self) -> list[bytes]:
        """One picture a row, the gaps transparent."""
        return [strip(row) for row in self.images]


@dataclass(frozen=True)
class Sheets:
    """`remarks` say what is not there and why."""

    reconstructions: tuple[Sheet, ...]
    samples: tuple[Sheet, ...]
    seeds: tuple[str, ...]
    remarks: tuple[str, ...]


def draw(asked: Sequence[Asked]) -> Sheets:
    """Load one model for each row, the images of each sheet's dataset, and decode."""
    remarks: list[str] = []
    chosen, left_out = _chosen(asked)
    if left_out:
        remarks.append(f"Left out for want of room: {', '.join(left_out)}.")
    datasets = LatestDataset()
    reconstructions, samples, seeds = [], [], []
    for title, cells in chosen:
        first, models = cells[0][1], []
        try:
            dataset = datasets.of(first.run.path)[2]
        except UserError as error:
            remarks.append(f"{title or 'All'}: left out; {error}")
            continue
        for label, item in cells:
            where = ", ".join(part for part in (title, label) if part) or item.run.name
            if item.images != first.images:
                remarks.append(f"{where}: left out, since its images are other ones than those above it.")
                continue
            try:
                models.append((label, load_model(item.run.path)))
                seeds.append(str(item.run.seed))
            except Exception as error:  # also of a model's code that isn't vaex's: one run must not cost the report
                remarks.append(f"{where}: left out; {str(error).splitlines()[0] if str(error) else repr(error)}")
        if not models:
            continue
        reconstructions.append(reconstructed(title, models, dataset))
        drawn = [(label, model) for label, model in models if model.stochastic]
        if drawn:
            samples.append(sampled(title, drawn))
            if len({model.latent_dim for _, model in drawn}) > 1:
                remarks.append(f"{title or 'Samples'}: a z of fewer numbers is the beginning of one of more.")
            if any(model.classes for _, model in drawn):
                remarks.append(f"{title or 'Samples'}: each column is given a label, the classes in turn.")
    return Sheets(tuple(reconstructions), tuple(samples), tuple(dict.fromkeys(seeds)), tuple(dict.fromkeys(remarks)))


def reconstructed(title: str, models: Sequence[tuple[str, Autoencoder]], dataset: Dataset) -> Sheet:
    """The first images of the test split, and below them the decoder's mean at each posterior's mean."""
    shown = dataset.test[:COLUMNS]
    with fixed_noise(torch.device("cpu")):
        x = dataset.to_float(shown.pixels)
    rows = [x]
    for _, model in models:
        with evaluating(model):
            rows.append(model.decode(model.encode(x, shown.labels).mean, shown.labels).mean)
    return Sheet(title, ("test images", *(label for label, _ in models)), torch.stack(rows))


def sampled(title: str, models: Sequence[tuple[str, Autoencoder]]) -> Sheet:
    """The decoder's means at the same draws from the prior; a conditional model is given the classes in turn."""
    z = prior_draws(max(model.latent_dim for _, model in models))
    rows = []
    for _, model in models:
        labels = torch.arange(COLUMNS) % model.classes if model.classes else None
        with evaluating(model):
            rows.append(model.decode(z[:, : model.latent_dim], labels).mean)
    return Sheet(title, tuple(label for label, _ in models), torch.stack(rows))


def prior_draws(latent_dim: int) -> Tensor:
    """[columns, latent_dim], the same every time."""
    return torch.randn(COLUMNS, latent_dim, generator=torch.Generator().manual_seed(SEED))


def strip(images: Tensor, gap: int = 2) -> bytes:
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


def _chosen(asked: Sequence[Asked]) -> tuple[list[Asked], list[str]]:
    """At most so many rows a sheet, evenly picked, and so many models in all; and labels of what that leaves out."""
    chosen: list[Asked] = []
    left_out = []
    room = MOST_MODELS
    for title, cells in asked:
        count = min(len(cells), MOST_ROWS, room)
        picked = {round(n * (len(cells) - 1) / max(1, count - 1)) for n in range(count)}
        kept = [cell for n, cell in enumerate(cells) if n in picked]
        if kept:
            chosen.append((title, kept))
            room -= len(kept)
        gone = [label for n, (label, _) in enumerate(cells) if n not in picked]
        if gone:
            left_out.append(f"{title}: {', '.join(gone)}" if title and kept else title or ", ".join(gone))
    return chosen, left_out
