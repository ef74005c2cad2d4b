"""Omniglot, Lake et al. 2015: characters of fifty alphabets, each drawn by twenty people."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vaex.data.dataset import Images, Source
from vaex.data.published import PublishedFile, dataset_folder, load_published

FILES = ("images_background.zip", "images_evaluation.zip")
SIDE = 105  # pixels, as published


def omniglot(*, root: str | None, download: bool, size: int) -> Source:
    """19,280 training (background) and 13,180 test (evaluation) images, light strokes on black, without labels.

    The two sets share no character and no alphabet, so a label of one would mean nothing in the other. Training images
    are in the order of their alphabets, so a validation split of 1,900 images is the last three alphabets, which the
    model isn't trained on. The published images are binary, 105 × 105, with black strokes on white. They are scaled
    down with a triangle filter, which turns thin strokes gray, and inverted, to look like MNIST. These are not the
    24,345 / 8,070 images of Burda et al. 2015, which mix all alphabets: their likelihoods can't be compared with these.

    Args:
        root: the folder of the two zip files, which are read without unpacking them; None for datasets/omniglot in the
            cache folder.
        download: whether to download missing files.
        size: height and width in pixels, at most 105.

    Raises OSError and ValueError as `load_published`, and ValueError if the size is out of range.
    """
    if not 1 <= size <= SIDE:
        raise ValueError(f"dataset.source.size={size}: must be from 1 to {SIDE}, the size of the originals")

    def read(paths: Sequence[Path]) -> tuple[Images, Images]:
        return _read(paths[0], size), _read(paths[1], size)

    folder = dataset_folder("omniglot", root, "omniglot-py")
    return load_published(f"omniglot {size}", folder, FILES, _listing, read, class_names=(), download=download)


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
