"""CelebA, Liu et al. 2015: aligned faces of celebrities, cropped to a centered square and scaled down."""

import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vaex.data.dataset import Images, Source
from vaex.data.pictures import decode_pictures
from vaex.data.published import PublishedFile, dataset_folder, download_lock, obtain, verify

ARCHIVE = "img_align_celeba.zip"
PICTURES = "img_align_celeba"
PARTITION = "list_eval_partition.txt"
ATTRIBUTES = "list_attr_celeba.txt"
WIDTH = 178  # pixels; the height is 218
TRAIN, VALIDATION, TEST = "0", "1", "2"  # in the partition file


def celeba(*, root: str | None, download: bool, size: int, crop: int, attribute: str | None) -> Source:
    """182,637 images for training and validation, and 19,962 test images.

    The last 19,867 of the training images are the authors' validation split, so `dataset.validation=19867` gives
    exactly their three splits, which have no person in common.

    Args:
        root: the folder of `list_eval_partition.txt` and of the folder `img_align_celeba` or of `img_align_celeba.zip`,
            which is then unpacked there; None for datasets/celeba in the cache folder.
        download: whether to download missing files.
        size: height and width of the result in pixels.
        crop: side in pixels of the square cut from the center of the 178 × 218 before scaling; often 148 or 140.
        attribute: one of the forty in `list_attr_celeba.txt`, such as Smiling, as label 0 or 1; None for no labels.

    Raises:
        OSError: a file is missing or can't be downloaded.
        ValueError: a file is damaged or not the published one, or an option is out of range.
    """
    if not 1 <= crop <= WIDTH:
        raise ValueError(f"dataset.source.crop={crop}: must be from 1 to {WIDTH}, the width of the pictures")
    folder = dataset_folder("celeba", root, "celeba")
    unpacked = (folder / PICTURES).is_dir()
    lists = [PARTITION] if attribute is None else [PARTITION, ATTRIBUTES]
    paths = obtain(folder, lists if unpacked else [*lists, ARCHIVE], _listing, download=download)
    verify(paths[: len(lists)], _listing)
    splits = dict(line.split() for line in paths[0].read_text(encoding="utf-8").splitlines())  # file name -> split
    if not unpacked:
        _unpack(folder)
    _check_complete(folder, set(splits))

    train, validation, test = (
        [name for name, split in splits.items() if split == wanted] for wanted in (TRAIN, VALIDATION, TEST)
    )
    labels = dict.fromkeys(splits, 0) if attribute is None else _read_labels(paths[1], attribute)

    def load(names: list[str]) -> Images:
        return Images(_pixels(folder, names, size, crop), torch.tensor([labels[name] for name in names]))

    class_names = () if attribute is None else (f"not {attribute}", attribute)
    return Source(load(train + validation), load(test), classes=len(class_names), class_names=class_names)


def _unpack(folder: Path) -> None:
    """Unpack beside the archive. The folder gets its name when it is complete: torchvision doesn't notice a part."""
    with download_lock(folder):
        if (folder / PICTURES).is_dir():  # another process has unpacked it in the meantime
            return
        verify([folder / ARCHIVE], _listing)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as partial:
            with zipfile.ZipFile(folder / ARCHIVE) as archive:
                for name in tqdm(archive.namelist(), desc=f"unpacking {ARCHIVE}", disable=None):
                    archive.extract(name, partial)  # drops any .. and leading / from names
            os.replace(Path(partial) / PICTURES, folder / PICTURES)


def _check_complete(folder: Path, names: set[str]) -> None:
    missing = names - set(os.listdir(folder / PICTURES))
    if missing:
        raise FileNotFoundError(
            f"{folder / PICTURES}: lacks {len(missing)} of {len(names)} pictures, for example {min(missing)}; "
            f"remove the folder and put {ARCHIVE} in its place, which is then unpacked"
        )


def _pixels(folder: Path, names: Sequence[str], size: int, crop: int) -> Tensor:
    files = [folder / PICTURES / name for name in names]
    pixels, rows = decode_pictures(files, root=folder / PICTURES, size=size, channels=3, crop=crop)
    if len(rows) != len(files):
        damaged = sorted(set(range(len(files))) - set(rows))
        more = len(damaged) - 1
        raise ValueError(f"{files[damaged[0]]}: is damaged, and so are {more} more; replace them from {ARCHIVE}")
    return pixels


def _read_labels(path: Path, attribute: str) -> dict[str, int]:
    """Picture -> 1 if it has the attribute, else 0. The file has a count, a line of names, and a line per picture."""
    _, header, *lines = path.read_text(encoding="utf-8").splitlines()
    attributes = header.split()
    if attribute not in attributes:
        raise ValueError(f"dataset.source.attribute={attribute}: must be one of {', '.join(attributes)}, or null")
    column = 1 + attributes.index(attribute)
    rows = (line.split() for line in lines)
    return {row[0]: int(row[column] == "1") for row in rows}


def _listing() -> Sequence[PublishedFile]:
    from torchvision.datasets import CelebA

    return [PublishedFile(name, md5, drive_id=drive_id) for drive_id, md5, name in CelebA.file_list]
