"""The idx file format of MNIST and its successors."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


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
