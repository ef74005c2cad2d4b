"""Street View House Numbers, cropped digits, Netzer et al. 2011."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vaex.data.dataset import Images, Source
from vaex.data.published import PublishedFile, dataset_folder, load_published

FILES = ("train_32x32.mat", "test_32x32.mat")


def svhn(*, root: str | None, download: bool) -> Source:
    """73,257 training and 26,032 test pictures of 32 × 32 pixels in color, in ten classes. Label 0 is the digit 0.

    The authors' 531,131 additional, easier images (`extra`) are not used, as in most papers.

    Args:
        root: the folder of the two `.mat` files; None for datasets/svhn in the cache folder.
        download: whether to download missing files.

    Raises OSError and ValueError as `load_published`, and ValueError if scipy isn't installed.
    """
    folder = dataset_folder("svhn", root, "")
    return load_published(
        "svhn", folder, FILES, _listing, _read_files, class_names=tuple("0123456789"), download=download
    )


def _read_files(paths: Sequence[Path]) -> tuple[Images, Images]:
    return _read(paths[0].parent, "train"), _read(paths[0].parent, "test")


def _read(folder: Path, split: str) -> Images:
    from torchvision.datasets import SVHN

    try:
        images = SVHN(str(folder), split=split)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"dataset=svhn: reading .mat files needs {error.name}; pip install 'vaex-autoencoders[datasets]'"
        ) from error
    return Images(torch.from_numpy(np.ascontiguousarray(images.data)), torch.from_numpy(images.labels))


def _listing() -> Sequence[PublishedFile]:
    from torchvision.datasets import SVHN

    return [PublishedFile(name, md5, (url,)) for url, name, md5 in SVHN.split_list.values()]
