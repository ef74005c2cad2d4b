"""Interpolation between two images: between their pixels, and between their codes along three paths."""

from collections.abc import Callable

import torch
from torch import Tensor

from vaex.figures.figure import FigureKind, Files, Subject, has_standard_prior
from vaex.figures.sheet import above, framed, grid

SEARCHED = 2000  # test images among which pairs are looked for
Path = Callable[[Tensor, Tensor, Tensor], Tensor]  # (t [T] from 0 to 1, start [..., D], end [..., D]) -> [T, ..., D]


def linear(t: Tensor, start: Tensor, end: Tensor) -> Tensor:
    t = _broadcastable(t, start)
    return (1 - t) * start + t * end


def spherical(t: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Shoemake 1985: sin((1-t)Ω)/sin Ω · start + sin(tΩ)/sin Ω · end, with Ω the angle between the two vectors.

    The path is linear if they are parallel, or opposite, where no arc is the shortest one; so always in one dimension.
    """
    t = _broadcastable(t, start).double()
    a, b = (z.double() / z.double().norm(dim=-1, keepdim=True) for z in (start, end))
    # acos of the dot product would lose half the digits of a small angle. Kahan 2006, section 12.
    angle = 2 * torch.atan2((a - b).norm(dim=-1, keepdim=True), (a + b).norm(dim=-1, keepdim=True))
    sine = torch.sin(angle)
    arc = (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / sine
    return torch.where(sine > 1e-6, arc, (1 - t) * start + t * end).to(start.dtype)  # sine is nan for a zero vector


def variance_preserving(t: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """√(1-t²) · start + t · end, which is distributed as N(0, I) at every t if start and end are independently."""
    t = _broadcastable(t, start)
    return (1 - t.square()).sqrt() * start + t * end


def _broadcastable(t: Tensor, z: Tensor) -> Tensor:
    return t.view(-1, *[1] * z.ndim)


def interpolation(subject: Subject, steps: int = 11) -> Files:
    """For each pair of test images a row between their pixels, and below it a row for each path between their codes.

    The images of a pair are of different classes; of the same class if the model is conditional. Codes whose prior is
    not N(0, I) have no variance to preserve and lie on no sphere, so there the only path is linear. For a hierarchical
    model, a last row interpolates between the first groups of latents, with the others at the prior's mean.
    """
    paths: dict[str, Path] = {"linear": linear}
    if has_standard_prior(subject.model):
        paths |= {"spherical": spherical, "variance-preserving": variance_preserving}
    t = torch.linspace(0, 1, steps, device=subject.model.device)
    pairs = _pairs(subject, subject.count or 4)
    images = subject.encode(pairs.flatten().to(subject.dataset.test.labels.device))
    first = subject.model.posterior.groups[0]
    names = ["pixels", *paths] + ["first group"] * (first < subject.model.latent_dim)
    sheets = []
    for start in range(0, len(images.x), 2):
        pair = slice(start, start + 2)
        labels = images.labels[start].expand(steps)
        codes = [path(t, *images.z[pair]) for path in paths.values()]
        rows = [linear(t, *images.x[pair]), *(subject.model.decode(z, labels).mean for z in codes)]
        if first < subject.model.latent_dim:
            ends = torch.zeros_like(images.z[pair])
            ends[:, :first] = images.z[pair][:, :first]
            rows.append(subject.model.decode(linear(t, *ends), labels).mean)
        columns = [f"{value:.1f}" for value in t.tolist()] if start == 0 else []
        sheets.append(grid(torch.stack(rows), rows=names, columns=columns))
    return {"interpolation.png": framed(above(*sheets))}


def needs_pair(subject: Subject) -> str | None:
    if len(_pairs(subject, 1)):
        return None
    one_class = " of one class" if subject.model.classes else ""
    return f"needs two test images{one_class}, and there are {len(subject.dataset.test.labels[:SEARCHED])} in all"


def _pairs(subject: Subject, count: int) -> Tensor:
    return find_pairs(subject.dataset.test.labels[:SEARCHED], count, same=subject.model.classes > 0)


def find_pairs(labels: Tensor, count: int, same: bool) -> Tensor:
    """Pairs of images of the same class, or of different classes if there are several.

    Each image is in at most one pair, and the earliest images come first.

    Returns:
        Indices of at most `count` pairs, int64 [P, 2].
    """
    classes = labels.tolist()
    one_class = len(set(classes)) == 1
    remaining = list(range(len(classes)))
    pairs: list[tuple[int, int]] = []
    while len(remaining) > 1 and len(pairs) < count:
        first = remaining.pop(0)
        partners = (n for n in remaining if (classes[n] == classes[first]) == same or one_class)
        if (second := next(partners, None)) is not None:
            remaining.remove(second)
            pairs.append((first, second))
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2)


INTERPOLATION = FigureKind("interpolation", interpolation, needs_pair)
