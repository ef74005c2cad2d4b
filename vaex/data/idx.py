"""The idx format, in which MNIST and its successors are published."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def parse_idx(content: bytes, name: str | Path, dimensions: int) -> Tensor:
    """An uncompressed idx file of unsigned bytes -> uint8 tensor of its shape.

    Raises:
        ValueError: it is not of this kind, or not whole; `name` says which.
    """
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        raise ValueError(f"{name}: starts with {content[:4].hex()}, not {magic.hex()}: not an idx file of this kind")
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ValueError(f"{name}: ends inside its header; replace it")
    shape = np.frombuffer(content[4:header], dtype=">u4").astype(int)
    if len(content) - header != shape.prod():
        raise ValueError(f"{name}: holds {len(content) - header} bytes, its header promises {shape.prod()}; replace it")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy())
