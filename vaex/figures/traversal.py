"""What each latent does: it moves from -3 to 3 standard deviations of the prior while the other latents stay.

Latents are ordered by their rate, highest first. The latents of an autoencoder without a prior have no rate: they move
by as many of their own standard deviations over test images, and the one with the largest standard deviation is first.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaex.figures.figure import FigureKind, Files, Subject, has_standard_prior
from vaex.figures.sheet import above, beside, blank, encode_gif, framed, grid, text, tile

MEASURED = 1000  # test images over which the rates are averaged
NEGLIGIBLE = 0.1  # nats; a latent with a lower rate changes nothing visible
REACH = 3.0  # standard deviations to either side


@dataclass(frozen=True)
class Traversal:
    """Which latents move, and from which codes. All tensors are on the CPU.

    Attributes:
        latents: indices of R latents in their order.
        names: of these, with their rates.
        remark: which latents are left out; empty if there are none.
        center, spread: [latent_dim]; a latent moves over center ± 3 · spread.
        bases: [B, latent_dim], the codes from which latents move: `center`, then those of test images.
        labels: int64 [B], of the images; `center` has the label of the first image.
        starts: float [B, C, H, W], the decoded bases.
        images: float [B - 1, C, H, W].
    """

    latents: list[int]
    names: list[str]
    remark: str
    center: Tensor
    spread: Tensor
    bases: Tensor
    labels: Tensor
    starts: Tensor
    images: Tensor

    def decode(self, subject: Subject, positions: Tensor) -> Tensor:
        """Move each latent to positions [S], in standard deviations. Decoded means [B, R, S, C, H, W] on the CPU."""
        shape = (len(self.bases), len(self.latents), len(positions))
        z = self.bases[:, None, None].repeat(1, *shape[1:], 1)
        for row, latent in enumerate(self.latents):
            z[:, row, :, latent] = self.center[latent] + positions * self.spread[latent]
        labels = self.labels[:, None, None].expand(shape).flatten()
        means = subject.decode(z.flatten(0, 2), labels)
        return means.view(*shape, *means.shape[1:])


def plan(subject: Subject, *, count: int, most: int) -> Traversal:
    """Choose at most `most` latents, and start from the prior's mean and from the codes of the first `count` images."""
    codes, rates = subject.codes(MEASURED)
    center, spread = codes.mean(0), codes.std(0, correction=0)
    importance, least, unit = spread, 0.0, "std {:.2f}"
    if rates is not None:
        importance, least, unit = rates, NEGLIGIBLE, "{:.2f} nats"
    if has_standard_prior(subject.model):
        center, spread = torch.zeros_like(center), torch.ones_like(spread)
    order = importance.argsort(descending=True, stable=True).tolist()
    used = [n for n in order if importance[n] > least] or order[:1]
    unused = len(order) - len(used)
    remarks = []
    if len(used) > most:
        remarks.append(f"{len(used) - most} more of at most {unit.format(importance[used[most]])} each")
    if unused:
        remarks.append(f"{unused} of less than {least:g} nats each" if least else f"{unused} that never change")
    images = subject.encode(slice(count))
    bases, labels = torch.cat([center[None], images.z.cpu()]), images.labels.cpu()
    labels = torch.cat([labels[:1], labels])
    return Traversal(
        latents=used[:most],
        names=[f"z{n}   {unit.format(importance[n])}" for n in used[:most]],
        remark=f"not drawn: {', and '.join(remarks)}" if remarks else "",
        center=center,
        spread=spread,
        bases=bases,
        labels=labels,
        starts=subject.decode(bases, labels),
        images=images.x.cpu(),
    )


def sheet(subject: Subject, *, count: int = 2, steps: int = 7, most: int = 20) -> Tensor:
    """A row for each latent, and a block of columns for the prior's mean and for each of the first `count` images.

    A column stands for a value of the latent itself, so an image's own value is usually not among them. Above each
    block is the decoded code from which its latents move.
    """
    traversal = plan(subject, count=count, most=most)
    positions = torch.linspace(-REACH, REACH, steps)
    columns = [f"{position:+.2g}" if position else "0" for position in positions.tolist()]
    first, *others = traversal.decode(subject, positions)
    name = "the prior's mean" if has_standard_prior(subject.model) else "the mean code"
    label = f", class {subject.class_names[int(traversal.labels[0])]}" if subject.model.classes else ""
    head = _head(tile(traversal.starts[:1], 1), name + label)
    body = grid(first, rows=traversal.names, columns=columns)
    indent = body.shape[2] - grid(first, columns=columns).shape[2]  # the width of the names
    blocks = [above(beside(blank(1, indent), head, gap=0), body, gap=6)]
    for n, block in enumerate(others):
        pair = torch.stack([traversal.images[n], traversal.starts[n + 1]])
        head = _head(tile(pair, 2), f"test image {n}, and its reconstruction")
        blocks.append(above(head, grid(block, columns=columns), gap=6))
    remark = [text(traversal.remark)] if traversal.remark else []
    return framed(above(beside(*blocks), *remark))


def _head(images: Tensor, line: str) -> Tensor:
    words = text(line)
    return beside(images, above(blank((images.shape[1] - words.shape[1]) // 2, 1), words, gap=0), gap=8)


def animation(subject: Subject, *, count: int = 7, stops: int = 16, most: int = 10) -> bytes:
    """A GIF of latents that move to and fro: a row for each latent, a column for each start, which is at the top."""
    traversal = plan(subject, count=count, most=most)
    positions = REACH * torch.sin(torch.linspace(-math.pi / 2, math.pi / 2, stops))  # slower towards the ends
    columns = traversal.decode(subject, positions)
    frames = []
    for stop, position in enumerate(positions.tolist()):
        rows = torch.cat([traversal.starts[None], columns[:, :, stop].transpose(0, 1)])
        whose = "prior" if has_standard_prior(subject.model) else "code"
        heading = text(f"each latent at {position:+.1f} of the {whose}'s std")
        frames.append(framed(above(heading, grid(rows, rows=["start", *traversal.names]), gap=6)))
    return encode_gif(frames + frames[-2:0:-1], milliseconds=80)


def traversals(subject: Subject) -> Files:
    return {
        "traversals.png": sheet(subject, count=subject.count or 2),
        "traversals.gif": animation(subject, count=subject.count or 7),
    }


TRAVERSALS = FigureKind("traversals", traversals)
