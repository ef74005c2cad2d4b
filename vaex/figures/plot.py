"""Plots drawn by matplotlib, as sheets in the style of the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vaex.figures.sheet import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRAY = f"#{INK:02x}{INK:02x}{INK:02x}"
STYLE: Any = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), GRAY),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top", "legend.frameon"), False),
    "font.size": 10,
    "text.parse_math": False,  # titles and classes have names of folders
}


def needs_matplotlib(subject: object = None) -> str | None:
    return None if find_spec("matplotlib") else "needs matplotlib; pip install 'vaex-autoencoders[plots]'"


@contextmanager
def styled_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches, 100 pixels each, to be filled and rendered inside the `with` block."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), dpi=100, layout="constrained")


def render(figure: Figure) -> Tensor:
    """The pixels of a figure, uint8 [3, height, width]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3]).permute(2, 0, 1)
