"""A folder of pictures as a dataset, with its sub-folders as labels."""

import hashlib
import logging
import os
import unicodedata
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

import torch

from vaex.data.dataset import Images, Source
from vaex.data.pictures import decode_pictures, picture_formats

log = logging.getLogger("vaex")

SPLITS = {
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Picture:
    """A file, its name relative to the root, and its label: a sub-folder's name, or "" if it is in none."""

    file: Path
    name: str
    label: str

    @property
    def position(self) -> float:
        """Where it stands in the dataset, in [0, 1). It depends on the name alone, so all machines agree."""
        digest = hashlib.sha256(self.name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:6], "big") / 2**48


def image_folder(*, root: str | None, size: int, channels: int, test: float) -> Source:
    """Pictures in a folder, shuffled by their names, with a training and a test split.

    The splits are the sub-folders `train` or `training` and `test` or `testing`, in any case. A `val`, `valid` or
    `validation` beside them becomes the end of the training images, or the test split if there is no test folder.
    Without such sub-folders a picture's name decides on its split, so adding pictures moves none from one split to the
    other.

    Labels are the first-level sub-folders that contain pictures, sorted. If there is just one, there are no labels.
    Pictures are files with a suffix that Pillow decodes; a warning counts the others. Hidden files and links that lead
    out of the folder are skipped. A file with several names in a split counts once.

    Args:
        root: the folder.
        size: side of the square images, in pixels.
        channels: 1 (gray) or 3 (RGB).
        test: fraction of the pictures in the test split, if the folder has no sub-folders for the splits.

    Raises:
        FileNotFoundError: the folder doesn't exist.
        ValueError: the folder has too few pictures that can be decoded, its splits are ambiguous, or an option is out
            of range.
        OSError: a folder in it can't be read, or the cache's disk is too full.
    """
    if not 0 < test < 1:
        raise ValueError(f"dataset.source.test={test}: must be between 0 and 1, a fraction of the pictures")
    requirement = "a folder of pictures, in sub-folders if they have labels"
    if root is None or not os.path.isdir(os.path.expanduser(root)):
        raise FileNotFoundError(
            f"dataset.source.root={'null' if root is None else root}: must be {requirement}; "
            "for example dataset.source.root=/data/flowers"
        )
    folder = os.path.realpath(os.path.expanduser(root))
    skipped: list[str] = []
    others: list[str] = []
    try:
        splits = _split_folders(root, folder)
        parts = [_find_pictures(split, folder, skipped, others) for split in splits or [folder]]
    except OSError as error:
        raise OSError(f"dataset.source.root={root}: can't be read completely ({error})") from error
    if skipped:
        log.warning(f"{root}: {_enumerate(skipped)} skipped: these links lead out of the folder, or to nothing")
    if not splits:
        _check_no_inner_splits(root, [picture.name for picture in parts[0]])
    suffixes = Counter(os.path.splitext(name)[1].lower() or "without a suffix" for name in others)
    left_out = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common())
    if left_out:
        log.warning(f"{root}: {len(others)} files are left out, whose types Pillow doesn't decode: {left_out}")
    class_names = sorted({picture.label for part in parts for picture in part} - {""})
    if len(class_names) < 2:
        class_names = []
    else:
        unlabeled = [picture.name for part in parts for picture in part if not picture.label]
        if unlabeled:
            log.warning(f"{root}: {_enumerate(unlabeled)} left out: beside the folders of the classes, not in one")
        parts = [[picture for picture in part if picture.label] for part in parts]

    if splits:
        train_pictures, test_pictures = sum(parts[:-1], []), parts[-1]
    else:
        train_pictures = [picture for picture in parts[0] if picture.position < 1 - test]
        test_pictures = parts[0][len(train_pictures) :]
    pictures = train_pictures + test_pictures
    if not pictures:
        but = f", but {left_out}" if left_out else ""
        raise ValueError(f"dataset.source.root={root}: holds no pictures that Pillow decodes{but}; give {requirement}")
    files = [picture.file for picture in pictures]
    pixels, rows = decode_pictures(files, root=Path(folder), size=size, channels=channels)

    cut = sum(row < len(train_pictures) for row in rows)
    for split, count in (("training", cut), ("test", len(rows) - cut)):
        if not count and splits:
            where = " in a class's folder" if class_names else ""
            raise ValueError(f"dataset.source.root={root}: has no good {split} picture{where}; add some")
        if not count:
            raise ValueError(
                f"dataset.source.test={test}: leaves no {split} picture of {len(rows)}; change it, or add pictures"
            )
    index = {name: label for label, name in enumerate(class_names)}
    labels = torch.tensor([index.get(pictures[row].label, 0) for row in rows])
    empty_classes = [name for name, label in index.items() if label not in labels[:cut]]
    if empty_classes:
        log.warning(f"{root}: no good training picture of {_enumerate(empty_classes)}")
    log.info(f"{root}: {len(rows) - cut} test and {cut} training pictures, {len(class_names) or 'no'} classes")
    if len(splits) > 2:
        count = sum(len(parts[0]) <= row < len(train_pictures) for row in rows)
        names = " and ".join(os.path.basename(split) for split in splits[1:-1])
        log.info(
            f"{root}: the last {count} training pictures are from {names}; dataset.validation={count} trains on none "
            "of them"
        )
    return Source(
        train=Images(pixels[:cut], labels[:cut]),
        test=Images(pixels[cut:], labels[cut:]),
        classes=len(class_names),
        class_names=tuple(class_names),
    )


