"""Sprites: one shape on black, every combination of its factors once, drawn here. After dSprites, Matthey et al. 2017.

Unlike dSprites, the three shapes have the same area (to 0.5 %), so that size says nothing of shape, and no rotation is
there twice: dSprites holds both 0 and 2π.

All arithmetic on pixels is in integers, so the images are the same on every machine.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vaex.data.cache import cache_folder
from vaex.data.dataset import Factor, Images, Source

SHAPES = ("square", "ellipse", "heart")

# sRGB of six hues 60° apart at lightness 0.72 and chroma 0.14 in OKLCH; the first few are far apart too.
PALETTE = (
    (233, 136, 77),  # orange
    (19, 192, 151),  # green
    (164, 148, 246),  # violet
    (22, 179, 235),  # blue
    (229, 125, 177),  # pink
    (170, 172, 49),  # yellow
)

# At scale 1, in tenths of a pixel of an image 64 wide. No point is further than 16.5 pixels from the centroid.
HALF_SIDE = 105
SEMI_AXES = (156, 90)
LOBE_RADIUS = 72  # of the heart: a kite with half a disc on each of its upper sides, which meet the lower ones squarely

SAMPLES = 8  # to a pixel, along each axis
ONE = 2**12  # cosines and sines are multiples of 1/ONE
SEED = 20_170_607  # of the split. Changing it changes every number ever measured on sprites.
LARGEST = 2**34  # bytes
VERSION = 1  # of the drawing, in the names of cached files


def sprites(
    *, size: int, antialias: bool, scales: int, rotations: int, positions: int, colors: int, test: int
) -> Source:
    """Images [C, size, size] of a square, an ellipse or a heart, split at random, the split being always the same.

    Factors, each image's as indices: `color` (with `colors` > 0), `shape`, `scale` (0.5 to 1, evenly), `rotation`
    (k/`rotations` of a full turn, counterclockwise), `x` (from the left) and `y` (from the top), both in steps of whole
    pixels. The square looks the same after a quarter turn and the ellipse after half of one: where `rotations` can be
    divided by 4, each picture of a square is there four times and each of an ellipse twice, as in dSprites. Labels are
    the shapes.

    The images are laid out in the cache folder, in one file for each choice of options but `test`, and mapped from
    there. Where it can't be written they are kept in memory.

    Args:
        size: pixels along an edge, an even number from 16 to 128.
        antialias: whether a pixel is as bright as its share of the sprite, in 64 steps; otherwise it is lit if at
            least half of it is covered. Grey images are then binary.
        scales, rotations: number of values.
        positions: number of values along each of x and y, at most size / 2.
        colors: 0 for grey images with one channel, or the number of hues of images with three.
        test: number of test images.

    Raises:
        ValueError: an option out of its range.
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
            "take fewer scales, rotations, positions or colors"
        )

    order = _permutation(total)
    pixels = torch.from_numpy(_laid_out(grid, order))
    factors = torch.from_numpy(np.stack(np.unravel_index(order, grid.values), axis=1))
    labels = factors[:, grid.names.index("shape")].clone()
    images = Images(pixels, labels, factors)
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
    """Unlike numpy's own, the same in each of its versions: PCG64's raw output is fixed, and no two keys are equal."""
    bits = np.uint64(count.bit_length())
    keys = np.random.PCG64(SEED).random_raw(count) >> bits << bits | np.arange(count, dtype=np.uint64)
    return (np.sort(keys) & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)


