"""Between two images: through pixels, and through the latent space by three paths."""

from collections.abc import Callable

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.evaluation.bound import ToFloat, evaluating, fixed_noise
from vaex.figures.sheet import above, framed, grid
from vaex.model import Autoencoder

SEARCHED = 2000  # test images among which pairs are looked for
Path = Callable[[Tensor, Tensor, Tensor], Tensor]  # (t [T] from 0 to 1, start [..., D], end [..., D]) -> [T, ..., D]


def linear(t: Tensor, start: Tensor, end: Tensor) -> Tensor:
    t = _beside(t, start)
    return (1 - t) * start + t * end


def spherical(t: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Shoemake 1985: sin((1-t)Ω)/sin Ω · start + sin(tΩ)/sin Ω · end, with Ω the angle between the two.

    Where they are parallel, or opposite so that no arc is the shortest one, it is the linear path; in one dimension
    always.
    """
    t = _beside(t, start).double()
    a, b = (z.double() / z.double().norm(dim=-1, keepdim=True) for z in (start, end))
    # acos of the dot product would lose half the digits of a small angle. Kahan 2006, section 12.
    angle = 2 * torch.atan2((a - b).norm(dim=-1, keepdim=True), (a + b).norm(dim=-1, keepdim=True))
    sine = torch.sin(angle)
    arc = (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / sine
    return torch.where(sine > 1e-6, arc, (1 - t) * start + t * end).to(start.dtype)  # of a zero vector sine is nan


def variance_preserving(t: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """√(1-t²) · start + t · end: of independent draws from N(0, I), another one at every t."""
    t = _beside(t, start)
    return (1 - t.square()).sqrt() * start + t * end


def _beside(t: Tensor, z: Tensor) -> Tensor:
    return t.view(-1, *[1] * z.ndim)


def interpolation(model: Autoencoder, images: Images, to_float: ToFloat, pairs: int = 4, steps: int = 11) -> Tensor:
    """For each pair of images a row through pixels, and below it rows through the latent space, from code to code.

    The pairs are of different classes where there are labels, and of the same class for a conditional model. A code
    without a prior has no variance to preserve and no sphere to stay on: there the path is the linear one.
    """
    paths: dict[str, Path] = {"linear": linear}
    if model.stochastic:
        paths |= {"spherical": spherical, "variance-preserving": variance_preserving}
    found = find_pairs(images.labels[:SEARCHED], pairs, same=model.classes > 0)
    device = model.device
    t = torch.linspace(0, 1, steps, device=device)
    sheets = []
    with evaluating(model), fixed_noise(device):
        ends = images[found.flatten().to(images.labels.device)].to(device)
        x = to_float(ends.pixels)
        z = model.encode(x, ends.labels).mean
        for n in range(0, len(x), 2):
            label = ends.labels[n].expand(steps)
            pixels = linear(t, x[n], x[n + 1])
            decoded = [model.decode(path(t, z[n], z[n + 1]), label).mean for path in paths.values()]
            columns = [f"{value:.1f}" for value in t.tolist()] if n == 0 else []
            sheets.append(grid(torch.stack([pixels, *decoded]), rows=["pixels", *paths], columns=columns))
    return framed(above(*sheets))


def find_pairs(labels: Tensor, count: int, same: bool) -> Tensor:
    """Rows of at most `count` pairs without overlap, int64 [P, 2], each the nearest to the front that fits."""
    values = labels.tolist()
    one_class = len(set(values)) == 1
    left = list(range(len(values)))
    pairs: list[tuple[int, int]] = []
    while len(left) > 1 and len(pairs) < count:
        first = left.pop(0)
        fits = (n for n in left if (values[n] == values[first]) == same or one_class)
        if (second := next(fits, None)) is not None:
            left.remove(second)
            pairs.append((first, second))
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