def _split_folders(root: str, folder: str) -> list[str]:
    """The sub-folders of the training, any validation, and the test split, in this order; empty if there are none.

    Raises:
        ValueError: a split has two folders, or one is missing.
    """
    split_names: dict[str, list[str]] = {"training": [], "validation": [], "test": []}
    others: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if os.path.isdir(entry.path) and entry.name[0] != "." and _contains(folder, os.path.realpath(entry.path)):
            split = SPLITS.get(entry.name.lower())
            (split_names[split] if split else others).append(entry.name)
    names = [name for folders in split_names.values() for name in folders]
    if not names:
        return []
    held_out = split_names["test"] or split_names["validation"]
    if split_names["training"] and held_out:
        for split, folders in split_names.items():
            if len(folders) > 1:
                raise ValueError(
                    f"dataset.source.root={root}: holds {' and '.join(folders)}, and each may be the {split} split; "
                    "merge or rename them"
                )
        if others:
            log.warning(f"{root}: {_enumerate(others)} left out: beside the folders of the splits, not in one")
        order = [*split_names["training"], *(split_names["validation"] if split_names["test"] else []), *held_out]
        return [os.path.join(folder, name) for name in order]
    missing = "test" if split_names["training"] else "train"
    if not others:
        raise ValueError(
            f"dataset.source.root={root}: holds {names[0]} but no {missing}; "
            f"dataset.source.root={os.path.join(folder, names[0])} takes both splits from that folder"
        )
    log.warning(f"{root}: {_enumerate(names)} taken as a class, not as a split, because there is no folder {missing}")
    return []


def _check_no_inner_splits(root: str, names: list[str]) -> None:
    """Raises ValueError if splits are folders inside the first-level folders, whose pictures would be mixed."""
    inner: dict[str, set[str]] = {}  # first-level folder -> splits in it
    for name in names:
        outer, *folders = name.split("/")[:-1] or [""]
        if folders and (split := SPLITS.get(folders[0].lower())):
            inner.setdefault(outer, set()).add(split)
    mixed = [outer for outer, splits in inner.items() if "training" in splits and len(splits) > 1]
    if mixed:
        remedy = f"give dataset.source.root={os.path.join(root, mixed[0])}, or move the splits to the top"
        raise ValueError(
            f"dataset.source.root={root}: holds folders of splits inside {_enumerate(sorted(mixed))}; {remedy}: "
            "train/CLASS and test/CLASS"
        )


def _find_pictures(scope: str, root: str, skipped: list[str], others: list[str]) -> list[Picture]:
    """The pictures in a folder and below it, sorted by position.

    Links to be skipped are appended to `skipped`, and files that are no pictures to `others`.

    Links are followed last, so that a file has its own name if it can be reached without a link.
    """
    suffixes = picture_formats()

    def is_picture(path: str) -> bool:
        return os.path.splitext(path)[1].lower() in suffixes

    names: dict[str, str] = {}  # real path of a picture -> the path by which it was reached first
    visited: set[str] = set()  # real paths of folders
    folders, links = deque([scope]), deque[str]()
    while folders or links:
        path = folders.popleft() if folders else links.popleft()
        real = os.path.realpath(path)
        if not _contains(root, real) or not os.path.exists(real):
            skipped.append(os.path.relpath(path, root))
        elif os.path.isfile(real):
            if is_picture(path):
                names.setdefault(real, path)
            else:
                others.append(path)
        elif os.path.isdir(real) and real not in visited:
            visited.add(real)
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                if entry.name[0] == ".":
                    continue
                if entry.is_symlink():
                    links.append(entry.path)
                elif entry.is_dir():
                    folders.append(entry.path)
                elif entry.is_file() and is_picture(entry.name):
                    names.setdefault(os.path.join(real, entry.name), entry.path)
                elif entry.is_file():
                    others.append(entry.path)
    pictures = []
    root_length, scope_length = (len(os.path.join(folder, "")) for folder in (root, scope))
    for path in names.values():
        label, slash, _ = path[scope_length:].partition("/")
        # Some file systems store a letter and its accent as two characters.
        name, label = (unicodedata.normalize("NFC", text) for text in (path[root_length:], slash and label))
        pictures.append(Picture(Path(path), name, label))
    return sorted(pictures, key=lambda picture: (picture.position, picture.name))


def _contains(folder: str, real: str) -> bool:
    return os.path.join(real, "").startswith(os.path.join(folder, ""))


def _enumerate(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more
