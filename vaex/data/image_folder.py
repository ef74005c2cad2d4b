"""Any folder of pictures as a dataset, labelled by its sub-folders."""

import hashlib
import logging
import os
import unicodedata
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch

from vaex.data.dataset import Images, Source
from vaex.data.pictures import decoded

log = logging.getLogger("vaex")

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
HELD_OUT = ("test", "val", "valid", "validation")  # the first that is there holds the test split


@dataclass(frozen=True)
class Picture:
    """A file, its name relative to the root, and its label: a sub-folder's name, or "" where it lies in none."""

    file: Path
    name: str
    label: str

    @property
    def position(self) -> float:
        """In [0, 1): where it stands in the dataset. The name alone decides it, the same on every machine."""
        digest = hashlib.sha256(self.name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:6], "big") / 2**48


def image_folder(*, root: str | None, size: int, channels: int, test: float) -> Source:
    """Pictures in a folder, in a fixed order shuffled by name, with a training and a test split.

    The splits are the sub-folders `train` and `test` where there are such; a `val` or `valid` beside them is the last
    of the training images, or the test split if there is no `test`. In a folder without splits a picture's name
    decides, so that adding pictures moves none from one split to the other.

    Labels are the first-level sub-folders with pictures in them, sorted; a single one says nothing and is no label.
    Hidden files and links out of the folder are skipped. A file with several names in a split is taken once.

    Args:
        root: the folder.
        size: side of the square images made of the pictures, in pixels.
        channels: 1 (grey) or 3 (RGB).
        test: fraction of the pictures in the test split, where the folder doesn't say which these are.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds too few good pictures, or an option makes no sense.
        OSError: a folder in it can't be read, or the cache's disk is too full.
    """
    if not 0 < test < 1:
        raise ValueError(f"dataset.source.test={test}: must be between 0 and 1, a fraction of the pictures")
    wanted = "a folder of pictures, in sub-folders if they have labels"
    if root is None or not os.path.isdir(os.path.expanduser(root)):
        raise FileNotFoundError(
            f"dataset.source.root={'null' if root is None else root}: must be {wanted}; "
            "for example dataset.source.root=/data/flowers"
        )
    folder = os.path.realpath(os.path.expanduser(root))
    skipped: list[str] = []
    try:
        splits = _splits(folder)
        parts = [_pictures(scope, folder, skipped) for scope in splits or [folder]]
    except OSError as error:
        raise OSError(f"dataset.source.root={root}: can't be read whole ({error})") from error
    if skipped:
        log.warning(f"{root}: {_some(skipped)} skipped: links out of the folder, or to nothing")
    class_names = sorted({picture.label for part in parts for picture in part} - {""})
    if len(class_names) < 2:
        class_names = []
    else:
        loose = [picture.name for part in parts for picture in part if not picture.label]
        if loose:
            log.warning(f"{root}: {_some(loose)} left out: beside the classes' folders, not in one")
        parts = [[picture for picture in part if picture.label] for part in parts]

    if splits:
        training, tested = [picture for part in parts[:-1] for picture in part], parts[-1]
    else:
        training = [picture for picture in parts[0] if picture.position < 1 - test]
        tested = parts[0][len(training) :]
    every = training + tested
    if not every:
        raise ValueError(f"dataset.source.root={root}: holds no pictures ({' '.join(SUFFIXES)}); give {wanted}")
    pixels, rows = decoded([picture.file for picture in every], root=Path(folder), size=size, channels=channels)

    cut = sum(row < len(training) for row in rows)
    for split, count in (("training", cut), ("test", len(rows) - cut)):
        if not count and splits:
            where = " in a class's folder" if class_names else ""
            raise ValueError(f"dataset.source.root={root}: has no good {split} picture{where}; add some")
        if not count:
            raise ValueError(
                f"dataset.source.test={test}: leaves no {split} picture of {len(rows)}; change it, or add some"
            )
    index = {name: label for label, name in enumerate(class_names)}
    labels = torch.tensor([index.get(every[row].label, 0) for row in rows])
    untrained = [name for name, label in index.items() if label not in labels[:cut]]
    if untrained:
        log.warning(f"{root}: no good training picture of {_some(untrained)}")
    log.info(f"{root}: {len(rows) - cut} test and {cut} training pictures, {len(class_names) or 'no'} classes")
    if len(splits) > 2:
        held = sum(len(parts[0]) <= row < len(training) for row in rows)
        names = " and ".join(os.path.basename(split) for split in splits[1:-1])
        log.info(f"{root}: the last {held} of these are from {names}; dataset.validation={held} trains on none of them")
    return Source(
        train=Images(pixels[:cut], labels[:cut]),
        test=Images(pixels[cut:], labels[cut:]),
        classes=len(class_names),
        class_names=tuple(class_names),
    )


def _splits(root: str) -> list[str]:
    """The sub-folders for training, for validation if any, and for the test; none in a folder without splits."""
    folders = {
        entry.name.lower(): entry.path
        for entry in os.scandir(root)
        if os.path.isdir(entry.path) and entry.name[0] != "." and _holds(root, os.path.realpath(entry.path))
    }
    held_out = [folders[name] for name in HELD_OUT if name in folders]
    if held_out and "train" in folders:
        return [folders["train"], *held_out[1:], held_out[0]]
    if folders and folders.keys() <= {"train", *HELD_OUT}:
        found, missing = next(iter(folders.values())), "train" if held_out else "test"
        raise ValueError(
            f"dataset.source.root={root}: holds {os.path.basename(found)} but no {missing}; "
            f"dataset.source.root={found} has both splits drawn from that"
        )
    return []


def _pictures(scope: str, root: str, skipped: list[str]) -> list[Picture]:
    """The pictures in a folder and below, by position. Links come last, so that a file has its own name if it can."""
    found: dict[str, str] = {}  # the name that a real path is reached by
    seen: set[str] = set()
    folders, links = deque([scope]), deque[str]()
    while folders or links:
        path = folders.popleft() if folders else links.popleft()
        real = os.path.realpath(path)
        if not _holds(root, real) or not os.path.exists(real):
            skipped.append(os.path.relpath(path, root))
        elif os.path.isfile(real) and path.lower().endswith(SUFFIXES):
            found.setdefault(real, path)
        elif os.path.isdir(real) and real not in seen:
            seen.add(real)
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                if entry.name[0] == ".":
                    continue
                if entry.is_symlink():
                    links.append(entry.path)
                elif entry.is_dir():
                    folders.append(entry.path)
                elif entry.is_file() and entry.name.lower().endswith(SUFFIXES):
                    found.setdefault(os.path.join(real, entry.name), entry.path)
    pictures = []
    outer, inner = len(os.path.join(root, "")), len(os.path.join(scope, ""))
    for path in found.values():
        label, slash, _ = path[inner:].partition("/")
        # Some systems take a letter and its accent apart in a name.
        name, label = (unicodedata.normalize("NFC", part) for part in (path[outer:], label if slash else ""))
        pictures.append(Picture(Path(path), name, label))
    return sorted(pictures, key=lambda picture: (picture.position, picture.name))


def _holds(folder: str, real: str) -> bool:
    return os.path.join(real, "").startswith(os.path.join(folder, ""))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more