@dataclass(frozen=True)
class _Grid:
    """What `sprites` draws. A stamp is a sprite without its position, in the middle of a square it just fits in."""

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
        """Of each factor. A row of the grid counts the last factor fastest."""
        own = (len(SHAPES), self.scales, self.rotations, self.positions, self.positions)
        return (self.colors, *own) if self.colors else own

    @property
    def pixels_shape(self) -> tuple[int, int, int, int]:
        return math.prod(self.values), 3 if self.colors else 1, self.size, self.size

    @property
    def stamp_size(self) -> int:
        return self.size // 2 + 1

    def coverage(self, shape: int, scale: int, rotation: int) -> NDArray[np.int64]:
        """How many of a pixel's SAMPLES² samples lie in the sprite: [stamp_size, stamp_size]."""
        count = self.stamp_size * SAMPLES
        at = 2 * np.arange(count, dtype=np.int64) + 1 - count  # from the middle, in half distances between samples
        angle = 2 * math.pi * rotation / self.rotations
        cos, sin = round(ONE * math.cos(angle)), round(ONE * math.sin(angle))
        # Of each sample in the sprite's own axes, where y goes up. Less than 2²² in size, so squares are exact.
        x = cos * at - sin * at[:, None]
        y = -sin * at - cos * at[:, None]

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
            x, y = abs(x), y - 179 * radius // 400  # from between the centres of the lobes, ±4/5 of the radius apart
            inside = (15 * x + 20 * y <= 12 * radius) & (20 * x - 15 * y <= 41 * radius)
            inside |= (5 * x - 4 * radius) ** 2 + (5 * y) ** 2 <= (5 * radius) ** 2
        blocks = inside.reshape(self.stamp_size, SAMPLES, self.stamp_size, SAMPLES)
        covered: NDArray[np.int64] = blocks.sum(axis=(1, 3), dtype=np.int64)
        return covered

    def canvases(self, stamps: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Each stamp in so much black that every image of it is a window: [B, C, 2 · size - stamp_size, the same]."""
        full = SAMPLES**2
        peaks = np.array(PALETTE[: self.colors] or [[255]], dtype=np.int64)
        margin = self.size - self.stamp_size
        edge = self.size + margin
        drawn = np.zeros((len(stamps), peaks.shape[1], edge, edge), dtype=np.uint8)
        for out, stamp in zip(drawn, stamps, strict=True):
            color, *own = np.unravel_index(stamp, (len(peaks), len(SHAPES), self.scales, self.rotations))
            covered = self.coverage(*map(int, own))
            if not self.antialias:
                covered = np.where(2 * covered >= full, full, 0)
            lit = (peaks[color][:, None, None] * covered + full // 2) // full
            out[:, margin : self.size, margin : self.size] = lit
        return drawn

    def images(
        self, canvases: NDArray[np.uint8], which: NDArray[np.int64], position: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """[B, C, size, size], of a canvas each, with position = x · positions + y."""
        margin = self.size - self.stamp_size
        step = margin // max(1, self.positions - 1)
        first = (margin - step * (self.positions - 1)) // 2
        x, y = first + step * np.stack(np.divmod(position, self.positions))
        windows = np.lib.stride_tricks.sliding_window_view(canvases, (self.size, self.size), axis=(2, 3))
        found: NDArray[np.uint8] = windows.transpose(0, 2, 3, 1, 4, 5)[which, margin - y, margin - x]
        return found

    def draw(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Some rows of the grid."""
        stamp, position = np.divmod(rows, self.positions**2)
        stamps, which = np.unique(stamp, return_inverse=True)
        return self.images(self.canvases(stamps), which, position)

    def draw_all(self, order: NDArray[np.int64], chunk: int = 256) -> Iterator[NDArray[np.uint8]]:
        """All of them, in that order and in chunks."""
        canvases = self.canvases(np.arange(len(order) // self.positions**2))
        for start in range(0, len(order), chunk):
            yield self.images(canvases, *np.divmod(order[start : start + chunk], self.positions**2))


def _laid_out(grid: _Grid, order: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Mapped from a cached file, which is written if it isn't there; in memory where that can't be."""
    look = "smooth" if grid.antialias else "binary"
    numbers = f"{grid.size}-{look}-{grid.scales}-{grid.rotations}-{grid.positions}-{grid.colors}"
    path = cache_folder() / f"sprites-{VERSION}-{numbers}.uint8"
    with contextlib.suppress(OSError):
        if _sound(path, grid, order):
            return _mapped(path, grid)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                for images in grid.draw_all(order):
                    file.write(images.data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return _mapped(path, grid)
    pixels = np.empty(grid.pixels_shape, dtype=np.uint8)
    start = 0
    for images in grid.draw_all(order):
        pixels[start : start + len(images)] = images
        start += len(images)
    return pixels


def _sound(path: Path, grid: _Grid, order: NDArray[np.int64]) -> bool:
    """Whether the file has the right size and a few images, spread over it, are what is drawn now."""
    if path.stat().st_size != math.prod(grid.pixels_shape):
        return False
    some = np.linspace(0, len(order) - 1, 16).astype(np.int64)
    return np.array_equal(_mapped(path, grid)[some], grid.draw(order[some]))


def _mapped(path: Path, grid: _Grid) -> NDArray[np.uint8]:
    """What is written into it doesn't reach the file."""
    return np.memmap(path, dtype=np.uint8, mode="c", shape=grid.pixels_shape)
