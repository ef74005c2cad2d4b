"""Images decoded from a dataset's files, kept in the cache folder so that later runs map them at once."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from vaex.data.cache import cache_folder
from vaex.data.dataset import Images
from vaex.data.published import digest

PARTS = ("train-pixels", "train-labels", "test-pixels", "test-labels")


def cached_arrays(key: str, files: Sequence[Path], decode: Callable[[], tuple[Images, Images]]) -> tuple[Images, Images]:
    """What `decode` makes of the files, training and test images, without decoding the same files again.

    A folder that can't be written or an array cut short in it costs only the time.

    Args:
        key: names the dataset and every option that changes the result.
        files: known by their path, size and time of last change.
        decode: reads them.
    """
    paths = [cache_folder() / "arrays" / digest(key, files) / f"{part}.npy" for part in PARTS]
    with contextlib.suppress(OSError, ValueError, EOFError):
        # "c", because torch warns of arrays that can't be written to
        train, train_labels, test, test_labels = (torch.from_numpy(np.load(path, mmap_mode="c")) for path in paths)
        return Images(train, train_labels), Images(test, test_labels)
    parts = decode()
    tensors = [tensor for part in parts for tensor in (part.pixels, part.labels)]
    with contextlib.suppress(OSError):
        for path, tensor in zip(paths, tensors, strict=True):
            _save(path, tensor.numpy())
    return parts


def _save(path: Path, array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, array)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
