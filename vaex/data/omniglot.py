"""Omniglot, Lake et al. 2015: characters of fifty alphabets, each drawn by twenty people."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vaex.data.arrays import cached_arrays
from vaex.data.dataset import Images, Source
from vaex.data.published import PublishedFile, dataset_folder, obtain, verify

FILES = ("images_background.zip", "images_evaluation.zip")
SIDE = 105  # pixels, as published


def omniglot(*, root: str | None, download: bool, size: int) -> Source:
    """19,280 training (background) and 13,180 test (evaluation) images, light strokes on black, without labels.

    The two sets share no character and no alphabet, so labels of one mean nothing in the other: there are none. The
    training images are in the order of their alphabets, and so a validation split of 1,900 is the last three, which
    training never sees either. Published as black strokes on white, 105 × 105 in two levels; here scaled down with a
    triangle filter, which makes grey of thin strokes, and inverted, as MNIST is. Not the 24,345 / 8,070 images of Burda
    et al. 2015, which mix all alphabets: likelihoods on those are of other data.

    Args:
        root: a folder with the two zip files, which are read without unpacking them; None for datasets/omniglot in the
            cache folder.
        download: whether to fetch files that are not there.
        size: height and width in pixels, at most 105.

    Raises:
        OSError: a file is missing or can't be downloaded.
        ValueError: a file is damaged or another's, or a size that makes no sense.
    """
    if not 1 <= size <= SIDE:
        raise ValueError(f"dataset.source.size={size}: must be from 1 to {SIDE}, the size of the originals")
    paths = obtain(dataset_folder("omniglot", root, "omniglot-py"), FILES, _listing, download=download)

    def decode() -> tuple[Images, Images]:
        verify(paths, _listing)
        return _read(paths[0], size), _read(paths[1], size)

    train, test = cached_arrays(f"omniglot {size}", paths, decode)
    return Source(train=train, test=test, classes=0)


def _read(path: Path, size: int) -> Images:
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(path.stem) and name.endswith(".png"))
        pixels = np.empty((len(names), 1, size, size), dtype=np.uint8)
        for row, name in enumerate(names):
            picture = Image.open(io.BytesIO(archive.read(name))).convert("L")
            pixels[row, 0] = 255 - np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    return Images(torch.from_numpy(pixels), torch.zeros(len(names), dtype=torch.int64))


def _listing() -> Sequence[PublishedFile]:
    from torchvision.datasets import Omniglot

    return [
        PublishedFile(f"{name}.zip", md5, (f"{Omniglot.download_url_prefix}/{name}.zip",))
        for name, md5 in Omniglot.zips_md5.items()
    ]
