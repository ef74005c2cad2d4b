"""Figures of matplotlib as SVG that takes its text color and fonts from the page around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#0d0d0d"  # replaced by the text color of the page

# Legible on white and on near-black; with the markers, also distinguishable for the color-blind.
COLORS = ("#3b7dd8", "#e07b1f", "#1f9e77", "#c2559d", "#8a6fdf", "#b58900", "#17a2b8", "#d1495b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
RAMP = ("#3b6fd8", "#2b94c4", "#22a08a", "#7d9b2c", "#cf8a1c", "#dd5f2a", "#cf3f5b")  # low to high, equally light

LONG_TITLE, LONGEST_TITLE = 40, 52  # characters that fit above a plot in the usual size, and in a smaller one

STYLE: Any = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top", "legend.frameon"), False),
    "axes.linewidth": 0.8,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 10,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "vaex",
}
FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"


@contextmanager
def panel(title: str, xlabel: str, ylabel: str) -> Iterator[tuple[Figure, Axes]]:
    """A figure of 4.6 × 3.4 inches with one pair of axes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.4))
        # With fixed margins, adjacent panels are aligned, and matplotlib need not draw twice to measure the text.
        axes = figure.add_axes((0.185, 0.27, 0.775, 0.63))  # room for tick labels such as −0.025
        axes.set(xlabel=plain(xlabel), ylabel=plain(ylabel))
        if len(title) > LONGEST_TITLE:
            title = title[: LONGEST_TITLE - 1] + "…"
        axes.set_title(plain(title), fontsize=11 if len(title) <= LONG_TITLE else 8.5)
        axes.grid(color=INK, alpha=0.12, linewidth=0.8)
        yield figure, axes


def plain(text: str) -> str:
    """The text as matplotlib shows it, without formulas between dollar signs."""
    return text.replace("$", r"\$")


def svg(figure: Figure) -> str:
    """An SVG element to put into a page: without names that could clash, and without addresses."""
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;\"]*", _font, text)  # written by older versions of matplotlib
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # equal in all figures
    text = text.replace('<style type="text/css">*{', '<style type="text/css">svg *{')
    text = text.replace(INK, "currentColor")
    return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[2]}px" + (f"; font-weight: {match[1]}" if match[1] else "")


def standalone(element: str) -> bytes:
    """The same as a file of its own, on white, or on near-black for readers who prefer a dark scheme."""
    style = (
        f"svg{{font-family:{FONTS};color:#333;background:#fff}}"
        "@media(prefers-color-scheme:dark){svg{color:#ddd;background:#16181c}}"
    )
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    start, end, rest = element.replace("<svg", f"<svg {names}", 1).partition(">")
    return f"{start}{end}<style>{style}</style>{rest}".encode()
