"""Sprites: images of one shape on black, one for each combination of factors. After dSprites, Matthey et al. 2017.

Unlike in dSprites, the three shapes have the same area (within 0.5 %), so size doesn't reveal the shape, and no
rotation occurs twice, as 0 and 2π do in dSprites.

All arithmetic on pixels uses integers, so the images are the same on every machine.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaex.data.cache import cache_folder, map_array, new_file
from vaex.data.dataset import Factor, Images, Source

SHAPES = ("square", "ellipse", "heart")

# sRGB of six hues, 60° apart at lightness 0.72 and chroma 0.14 in OKLCH, in an order that keeps the first few distinct.
PALETTE = (
    (233, 136, 77),  # orange
    (19, 192, 151),  # green
    (164, 148, 246),  # violet
    (22, 179, 235),  # blue
    (229, 125, 177),  # pink
    (170, 172, 49),  # yellow
)

# At scale 1, in tenths of a pixel of an image 64 wide. No point is farther than 16.5 pixels from the centroid.
HALF_SIDE = 105
SEMI_AXES = (156, 90)
LOBE_RADIUS = 72  # the heart is a kite with a right angle on each side and half a disc on each upper edge

SAMPLES = 8  # per pixel, along each axis
ONE = 2**12  # cosines and sines are multiples of 1/ONE
SEED = 20_170_607  # of the split. Changing it changes every number ever measured on sprites.
LARGEST = 2**34  # bytes of a grid
CHUNK = 256  # images drawn at a time
VERSION = 1  # of the drawings, in the names of cached files


def sprites(
    *, size: int, antialias: bool, scales: int, rotations: int, positions: int, colors: int, test: int
) -> Source:
    """Images [C, size, size] of a square, an ellipse or a heart, with a random split that is always the same.

    The factors are `color` (if `colors` > 0), `shape`, `scale` (evenly from 0.5 to 1), `rotation` (k/`rotations` of a
    full turn, counterclockwise), `x` (from the left) and `y` (from the top), both in steps of whole pixels. Labels are
    the shapes. A square looks the same after a quarter turn and an ellipse after half a turn: if `rotations` is
    divisible by 4, each picture of a square occurs four times and each of an ellipse twice, as in dSprites.

    The images are mapped from a file in the cache folder, one for each choice of options except `test`, or held in
    memory if that file can't be written.

    Args:
        size: pixels along an edge, an even number from 16 to 128.
        antialias: whether a pixel's brightness is the share that the sprite covers, in 64 steps; otherwise a pixel is
            lit if at least half of it is covered, and gray images are binary.
        scales, rotations: number of values.
        positions: number of values along each of x and y, at most size / 2.
        colors: 0 for gray images with one channel, or the number of hues of images with three.
        test: number of test images.

    Raises:
        ValueError: an option is out of range.
    """
    for name, value, low, high in (
        ("size", size, 16, 128),
        ("scales", scales, 1, None),
        ("rotations", rotations, 1, None),
        ("positions", positions, 1, size // 2),
        ("colors", colors, 0, len(PALETTE)),
    ):
        if value < low or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ValueError(f"dataset.source.{name}={value}: must be {bounds}")
    if size % 2:
        raise ValueError(f"dataset.source.size={size}: must be even")
    grid = _Grid(size, antialias, scales, rotations, positions, colors)
    total, *image_shape = grid.pixels_shape
    if not 0 < test < total:
        raise ValueError(f"dataset.source.test={test}: must be from 1 to {total - 1}, the number of images less 1")
    if total * math.prod(image_shape) > LARGEST:
        raise ValueError(
            f"dataset.source: {total:,} images of size={size} are more than {LARGEST >> 30} GiB; "
            "reduce scales, rotations, positions or colors"
        )

    order = _permutation(total)
    factors = torch.from_numpy(np.stack(np.unravel_index(order, grid.values), axis=1))
    labels = factors[:, grid.names.index("shape")].clone()
    images = Images(_load_or_draw(grid, order), labels, factors)
    return Source(
        train=images[: total - test],
        test=images[total - test :],
        classes=len(SHAPES),
        class_names=SHAPES,
        factors=tuple(
            Factor(name, values, ordered=name not in ("color", "shape"))
            for name, values in zip(grid.names, grid.values, strict=True)
        ),
    )


def _permutation(count: int) -> NDArray[np.int64]:
    """A fixed random permutation of 0..count-1. Unlike numpy's own, it can't change with the version of numpy.

    The raw output of PCG64 is fixed. The low bits of each sorted key are the index, so no two keys are equal.
    """
    bits = np.uint64(count.bit_length())
    keys = np.random.PCG64(SEED).random_raw(count) >> bits << bits | np.arange(count, dtype=np.uint64)
    return (np.sort(keys) & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)


@dataclass(frozen=True)
class _Grid:
    """All combinations of factors. A stamp is a sprite without its position, centered in the smallest square for it."""

    size: int
    antialias: bool
    scales: int
    rotations: int
    positions: int
    colors: int

    @property
    def names(self) -> tuple[str, ...]:
        return (*(["color"] if self.colors else []), "shape", "scale", "rotation", "x", "y")

    @property
    def values(self) -> tuple[int, ...]:
        """Number of values of each factor. The last factor varies fastest from row to row of the grid."""
        gray = (len(SHAPES), self.scales, self.rotations, self.positions, self.positions)
        return (self.colors, *gray) if self.colors else gray

    @property
    def pixels_shape(self) -> tuple[int, int, int, int]:
        return math.prod(self.values), 3 if self.colors else 1, self.size, self.size

    @property
    def stamp_size(self) -> int:
        return self.size // 2 + 1

    def coverage(self, shape: int, scale: int, rotation: int) -> NDArray[np.int64]:
        """How many of the SAMPLES² samples in each pixel lie in the sprite: [stamp_size, stamp_size]."""
        count = self.stamp_size * SAMPLES
        sample = 2 * np.arange(count, dtype=np.int64) + 1 - count  # from the center; samples are 2 units apart
        angle = 2 * math.pi * rotation / self.rotations
        cos, sin = round(ONE * math.cos(angle)), round(ONE * math.sin(angle))
        # Coordinates of each sample along the sprite's axes, with y upwards. Below 2²², so squares are exact.
        x = cos * sample - sin * sample[:, None]
        y = -sin * sample - cos * sample[:, None]

        steps = self.scales - 1
        numerator, denominator = (steps + scale, 2 * steps) if steps else (1, 1)

        def length(tenths: int) -> int:
            return tenths * self.size * numerator * 2 * SAMPLES * ONE // (640 * denominator)

        if SHAPES[shape] == "square":
            half = length(HALF_SIDE)
            inside = (abs(x) <= half) & (abs(y) <= half)
        elif SHAPES[shape] == "ellipse":
            a, b = SEMI_AXES
            inside = (b * x) ** 2 + (a * y) ** 2 <= (b * length(a)) ** 2
        else:
            radius = length(LOBE_RADIUS)
            x, y = abs(x), y - 179 * radius // 400  # origin between the lobes' centers, at ±4/5 of a radius
            inside = (15 * x + 20 * y <= 12 * radius) & (20 * x - 15 * y <= 41 * radius)
            inside |= (5 * x - 4 * radius) ** 2 + (5 * y) ** 2 <= (5 * radius) ** 2
        blocks = inside.reshape(self.stamp_size, SAMPLES, self.stamp_size, SAMPLES)
        covered: NDArray[np.int64] = blocks.sum(axis=(1, 3), dtype=np.int64)
        return covered

    def canvases(self, stamps: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Stamps on canvases [B, C, edge, edge], so large that each image is a window: edge = 2 · size - stamp_size."""
        full = SAMPLES**2
        peaks = np.array(PALETTE[: self.colors] or [[255]], dtype=np.int64)
        margin = self.size - self.stamp_size
        edge = self.size + margin
        canvases = np.zeros((len(stamps), peaks.shape[1], edge, edge), dtype=np.uint8)
        for out, stamp in zip(canvases, stamps, strict=True):
            color, *factors = np.unravel_index(stamp, (len(peaks), len(SHAPES), self.scales, self.rotations))
            covered = self.coverage(*map(int, factors))
            if not self.antialias:
                covered = np.where(2 * covered >= full, full, 0)
            lit = (peaks[color][:, None, None] * covered + full // 2) // full
            out[:, margin : self.size, margin : self.size] = lit
        return canvases

    def cut(
        self, canvases: NDArray[np.uint8], canvas: NDArray[np.int64], position: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Cut image b out of canvas[b], at position[b] = x · positions + y: [B, C, size, size]."""
        margin = self.size - self.stamp_size
        step = margin // max(1, self.positions - 1)
        first = (margin - step * (self.positions - 1)) // 2
        x, y = first + step * np.stack(np.divmod(position, self.positions))
        windows = np.lib.stride_tricks.sliding_window_view(canvases, (self.size, self.size), axis=(2, 3))
        images: NDArray[np.uint8] = windows.transpose(0, 2, 3, 1, 4, 5)[canvas, margin - y, margin - x]
        return images

    def draw(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Some rows of the grid: [B, C, size, size]."""
        stamp, position = np.divmod(rows, self.positions**2)
        stamps, canvas = np.unique(stamp, return_inverse=True)
        return self.cut(self.canvases(stamps), canvas, position)

    def draw_all(self, order: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """All rows in the given order, CHUNK images at a time."""
        canvases = self.canvases(np.arange(len(order) // self.positions**2))
        for start in range(0, len(order), CHUNK):
            yield self.cut(canvases, *np.divmod(order[start : start + CHUNK], self.positions**2))


def _load_or_draw(grid: _Grid, order: NDArray[np.int64]) -> Tensor:
    """Map the images from their cached file, drawing it first if needed; draw into memory if it can't be written."""
    look = "smooth" if grid.antialias else "binary"
    numbers = f"{grid.size}-{look}-{grid.scales}-{grid.rotations}-{grid.positions}-{grid.colors}"
    path = cache_folder() / f"sprites-{VERSION}-{numbers}.uint8"
    shape = grid.pixels_shape
    with contextlib.suppress(OSError, ValueError):
        pixels = map_array(path, shape)
        some = np.linspace(0, len(order) - 1, 16).astype(np.int64)  # images that must be what is drawn now
        if path.stat().st_size == pixels.numel() and np.array_equal(pixels[some], grid.draw(order[some])):
            return pixels
    with contextlib.suppress(OSError):
        with new_file(path) as file:
            for images in grid.draw_all(order):
                file.write(images.data)
        return map_array(path, shape)
    pixels = torch.empty(shape, dtype=torch.uint8)
    for rows, images in zip(torch.split(pixels, CHUNK), grid.draw_all(order), strict=True):
        rows.copy_(torch.from_numpy(images))
    return pixels
