"""The interface of a dataset: a function that returns a `Source`, and `Dataset`, which splits it and makes floats.

A dataset of your own is a function `(*, **options) -> Source` that a YAML file names:

    _target_: vaex.data.dataset.Dataset
    source:
      _target_: mypackage.shapes  # called with the other keys below `source`: def shapes(*, root: str) -> Source
      root: /data/shapes
    validation: 1000
    binarize: none
    dequantize: none

The function raises ValueError for a bad option or file and OSError for a missing one, with a one-line message that has
the key (dataset.source.root=…), the value and the remedy. It returns the same images in the same order each time:
`validation` is cut from the end of the training images, and a run that resumes relies on the order.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vaex.data.noise import uniform_like

Binarize = Literal["none", "threshold", "static", "dynamic"]
Dequantize = Literal["none", "uniform"]
Resident = bool | Literal["auto"]
Identity = Mapping[str, int | str]  # see Images.identity and Dataset.identity

# Seeds of the static binarization. Changing one changes every number ever measured on static data.
STATIC_SEEDS = {"train": 20_131_220, "test": 20_150_901}


@dataclass(frozen=True)
class Images:
    """Images with their labels. All tensors have N rows and lie on one device, the CPU in a `Source`.

    Attributes:
        pixels: uint8 [N, C, H, W], 0 is black. They may be mapped from a file and larger than memory.
        labels: int64 [N], from 0 to the number of classes less 1; zeros for images without labels.
        factors: int64 [N, F], the index of each factor's value, from 0; None if the factors are not known.
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

    @cached_property
    def identity(self) -> Identity:
        """What tells these images from others: their number, and the SHA-256 of the pixels and of the labels.

        The labels are hashed as little-endian int64. Hashing takes about a second for each gigabyte.
        """
        pixels, labels = self.pixels.cpu().contiguous().numpy(), self.labels.cpu().contiguous().numpy().astype("<i8")
        hashes = {"sha256": pixels, "labels_sha256": labels}
        return {"images": len(self), **{key: hashlib.sha256(array.data).hexdigest() for key, array in hashes.items()}}


@dataclass(frozen=True)
class Factor:
    """A property that varies between images independently of the others, such as the position along x.

    Attributes:
        name: of the factor.
        values: number of its values.
        ordered: whether the values have an order; shapes, for one, have none.
    """

    name: str
    values: int
    ordered: bool


@dataclass(frozen=True)
class Source:
    """What the function of a dataset returns.

    Attributes:
        train: training images, from whose end `Dataset` cuts the validation split.
        test: test images, of the same [C, H, W].
        classes: number of classes, 0 for images without labels.
        class_names: the name of each class, or empty.
        factors: what the columns of `Images.factors` are; empty if the factors are not known.
    """

    train: Images
    test: Images
    classes: int
    class_names: tuple[str, ...] = ()
    factors: tuple[Factor, ...] = ()


