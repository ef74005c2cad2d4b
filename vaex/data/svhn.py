"""Street View House Numbers, cropped digits, Netzer et al. 2011."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vaex.data.arrays import cached_arrays
from vaex.data.dataset import Images, Source
from vaex.data.published import PublishedFile, dataset_folder, obtain, verify

FILES = ("train_32x32.mat", "test_32x32.mat")


def svhn(*, root: str | None, download: bool) -> Source:
    """73,257 training and 26,032 test pictures of 32 × 32 pixels in colour, in ten classes. Label 0 is the digit 0.

    The authors' further 531,131 easier images, `extra`, are left out, as most do.

    Args:
        root: a folder with the two `.mat` files; None for datasets/svhn in the cache folder.
        download: whether to fetch files that are not there.

    Raises:
        OSError: a file is missing or can't be downloaded.
        ValueError: a file is damaged or another's, or scipy isn't installed.
    """
    paths = obtain(dataset_folder("svhn", root, ""), FILES, _listing, download=download)

    def decode() -> tuple[Images, Images]:
        verify(paths, _listing)
        return _read(paths[0].parent, "train"), _read(paths[0].parent, "test")

    train, test = cached_arrays("svhn", paths, decode)
    return Source(train=train, test=test, classes=10, class_names=tuple("0123456789"))


def _read(folder: Path, split: str) -> Images:
    from torchvision.datasets import SVHN

    try:
        part = SVHN(str(folder), split=split)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"dataset=svhn: reading .mat files needs {error.name}; pip install 'vaex-autoencoders[datasets]'"
        ) from error
    return Images(torch.from_numpy(np.ascontiguousarray(part.data)), torch.from_numpy(part.labels))


def _listing() -> Sequence[PublishedFile]:
    from torchvision.datasets import SVHN

    return [PublishedFile(name, md5, (url,)) for url, name, md5 in SVHN.split_list.values()]
