"""Sheets of images: grids with labels, put beside and above each other.

A sheet is uint8 [1 or 3, height, width], dark grey text on white. Sheets of different sizes or channels go together.
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

BACKGROUND, INK = 255, 64
TEXT = 14  # pixels
MARGIN = 14  # around a labelled sheet, and between its parts
GAP = 2  # between images
LEGIBLE = 56  # pixels that the longer side of an image has at least


def enlarged(images: Tensor) -> Tensor:
    """float [..., C, H, W] in [0, 1] -> uint8, by a whole factor, so that pixels stay squares."""
    factor = math.ceil(LEGIBLE / max(images.shape[-2:]))
    pixels = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def tile(images: Tensor, columns: int, gaps_after_rows: int = 1, gap: int = GAP) -> Tensor:
    """float [N, C, H, W] in [0, 1] -> one sheet, filled row by row.

    `gap` pixels separate and surround the images; more separate each `gaps_after_rows` rows.
    """
    pixels = enlarged(images)
    count, channels, height, width = pixels.shape
    rows, wide = math.ceil(count / columns), gap + 8
    tops, top = [], gap
    for row in range(rows):
        tops.append(top)
        top += height + (wide if gaps_after_rows > 1 and (row + 1) % gaps_after_rows == 0 and row + 1 < rows else gap)
    sheet = torch.full((channels, top, gap + columns * (width + gap)), BACKGROUND, dtype=torch.uint8)
    for n in range(count):
        y, x = tops[n // columns], gap + (n % columns) * (width + gap)
        sheet[:, y : y + height, x : x + width] = pixels[n]
    return sheet


def text(line: str, size: int = TEXT) -> Tensor:
    """One line, [1, height, width]; the height depends on the size only."""
    font = _font(size)
    ascent, descent = font.getmetrics()
    image = Image.new("L", (max(1, math.ceil(font.getlength(line))), ascent + descent), BACKGROUND)
    ImageDraw.Draw(image).text((0, 0), line, font=font, fill=INK)
    return torch.from_numpy(np.array(image))[None]


def grid(
    images: Tensor,
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    columns_below: bool = False,
    gap: int = GAP,
) -> Tensor:
    """float [R, K, C, H, W] in [0, 1] -> a sheet, a label at the left of each row and above (or below) each column."""
    sheet, left = tile(images.flatten(0, 1), columns=images.shape[1], gap=gap), gap
    height, width = enlarged(images[0, 0]).shape[-2:]
    if rows:
        labels = [text(label) for label in rows]
        strip = blank(sheet.shape[1], max(label.shape[2] for label in labels))
        for n, name in enumerate(labels):
            paste(strip, name, gap + n * (height + gap) + (height - name.shape[1]) // 2, strip.shape[2], align=1)
        left += strip.shape[2] + 8
        sheet = beside(strip, sheet, gap=8)
    if columns:
        strip = blank(text("").shape[1], sheet.shape[2])
        for n, label in enumerate(columns):
            paste(strip, text(label), 0, left + n * (width + gap) + width // 2, align=0.5)
        sheet = above(sheet, strip, gap=4) if columns_below else above(strip, sheet, gap=2)
    return sheet


def blank(height: int, width: int) -> Tensor:
    return torch.full((1, height, width), BACKGROUND, dtype=torch.uint8)


def paste(sheet: Tensor, part: Tensor, top: int, x: int, align: float = 0) -> None:
    """Put `part` into the sheet with `x` at its left (align 0), its centre (0.5) or its right (1); cut at the edges."""
    left = max(0, min(sheet.shape[2] - part.shape[2], x - round(align * part.shape[2])))
    target = sheet[:, top : top + part.shape[1], left : left + part.shape[2]]
    target.copy_(part[:, : target.shape[1], : target.shape[2]])


def beside(*sheets: Tensor, gap: int = MARGIN) -> Tensor:
    """Side by side, tops in line."""
    channels, height = max(sheet.shape[0] for sheet in sheets), max(sheet.shape[1] for sheet in sheets)
    parts = []
    for sheet in sheets:
        part = torch.full((channels, height, sheet.shape[2]), BACKGROUND, dtype=torch.uint8)
        part[:, : sheet.shape[1]] = sheet
        parts += [part, torch.full((channels, height, gap), BACKGROUND, dtype=torch.uint8)]
    return torch.cat(parts[:-1], dim=2)


def above(*sheets: Tensor, gap: int = MARGIN) -> Tensor:
    """One above the other, left edges in line."""
    return beside(*(sheet.transpose(1, 2) for sheet in sheets), gap=gap).transpose(1, 2)


def framed(sheet: Tensor) -> Tensor:
    """With the margin around it."""
    channels, height, width = sheet.shape
    whole = torch.full((channels, height + 2 * MARGIN, width + 2 * MARGIN), BACKGROUND, dtype=torch.uint8)
    whole[:, MARGIN:-MARGIN, MARGIN:-MARGIN] = sheet
    return whole


def writable(name: str, otherwise: str) -> str:
    """The name in the letters that the font has, or `otherwise` where nothing of it would be left."""
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
    """Frames of one size, each shown so long, over and over."""
    # 52 levels of grey (or of each colour), white among them: half the size of 256.
    frames = [to_image((sheet.float() / 5).round().mul(5).to(torch.uint8)) for sheet in sheets]
    buffer = BytesIO()
    frames[0].save(
        buffer, format="GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, optimize=False
    )
    return buffer.getvalue()


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