class Dataset:
    """A source with its splits (`train`, `validation`, `test`) and the conversion of a batch of pixels to floats.

    Args:
        source: training and test images.
        validation: number of images cut from the end of the training images; or, below 1, the fraction of them.
        binarize: `none`; `threshold` (x >= 0.5); `static` (each pixel sampled once with probability x, with the same
            result on every machine); `dynamic` (sampled again each time an image is used).
        dequantize: `none` (x = k/255) or `uniform` (x = (k+u)/256, u ~ U[0, 1)), which makes densities comparable.
        resident: whether the images are held on the device: True, False (batches are copied there), or `auto`, which
            holds them there if they fit.

    Raises:
        ValueError: an option is invalid, or the source's tensors don't have the shapes and types of `Images`.
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
            raise ValueError(f"dataset.dequantize={dequantize}: binary pixels need no noise; set it to none")
        if resident not in (True, False, "auto"):
            raise ValueError(f"dataset.resident={resident}: must be auto, true or false")
        for part in (source.train, source.test):
            if part.pixels.dtype != torch.uint8 or part.pixels.ndim != 4 or len(part.labels) != len(part.pixels):
                raise ValueError(
                    "dataset.source: must give pixels uint8 [N, C, H, W] and labels [N], not pixels "
                    f"{part.pixels.dtype} {list(part.pixels.shape)} and labels {list(part.labels.shape)}"
                )
        total = len(source.train)
        if not 0 <= validation < total or (validation > 1 and validation % 1):
            raise ValueError(
                f"dataset.validation={validation}: must be a number of images from 0 to {total - 1} (there are {total} "
                "training images), or a fraction below 1"
            )
        cut = total - (int(validation) if validation >= 1 else min(round(validation * total), total - 1))

        train, test = source.train, source.test
        if binarize == "threshold":
            train, test = (replace(part, pixels=_threshold(part.pixels)) for part in (train, test))
        elif binarize == "static":
            train = replace(train, pixels=sample_binary(train.pixels, STATIC_SEEDS["train"]))
            test = replace(test, pixels=sample_binary(test.pixels, STATIC_SEEDS["test"]))
        self.train, self.validation, self.test = train[:cut], train[cut:], test
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

    def identity(self, *splits: Literal["train", "validation", "test"]) -> Identity:
        """The identity of these splits, or of all, under keys such as `train_sha256`."""
        return {
            f"{split}_{key}": value
            for split in splits or ("train", "validation", "test")
            for key, value in getattr(self, split).identity.items()
        }

    @cached_property
    def binary(self) -> bool:
        """Whether every pixel that the model sees is 0 or 1."""
        if self.binarize != "none":
            return True
        if self.dequantize != "none":
            return False
        return all(_is_binary(part.pixels) for part in (self.train, self.validation, self.test))

    def to_float(self, pixels: Tensor) -> Tensor:
        """Convert uint8 [B, C, H, W] to float32 in [0, 1] on the same device, with noise as the options say."""
        if self.dequantize == "uniform":
            return dequantize(pixels)
        x = pixels / 255  # float32
        if self.binarize == "dynamic":
            return (uniform_like(x) < x).to(torch.float32)
        return x


def changed_splits(before: Mapping[str, Any], now: Identity) -> str | None:
    """How the splits differ from those of `before`; None if they are the same.

    Args:
        before: the identity of a run's dataset. Keys that it lacks are not compared: older runs recorded less.
        now: the identity of the dataset as it is now, or a part of it.

    Returns:
        For instance `40 training images instead of 38; other pixels in the test images`.
    """
    changes = []
    for split, name in (("train", "training"), ("validation", "validation"), ("test", "test")):
        differs = {
            part: before[key] != now[key]
            for part in ("images", "sha256", "labels_sha256")
            if (key := f"{split}_{part}") in before and key in now
        }
        if differs.get("images"):
            changes.append(f"{now[f'{split}_images']} {name} images instead of {before[f'{split}_images']}")
        elif differs.get("sha256"):
            changes.append(f"other pixels in the {name} images")
        elif differs.get("labels_sha256"):
            changes.append(f"other labels of the {name} images")
    return "; ".join(changes) or None


def dequantize(pixels: Tensor) -> Tensor:
    """Uniform dequantization: uint8 k -> (k+u)/256 in (0, 1), float32, u ~ U[0, 1), on the same device."""
    x = pixels.to(torch.float32)
    # Rounding gives an exact 0 or 1 about once in a test split, and a density may be infinite there.
    return ((x + uniform_like(x)) / 256).clamp(2**-33, 1 - 2**-24)


def sample_binary(pixels: Tensor, seed: int, chunk: int = 4096) -> Tensor:
    """Sample each pixel once, as 255 with probability k/255, else as 0: uint8 [N, ...] -> uint8 [N, ...].

    The raw output of PCG64 is a fixed sequence of integers and the comparison is one of integers, so the result is the
    same on every machine and with every version of numpy.
    """
    stream = np.random.PCG64(seed)
    binary = torch.empty_like(pixels)
    for start in range(0, len(pixels), chunk):
        levels = pixels[start : start + chunk].numpy()
        uniform = (stream.random_raw(levels.size) >> np.uint64(32)).reshape(levels.shape)
        threshold = (uniform * np.uint64(255)) >> np.uint64(32)  # uniform on 0..254
        binary[start : start + chunk] = torch.from_numpy(np.where(threshold < levels, np.uint8(255), np.uint8(0)))
    return binary


def _threshold(pixels: Tensor) -> Tensor:
    return (pixels >= 128).to(torch.uint8) * 255


def _is_binary(pixels: Tensor) -> bool:
    """Whether all values are 0 or 255. Stops at the first 1,000 images with another value."""
    return all(int((part + 1).max()) <= 1 for part in torch.split(pixels, 1000) if len(part))  # 255 + 1 wraps to 0
