"""Uint8 images with labels, their split, and the conversion of a batch to float32 in [0, 1]."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Binarize = Literal["none", "threshold", "static", "dynamic"]
Dequantize = Literal["none", "uniform"]
Resident = bool | Literal["auto"]

# Seeds of the fixed binarisation. Changing one changes every number ever measured on static data.
STATIC_SEEDS = {"train": 20_131_220, "test": 20_150_901}


@dataclass(frozen=True)
class Images:
    """Labelled images: `pixels` uint8 [N, C, H, W], `labels` int64 [N], and the factors they were made from, if known.

    `pixels` may be mapped from a file and larger than memory. `factors` is int64 [N, F], the index of each factor's
    value.
    """

    pixels: Tensor
    labels: Tensor
    factors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice | Tensor) -> "Images":
        return Images(self.pixels[rows], self.labels[rows], None if self.factors is None else self.factors[rows])

    def to(self, device: torch.device) -> "Images":
        factors = None if self.factors is None else self.factors.to(device)
        return Images(self.pixels.to(device), self.labels.to(device), factors)


@dataclass(frozen=True)
class Factor:
    """Something that varies between images on its own: `values` of them, in an order or, like shapes, in none."""

    name: str
    values: int
    ordered: bool


@dataclass(frozen=True)
class Source:
    """What a dataset's files hold, before vaex cuts a validation split off the training images.

    `classes` is the number of labels, 0 for images without any; `class_names` are theirs where they have some.
    """

    train: Images
    test: Images
    classes: int
    class_names: tuple[str, ...] = ()
    factors: tuple[Factor, ...] = ()


class Dataset:
    """A source, split and with its rule for making floats.

    Args:
        source: the training and test images.
        validation: number of images cut from the end of the training set; or a fraction of it, below 1.
        binarize: `none`; `threshold` (x >= 0.5); `static` (each pixel drawn once with probability x, the same on every
            machine); `dynamic` (drawn anew each time an image is used).
        dequantize: `none` (x = k/255) or `uniform` (x = (k+u)/256, u ~ U[0, 1)), under which densities are comparable.
        resident: whether the images are kept on the device, rather than streamed to it: True, False, or `auto`, if they
            fit.

    Raises:
        ValueError: an option or a size that makes no sense.
    """

    def __init__(
        self,
        *,
        source: Source,
        validation: int | float,
        binarize: Binarize,
        dequantize: Dequantize,
        resident: Resident = "auto",
    ) -> None:
        for name, value, choices in (
            ("binarize", binarize, get_args(Binarize)),
            ("dequantize", dequantize, get_args(Dequantize)),
        ):
            if value not in choices:
                raise ValueError(f"dataset.{name}={value}: must be one of {', '.join(choices)}")
        if binarize != "none" and dequantize != "none":
            raise ValueError(f"dataset.dequantize={dequantize}: binary pixels have no noise to add; set it to none")
        if resident not in (True, False, "auto"):
            raise ValueError(f"dataset.resident={resident}: must be auto, true or false")
        total = len(source.train)
        if not 0 <= validation < total or (validation > 1 and validation % 1):
            raise ValueError(
                f"dataset.validation={validation}: must be from 0 to {total - 1}, the training images less 1, or a "
                "fraction below 1"
            )
        cut = total - (int(validation) if validation >= 1 else min(round(validation * total), total - 1))

        train, test = source.train, source.test
        if binarize == "threshold":
            train, test = (replace(part, pixels=_threshold(part.pixels)) for part in (train, test))
        elif binarize == "static":
            train, test = (
                replace(part, pixels=draw_binary(part.pixels, STATIC_SEEDS[name]))
                for name, part in (("train", train), ("test", test))
            )
        self.train, self.validation = train[:cut], train[cut:]
        self.test = test
        self.source = source
        self.classes = source.classes
        self.binarize = binarize
        self.dequantize = dequantize
        self.resident: Resident = resident

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width

    @cached_property
    def binary(self) -> bool:
        """Whether every pixel the model sees is 0 or 1."""
        if self.binarize != "none":
            return True
        if self.dequantize != "none":
            return False
        return all(_has_only_0_and_255(part.pixels) for part in (self.train, self.validation, self.test))

    def to_float(self, pixels: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> float32 in [0, 1], on the same device; draws noise where the options ask."""
        if self.dequantize == "uniform":
            return dequantize(pixels)
        x = pixels.to(torch.float32) / 255
        if self.binarize == "dynamic":
            return (torch.rand_like(x) < x).to(torch.float32)
        return x


def dequantize(pixels: Tensor) -> Tensor:
    """Uniform dequantization: uint8 k -> (k+u)/256 in (0, 1), float32, u ~ U[0, 1), on the same device."""
    x = pixels.to(torch.float32)
    # Rounding gives an exact 0 or 1 about once in a test split, and a density may be infinite there.
    return ((x + torch.rand_like(x)) / 256).clamp(2**-33, 1 - 2**-24)


def draw_binary(pixels: Tensor, seed: int, chunk: int = 4096) -> Tensor:
    """Draw each pixel once as 255 with probability k/255, else 0: uint8 [N, ...] -> uint8 [N, ...].

    PCG64's raw output is a fixed sequence of integers, and the comparison is in integers: the draw is identical
    everywhere.
    """
    stream = np.random.PCG64(seed)
    drawn = torch.empty_like(pixels)
    for start in range(0, len(pixels), chunk):
        part = pixels[start : start + chunk].numpy()
        uniform = (stream.random_raw(part.size) >> np.uint64(32)).reshape(part.shape)
        below = (uniform * np.uint64(255)) >> np.uint64(32)  # uniform on 0..254
        drawn[start : start + chunk] = torch.from_numpy(np.where(below < part, np.uint8(255), np.uint8(0)))
    return drawn


def _threshold(pixels: Tensor) -> Tensor:
    return (pixels >= 128).to(torch.uint8) * 255


def _has_only_0_and_255(pixels: Tensor) -> bool:
    """Looks at no more images than it takes to find another value."""
    return all(int((part + 1).max()) <= 1 for part in torch.split(pixels, 1000) if len(part))  # 255 + 1 wraps to 0
