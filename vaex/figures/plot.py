"""Plots by matplotlib, as sheets that look like the others. It comes with `pip install 'vaex-autoencoders[plots]'`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vaex.figures.sheet import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = f"#{INK:02x}{INK:02x}{INK:02x}"
STYLE: Any = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "legend.frameon": False,
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


def why_no_plots() -> str | None:
    return None if find_spec("matplotlib") else "needs matplotlib; pip install 'vaex-autoencoders[plots]'"


def style() -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(STYLE)


def rendered(figure: Figure) -> Tensor:
    """uint8 [3, height, width]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.array(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels).permute(2, 0, 1)
