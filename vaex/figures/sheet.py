"""Sheets: images, grids of images with labels, and lines of text, put beside and above each other.

A sheet is uint8 [1 or 3, height, width], with dark gray text on white. Sheets of different sizes and numbers of
channels can be combined.
"""

import math
import unicodedata
from collections.abc import Sequence
from functools import cache
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import pad

BACKGROUND, INK = 255, 64
TEXT = 14  # height of letters in pixels
MARGIN = 14  # pixels around a labeled sheet and between its parts
GAP = 2  # pixels between images
LEGIBLE = 56  # pixels that the longer side of an image has at least


def enlarged(images: Tensor) -> Tensor:
    """float [..., C, H, W] in [0, 1] -> uint8, enlarged by an integer factor so that pixels stay square."""
    factor = math.ceil(LEGIBLE / max(images.shape[-2:]))
    pixels = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def mosaic(pixels: Tensor, columns: int, rows: int | None = None) -> Tensor:
    """uint8 [N, C, H, W] -> one sheet without gaps, filled row by row. By default it has as many rows as it needs."""
    rows = rows or math.ceil(len(pixels) / columns)
    empty = torch.full((rows * columns - len(pixels), *pixels.shape[1:]), BACKGROUND, dtype=torch.uint8)
    cells = torch.cat([pixels, empty]).view(rows, columns, *pixels.shape[1:])  # [rows, columns, C, H, W]
    return cells.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def tile(images: Tensor, columns: int, gap: int = GAP) -> Tensor:
    """float [N, C, H, W] in [0, 1] -> one sheet, filled row by row, with `gap` pixels between and around the images."""
    sheet = mosaic(pad(enlarged(images), (gap, 0, gap, 0), value=BACKGROUND), columns)
    return pad(sheet, (0, gap, 0, gap), value=BACKGROUND)


def text(line: str, size: int = TEXT) -> Tensor:
    """One line of text, uint8 [1, height, width]. The height depends only on the size."""
    font = _font(size)
    ascent, descent = font.getmetrics()
    image = Image.new("L", (max(1, math.ceil(font.getlength(line))), ascent + descent), BACKGROUND)
    ImageDraw.Draw(image).text((0, 0), line, font=font, fill=INK)
    return torch.from_numpy(np.array(image))[None]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def grid(
    images: Tensor,
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    columns_below: bool = False,
    gap: int = GAP,
) -> Tensor:
    """float [R, K, C, H, W] in [0, 1] -> a sheet, with a label left of each row and above (or below) each column."""
    sheet, left = tile(images.flatten(0, 1), images.shape[1], gap), gap
    height, width = enlarged(images[0, 0]).shape[-2:]
    if rows:
        labels = [text(label) for label in rows]
        strip = blank(sheet.shape[1], max(label.shape[2] for label in labels))
        for n, label in enumerate(labels):
            paste(strip, label, gap + n * (height + gap) + (height - label.shape[1]) // 2, strip.shape[2], align=1)
        left += strip.shape[2] + 8
        sheet = beside(strip, sheet, gap=8)
    if columns:
        strip = blank(text("").shape[1], sheet.shape[2])
        for n, name in enumerate(columns):
            paste(strip, text(name), 0, left + n * (width + gap) + width // 2, align=0.5)
        sheet = above(sheet, strip, gap=4) if columns_below else above(strip, sheet, gap=2)
    return sheet


def blank(height: int, width: int) -> Tensor:
    return torch.full((1, height, width), BACKGROUND, dtype=torch.uint8)


def paste(sheet: Tensor, part: Tensor, top: int, x: int, align: float = 0) -> None:
    """Copy `part` into the sheet, its left side (align 0), center (0.5) or right side (1) at x, cut at the edges."""
    left = max(0, min(sheet.shape[2] - part.shape[2], x - round(align * part.shape[2])))
    target = sheet[:, top : top + part.shape[1], left : left + part.shape[2]]
    target.copy_(part[:, : target.shape[1], : target.shape[2]])


def beside(*sheets: Tensor, gap: int = MARGIN) -> Tensor:
    """Sheets side by side, aligned at the top."""
    channels, height = (max(sheet.shape[n] for sheet in sheets) for n in (0, 1))
    parts = [
        pad(sheet.expand(channels, -1, -1), (0, gap, 0, height - sheet.shape[1]), value=BACKGROUND) for sheet in sheets
    ]
    return torch.cat(parts, dim=2)[..., : -gap or None]


def above(*sheets: Tensor, gap: int = MARGIN) -> Tensor:
    """Sheets one above the other, aligned at the left."""
    return beside(*(sheet.transpose(1, 2) for sheet in sheets), gap=gap).transpose(1, 2)


def framed(sheet: Tensor) -> Tensor:
    """The sheet with a margin around it."""
    return pad(sheet, (MARGIN,) * 4, value=BACKGROUND)


def writable(name: str, otherwise: str) -> str:
    """The name in letters that the font has, or `otherwise` if no letter remains."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().strip()
    return plain or otherwise


def to_image(sheet: Tensor) -> Image.Image:
    array = sheet.permute(1, 2, 0).numpy()
    return Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)


def encode_png(sheet: Tensor) -> bytes:
    buffer = BytesIO()
    to_image(sheet).save(buffer, format="PNG")
    return buffer.getvalue()


def encode_gif(sheets: Sequence[Tensor], milliseconds: int) -> bytes:
    """An animation that repeats forever. The sheets are of one size, and each is visible for so many milliseconds."""
    # 52 levels of gray (or of each color), white among them, take half the space of 256.
    frames = [to_image((sheet.float() / 5).round().mul(5).to(torch.uint8)) for sheet in sheets]
    buffer = BytesIO()
    frames[0].save(
        buffer, format="GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, optimize=False
    )
    return buffer.getvalue()
