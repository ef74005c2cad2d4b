"""The scale that the decoder predicts for every pixel: where it expects to be wrong, and by how much."""

import math

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.evaluation.bound import ToFloat, evaluating, fixed_noise
from vaex.figures.sheet import beside, blank, framed, grid, paste, text
from vaex.model import Autoencoder

# Of matplotlib's viridis, at even steps: light is large.
VIRIDIS = (
    *((68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140)),
    *((40, 174, 128), (94, 201, 98), (173, 220, 48), (253, 231, 37)),
)


def why_no_scale(model: Autoencoder) -> str | None:
    with evaluating(model):
        z = torch.zeros(1, model.latent_dim, device=model.device)
        distribution = model.decode(z, torch.zeros(1, dtype=torch.int64, device=model.device))
    scale = getattr(distribution, "scale", None)
    name = type(model.likelihood).__name__
    if scale is None:
        return f"needs a likelihood with a scale, and {name} has none"
    if scale.numel() == 1 and scale.ndim < 4:
        value = f"{scale.item():.3g}"
        return f"needs a scale that varies, and this run's is {value} everywhere: take likelihood/scale=per_pixel"
    return None


def scales(model: Autoencoder, images: Images, to_float: ToFloat, count: int = 12) -> Tensor:
    """The first `count` images, their reconstructions, and below each the map of its scale with one legend for all.

    The scale is in units of x in [0, 1]; of several channels the mean is shown. A scale for each image as a whole is
    written as a number.
    """
    shown = images[:count].to(model.device)
    with evaluating(model), fixed_noise(model.device):
        x = to_float(shown.pixels)
        distribution = model.decode(model.encode(x, shown.labels).mean, shown.labels)
        scale = getattr(distribution, "scale").cpu()  # noqa: B009
    pair = torch.stack([x, distribution.mean]).cpu()
    if scale.shape[-2:] == (1, 1):
        numbers = [f"{value:.3f}" for value in scale.flatten().tolist()]
        sheet = grid(pair, rows=["image", "mean"], columns=numbers, columns_below=True)
        name = text("scale")
        paste(sheet, name, sheet.shape[1] - name.shape[1], text("image").shape[2], align=1)
        return framed(sheet)
    maps = scale.expand(len(x), *scale.shape[-3:]).mean(1, keepdim=True)
    low, high = maps.min().item(), maps.max().item()
    colours = colour((maps.log() - math.log(low)) / max(math.log(high / low), 1e-6))
    pair = pair.expand(2, len(x), 3, *x.shape[2:])
    sheet = grid(torch.cat([pair, colours[None]]), rows=["image", "mean", "scale"])
    return framed(beside(sheet, _legend(low, high, sheet.shape[1])))


def colour(values: Tensor) -> Tensor:
    """[N, 1, H, W] in [0, 1] -> RGB [N, 3, H, W] in [0, 1]."""
    anchors = torch.tensor(VIRIDIS) / 255
    place = values[:, 0].clamp(0, 1) * (len(anchors) - 1)
    below = place.floor().long().clamp(max=len(anchors) - 2)
    part = (place - below)[..., None]
    return torch.lerp(anchors[below], anchors[below + 1], part).permute(0, 3, 1, 2)


def _legend(low: float, high: float, height: int) -> Tensor:
    """A bar, logarithmic, with the numbers at its ends and between them."""
    bar_height = height - 20
    ramp = colour(torch.linspace(1, 0, bar_height).view(1, 1, -1, 1).expand(1, 1, bar_height, 16))[0]
    bar = blank(height, 80).repeat(3, 1, 1)
    bar[:, 10 : 10 + bar_height, :16] = (ramp * 255).round().to(torch.uint8)
    for place in torch.linspace(0, 1, 5).tolist():
        value = low ** (1 - place) * high**place
        label = text(f"{value:.2g}")
        paste(bar, label, round(10 + (1 - place) * bar_height - label.shape[1] / 2), 22)
    return bar
