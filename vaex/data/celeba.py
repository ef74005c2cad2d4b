"""CelebA, Liu et al. 2015: aligned faces of celebrities, cut to a centred square and scaled down."""

import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vaex.data.dataset import Images, Source
from vaex.data.pictures import decoded
from vaex.data.published import PublishedFile, dataset_folder, folder_lock, obtain, verify

ARCHIVE = "img_align_celeba.zip"
PICTURES = "img_align_celeba"
PARTITION = "list_eval_partition.txt"
ATTRIBUTES = "list_attr_celeba.txt"
WIDTH = 178  # pixels; the height is 218
TRAIN, VALIDATION, TEST = "0", "1", "2"  # in the partition file


def celeba(*, root: str | None, download: bool, size: int, crop: int, attribute: str | None) -> Source:
    """162,770 training pictures, then the authors' 19,867 for validation, as `train`; 19,962 test pictures.

    `dataset.validation=19867` gives exactly the authors' three parts. No person is in two of them.

    Args:
        root: a folder with `list_eval_partition.txt`, and with the folder `img_align_celeba` or `img_align_celeba.zip`,
            which is then unpacked there; None for datasets/celeba in the cache folder.
        download: whether to fetch files that are not there.
        size: height and width of the result in pixels.
        crop: side of the square cut from the centre of the 178 × 218 pixels before scaling. 148 and 140 are common.
        attribute: one of the forty in `list_attr_celeba.txt`, such as Smiling, as labels 0 and 1; None for no labels.

    Raises:
        OSError: a file is missing or can't be downloaded.
        ValueError: a file is damaged or another's, or an option that makes no sense.
    """
    if not 1 <= crop <= WIDTH:
        raise ValueError(f"dataset.source.crop={crop}: must be from 1 to {WIDTH}, the width of the pictures")
    folder = dataset_folder("celeba", root, "celeba")
    unpacked = (folder / PICTURES).is_dir()
    lists = [PARTITION] if attribute is None else [PARTITION, ATTRIBUTES]
    paths = obtain(folder, lists if unpacked else [*lists, ARCHIVE], _listing, download=download)
    verify(paths[: len(lists)], _listing)
    part_of = dict(line.split() for line in paths[0].read_text().splitlines())
    if not unpacked:
        _unpack(folder)
    _check_complete(folder, set(part_of))

    names = [[name for name, part in part_of.items() if part == wanted] for wanted in (TRAIN, VALIDATION, TEST)]
    flags = None if attribute is None else _flags(paths[1], attribute)
    train, test = (
        Images(_pixels(folder, chosen, size, crop), torch.tensor([flags[name] if flags else 0 for name in chosen]))
        for chosen in (names[0] + names[1], names[2])
    )
    if attribute is None:
        return Source(train=train, test=test, classes=0)
    return Source(train=train, test=test, classes=2, class_names=(f"not {attribute}", attribute))


def _unpack(folder: Path) -> None:
    """Beside the archive, and under its name only when whole: torchvision would take half of it for all."""
    with folder_lock(folder):
        if (folder / PICTURES).is_dir():  # another run unpacked it meanwhile
            return
        verify([folder / ARCHIVE], _listing)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as partial:
            with zipfile.ZipFile(folder / ARCHIVE) as archive:
                for name in tqdm(archive.namelist(), desc=f"unpacking {ARCHIVE}", disable=None):
                    archive.extract(name, partial)  # which drops any .. and leading / from names
            os.replace(Path(partial) / PICTURES, folder / PICTURES)


def _check_complete(folder: Path, names: set[str]) -> None:
    missing = names - set(os.listdir(folder / PICTURES))
    if missing:
        raise FileNotFoundError(
            f"{folder / PICTURES}: lacks {len(missing)} of {len(names)} pictures, {min(missing)} for one; "
            f"take the folder away and put {ARCHIVE} beside it, to have that unpacked"
        )


def _pixels(folder: Path, names: Sequence[str], size: int, crop: int) -> Tensor:
    files = [folder / PICTURES / name for name in names]
    pixels, rows = decoded(files, root=folder / PICTURES, size=size, channels=3, crop=crop)
    if len(rows) != len(files):
        damaged = sorted(set(range(len(files))) - set(rows))
        raise ValueError(f"{files[damaged[0]]}: is damaged, as are {len(damaged) - 1} more; replace it from {ARCHIVE}")
    return pixels


def _flags(path: Path, attribute: str) -> dict[str, int]:
    """Picture -> 1 where it has the attribute, else 0. The file: a count, a line of names, then a picture a line."""
    _, header, *lines = path.read_text().splitlines()
    known = header.split()
    if attribute not in known:
        raise ValueError(f"dataset.source.attribute={attribute}: must be one of {', '.join(known)}, or null")
    column = 1 + known.index(attribute)
    rows = (line.split() for line in lines)
    return {row[0]: int(row[column] == "1") for row in rows}


def _listing() -> Sequence[PublishedFile]:
    from torchvision.datasets import CelebA

    return [PublishedFile(name, md5, drive_id=drive_id) for drive_id, md5, name in CelebA.file_list]
