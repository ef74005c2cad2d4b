"""The scale that the decoder predicts: how large it expects its error to be, for each pixel or image."""

import math

import torch
from torch import Tensor

from vaex.evaluation.split import evaluating
from vaex.figures.figure import FigureKind, Files, Subject
from vaex.figures.sheet import beside, blank, framed, grid, paste, text

# matplotlib's viridis at even steps; light stands for large.
VIRIDIS = (
    *((68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140)),
    *((40, 174, 128), (94, 201, 98), (173, 220, 48), (253, 231, 37)),
)


def needs_varying_scale(subject: Subject) -> str | None:
    model = subject.model
    with evaluating(model):
        z = torch.zeros(1, model.latent_dim, device=model.device)
        scale = model.decode(z, torch.zeros(1, dtype=torch.int64, device=model.device)).scale
    if scale is None:
        return f"needs a likelihood with a scale, and {type(model.likelihood).__name__} has none"
    if scale.numel() == 1 and scale.ndim < 4:
        value = f"{scale.item():.3g}"
        return f"needs a scale that varies, and this run's is {value} everywhere: use likelihood/scale=per_pixel"
    return None


def scale(subject: Subject) -> Files:
    """Test images, their reconstructions, and below these a map of the scale, in units of x in [0, 1].

    The map shows the mean over channels, on a logarithmic range that all maps share. A scale that is the same for a
    whole image is written as a number.
    """
    images = subject.encode(slice(subject.count or 12))
    distribution = subject.model.decode(images.z, images.labels)
    assert distribution.scale is not None
    values = distribution.scale.cpu()
    pair = torch.stack([images.x, distribution.mean]).cpu()
    if values.shape[-2:] == (1, 1):
        numbers = [f"{value:.3f}" for value in values.flatten().tolist()]
        sheet = grid(pair, rows=["image", "mean"], columns=numbers, columns_below=True)
        name = text("scale")
        paste(sheet, name, sheet.shape[1] - name.shape[1], text("image").shape[2], align=1)
        return {"scale.png": framed(sheet)}
    count, _, height, width = images.x.shape
    maps = values.expand(count, *values.shape[-3:]).mean(1, keepdim=True)
    low, high = maps.min().item(), maps.max().item()
    colors = color((maps.log() - math.log(low)) / max(math.log(high / low), 1e-6))
    pair = pair.expand(2, count, 3, height, width)
    sheet = grid(torch.cat([pair, colors[None]]), rows=["image", "mean", "scale"])
    return {"scale.png": framed(beside(sheet, _legend(low, high, sheet.shape[1])))}


def color(values: Tensor) -> Tensor:
    """[N, 1, H, W] in [0, 1] -> RGB [N, 3, H, W] in [0, 1]."""
    anchors = torch.tensor(VIRIDIS) / 255
    position = values[:, 0].clamp(0, 1) * (len(anchors) - 1)
    below = position.floor().long().clamp(max=len(anchors) - 2)
    return torch.lerp(anchors[below], anchors[below + 1], (position - below)[..., None]).permute(0, 3, 1, 2)


def _legend(low: float, high: float, height: int) -> Tensor:
    """A logarithmic color bar with five numbers."""
    bar_height = height - 20
    bar = blank(height, 80).repeat(3, 1, 1)
    ramp = color(torch.linspace(1, 0, bar_height).view(1, 1, -1, 1).expand(-1, -1, -1, 16))[0]
    paste(bar, (ramp * 255).round().to(torch.uint8), 10, 0)
    for position in torch.linspace(0, 1, 5).tolist():
        label = text(f"{low ** (1 - position) * high**position:.2g}")
        paste(bar, label, round(10 + (1 - position) * bar_height - label.shape[1] / 2), 22)
    return bar


SCALE = FigureKind("scale", scale, needs_varying_scale)
