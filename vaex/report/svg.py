"""Figures of matplotlib as SVG that takes its ink and its fonts from the page around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#0d0d0d"  # stands for the page's own colour of text

# Legible on white and on near-black, and told apart by the colour-blind, with the markers' help.
COLOURS = ("#3b7dd8", "#e07b1f", "#1f9e77", "#c2559d", "#8a6fdf", "#b58900", "#17a2b8", "#d1495b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
RAMP = ("#3b6fd8", "#2b94c4", "#22a08a", "#7d9b2c", "#cf8a1c", "#dd5f2a", "#cf3f5b")  # low to high, of like lightness

STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "vaex",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"


def why_no_plots() -> str | None:
    return None if find_spec("matplotlib") else "Plots need matplotlib: pip install 'vaex-autoencoders[plots]'"


@contextmanager
def panel(
    title: str, xlabel: str, ylabel: str, width: float = 4.6, height: float = 3.4
) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes, in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        # Fixed margins, with room for a legend below: panels beside each other line up, and nothing is drawn twice.
        axes = figure.add_axes((0.16, 0.27, 0.8, 0.63))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_title(title)
        axes.grid(color=INK, alpha=0.12, linewidth=0.8)
        yield figure, axes


def svg(figure: Figure) -> str:
    """To stand inside a page: no names of its own, no addresses."""
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;\"]*", _font, text)  # as older matplotlibs write it
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # these repeat from figure to figure
    text = text.replace('<style type="text/css">*{', '<style type="text/css">svg *{')
    text = text.replace(INK, "currentColor")
    return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[2]}px" + (f"; font-weight: {match[1]}" if match[1] else "")


def standalone(inner: str) -> bytes:
    """The same as a file of its own, on white or, where the reader prefers it, on near-black."""
    look = (
        f"svg{{font-family:{FONTS};color:#333;background:#fff}}"
        "@media(prefers-color-scheme:dark){svg{color:#ddd;background:#16181c}}"
    )
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    opened = inner.replace("<svg", f"<svg {names}", 1)
    end = opened.index(">") + 1
    return f"{opened[:end]}<style>{look}</style>{opened[end:]}".encode()
