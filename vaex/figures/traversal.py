"""What each latent does: it goes from -3 to 3 of the prior's standard deviations while the others stay.

Latents come in the order of their rate, highest first. A code without a prior has no rate: its latents go over as many
of their own standard deviations among test images, the most spread first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.evaluation.bound import ToFloat, evaluating, fixed_noise
from vaex.evaluation.codes import codes
from vaex.figures.sheet import above, beside, blank, encode_gif, framed, grid, text, tile
from vaex.model import Autoencoder

MEASURED = 1000  # test images that give the rates
NEGLIGIBLE = 0.1  # nats; a latent that carries less changes nothing that could be seen
REACH = 3.0  # standard deviations to either side
BATCH = 512  # codes decoded at once


@dataclass(frozen=True)
class Traversal:
    """Which latents go where, from which codes. All on the CPU.

    Attributes:
        latents: R of them, highest rate first.
        names: of each, with its rate.
        rest: what is said of the latents that are left out; empty where there are none.
        center, spread: [latent_dim], the latents go over center ± 3 · spread.
        bases: [B, latent_dim], codes whose other latents stay: `center`, then those of test images.
        labels: [B] int64, of the images; `center` takes the first's.
        images: float [B - 1, C, H, W].
    """

    latents: list[int]
    names: list[str]
    rest: str
    center: Tensor
    spread: Tensor
    bases: Tensor
    labels: Tensor
    images: Tensor

    def decode(self, model: Autoencoder, positions: Tensor) -> Tensor:
        """Positions [S] in standard deviations -> the decoder's means, [B, R, S, C, H, W] on the CPU."""
        shape = (len(self.bases), len(self.latents), len(positions))
        z = self.bases[:, None, None].repeat(1, *shape[1:], 1)
        for row, latent in enumerate(self.latents):
            z[:, row, :, latent] = self.center[latent] + positions * self.spread[latent]
        labels = self.labels[:, None, None].expand(shape).flatten()
        means = decoded(model, z.flatten(0, 2), labels)
        return means.view(*shape, *means.shape[1:])


def plan(model: Autoencoder, images: Images, to_float: ToFloat, *, count: int, most: int) -> Traversal:
    """Of the prior's mean and the first `count` images, with at most so many latents."""
    posterior = codes(model, images[:MEASURED], to_float)
    if model.stochastic:
        worth, least, written = posterior.rate().mean(0), NEGLIGIBLE, "{:.2f} nats"
        center, spread = torch.zeros(model.latent_dim), torch.ones(model.latent_dim)
    else:
        center, spread = posterior.mean.mean(0), posterior.mean.std(0, correction=0)
        worth, least, written = spread, 0.0, "std {:.2f}"
    order = worth.argsort(descending=True, stable=True).tolist()
    used = [n for n in order if worth[n] > least] or order[:1]
    drawn, kept_back, unused = used[:most], used[most:], order[len(used) :]
    said = []
    if kept_back:
        said.append(f"{len(kept_back)} more of at most {written.format(worth[kept_back[0]])} each")
    if unused:
        said.append(f"{len(unused)} of less than {least:g} nats each" if least else f"{len(unused)} that never change")
    with evaluating(model), fixed_noise(model.device):
        shown = images[:count].to(model.device)
        x = to_float(shown.pixels)
        bases = model.encode(x, shown.labels).mean.cpu()
    labels = shown.labels.cpu()
    return Traversal(
        latents=drawn,
        names=[f"z{n}   {written.format(worth[n])}" for n in drawn],
        rest=f"not drawn: {', and '.join(said)}" if said else "",
        center=center,
        spread=spread,
        bases=torch.cat([center[None], bases]),
        labels=torch.cat([labels[:1], labels]),
        images=x.cpu(),
    )


def traversals(
    model: Autoencoder,
    images: Images,
    to_float: ToFloat,
    *,
    count: int = 2,
    steps: int = 7,
    most: int = 20,
    class_names: Sequence[str] = (),
) -> Tensor:
    """One row for each latent; a block of columns for the prior's mean, and one for each of the first `count` images.

    Every column stands for a value of the latent itself: an image's own value is not in general among them. What the
    block starts from is decoded above it.
    """
    traversal = plan(model, images, to_float, count=count, most=most)
    positions = torch.linspace(-REACH, REACH, steps)
    blocks = traversal.decode(model, positions)
    starts = decoded(model, traversal.bases, traversal.labels)
    columns = [f"{position:+.2g}" if position else "0" for position in positions.tolist()]
    sheets = []
    for n, block in enumerate(blocks):
        body = grid(block, columns=columns)
        if n == 0:
            name = "the prior's mean" if model.stochastic else "the mean code"
            label = f", class {class_names[int(traversal.labels[0])]}" if model.classes else ""
            head = _head(tile(starts[:1], 1), name + label)
            labelled = grid(block, rows=traversal.names, columns=columns)
            head = beside(blank(1, labelled.shape[2] - body.shape[2]), head, gap=0)
            body = labelled
        else:
            pair = torch.stack([traversal.images[n - 1], starts[n]])
            head = _head(tile(pair, 2), f"test image {n - 1}, and its reconstruction")
        sheets.append(above(head, body, gap=6))
    foot = [text(traversal.rest)] if traversal.rest else []
    return framed(above(beside(*sheets), *foot))


def _head(sheet: Tensor, line: str) -> Tensor:
    words = text(line)
    return beside(sheet, above(blank((sheet.shape[1] - words.shape[1]) // 2, 1), words, gap=0), gap=8)


def animation(
    model: Autoencoder, images: Images, to_float: ToFloat, *, count: int = 7, stops: int = 16, most: int = 10
) -> bytes:
    """The same as a GIF that goes to and fro: a row for each latent, a column for each start, which is at the top."""
    traversal = plan(model, images, to_float, count=count, most=most)
    # Slow at the ends: a sine.
    positions = REACH * torch.sin(torch.linspace(-math.pi / 2, math.pi / 2, stops))
    columns = traversal.decode(model, positions)  # [B, R, S, C, H, W]
    starts = decoded(model, traversal.bases, traversal.labels)
    frames = []
    for stop, position in enumerate(positions.tolist()):
        rows = torch.cat([starts[None], columns[:, :, stop].transpose(0, 1)])
        heading = text(f"each latent at {position:+.1f} of the {'prior' if model.stochastic else 'code'}'s std")
        frames.append(framed(above(heading, grid(rows, rows=["start", *traversal.names]), gap=6)))
    return encode_gif(frames + frames[-2:0:-1], milliseconds=80)


def decoded(model: Autoencoder, z: Tensor, labels: Tensor) -> Tensor:
    """Means of codes [N, latent_dim] with labels [N], [N, C, H, W] on the CPU, a batch at a time."""
    with evaluating(model), fixed_noise(model.device):
        parts = zip(torch.split(z, BATCH), torch.split(labels, BATCH), strict=True)
        return torch.cat([model.decode(a.to(model.device), b.to(model.device)).mean.cpu() for a, b in parts])
