"""The idx file format of MNIST and its successors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaex.data.dataset import Images

FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def parse_idx(content: bytes, name: str | Path, dimensions: int) -> Tensor:
    """Parse an uncompressed idx file of unsigned bytes: a uint8 tensor of its shape.

    Args:
        name: names the file in error messages.
        dimensions: 3 for images, 1 for labels.

    Raises:
        ValueError: the bytes aren't such a file, or the file is incomplete.
    """
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        raise ValueError(
            f"{name}: starts with {content[:4].hex()}, not {magic.hex()}: not an idx file of this kind; replace it"
        )
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ValueError(f"{name}: ends inside its header; replace it")
    shape = np.frombuffer(content[4:header], dtype=">u4").astype(int)
    if len(content) - header != shape.prod():
        raise ValueError(
            f"{name}: holds {len(content) - header} bytes, but its header announces {shape.prod()}; replace it"
        )
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy())


def parse_splits(contents: Sequence[bytes], names: Sequence[str | Path]) -> tuple[Images, Images]:
    """Training and test images from four uncompressed idx files in the order of FILES.

    Raises:
        ValueError: as parse_idx, or images and labels differ in number.
    """
    splits = []
    for index in (0, 2):
        pixels = parse_idx(contents[index], names[index], dimensions=3)
        labels = parse_idx(contents[index + 1], names[index + 1], dimensions=1)
        if len(pixels) != len(labels):
            raise ValueError(
                f"{names[index]}: {len(pixels)} images, but {len(labels)} labels in {names[index + 1]}; "
                "use files of one dataset"
            )
        splits.append(Images(pixels.unsqueeze(1), labels.to(torch.int64)))
    return splits[0], splits[1]
