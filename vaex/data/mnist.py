"""MNIST, read from its idx files, which are part of the package: nothing is downloaded."""

import zlib
from pathlib import Path

import torch
from torch import Tensor

from vaex.data.cache import decompress
from vaex.data.dataset import Images, Source
from vaex.data.idx import parse_idx

EMBEDDED = Path(__file__).parent / "embedded" / "mnist"


def mnist(*, root: str | None = None) -> Source:
    """60,000 training and 10,000 test images of 28 × 28 grey pixels in ten classes.

    Args:
        root: the folder of the four `.gz` files under their original names; None for the files in the package.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, is no idx file, or images and labels differ in number.
    """
    folder = EMBEDDED if root is None else Path(root).expanduser()
    parts = []
    for name in ("train", "t10k"):
        images = read_idx(folder / f"{name}-images-idx3-ubyte.gz", dimensions=3)
        labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz", dimensions=1)
        if len(images) != len(labels):
            raise ValueError(
                f"{folder}: {len(images)} {name} images but {len(labels)} labels; use files of one dataset"
            )
        parts.append(Images(images.unsqueeze(1), labels.to(torch.int64)))
    return Source(train=parts[0], test=parts[1], classes=10)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read a gzipped idx file of unsigned bytes: a uint8 tensor of its shape. Errors as in `mnist`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; dataset.source.root must hold MNIST's four idx .gz files")
    try:
        content = decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error}); replace it") from error
    return parse_idx(content, path, dimensions)
