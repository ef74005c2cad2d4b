"""CIFAR-10, Krizhevsky 2009, read from its pickles without executing anything that they name."""

import io
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaex.data.dataset import Images, Source
from vaex.data.published import PublishedFile, dataset_folder, load_published

ARCHIVE = "cifar-10-python.tar.gz"
BATCHES = "cifar-10-batches-py"
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = ("test_batch",)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(*, root: str | None, download: bool) -> Source:
    """50,000 training and 10,000 test pictures of 32 × 32 pixels in color, in ten classes.

    Args:
        root: the folder of the archive, which is read without unpacking it, or of the unpacked cifar-10-batches-py;
            None for datasets/cifar10 in the cache folder.
        download: whether to download the archive if neither exists.

    Raises OSError and ValueError as `load_published`.
    """
    folder = dataset_folder("cifar10", root, "")
    unpacked = (folder / BATCHES).is_dir() and not (folder / ARCHIVE).is_file()
    files: tuple[str, ...] = (ARCHIVE,)
    if unpacked:
        folder, files, download = folder / BATCHES, TRAIN + TEST, False  # missing batches can't be downloaded singly
    return load_published("cifar10", folder, files, _listing, _read_files, class_names=CLASSES, download=download)


class PlainUnpickler(pickle.Unpickler):
    """Loads numbers, strings, containers and numpy arrays; refuses everything else that a pickle can name or call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_batch(content: bytes, name: str) -> Images:
    """Unpickle a dictionary of `data` [N, 3 · 32 · 32], channels first, and `labels` [N]. ValueError for others."""
    try:
        entry = PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
        pixels = np.asarray(entry["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = torch.tensor(entry["labels"], dtype=torch.int64)
    except Exception as error:  # bytes that aren't a pickle can raise almost anything
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name}: not a batch of CIFAR-10 ({reason}); replace it") from error
    return Images(torch.from_numpy(pixels), labels)


def _read_files(paths: Sequence[Path]) -> tuple[Images, Images]:
    """The archive, or the batches."""
    contents = _read_archive(paths[0]) if paths[0].name == ARCHIVE else {path.name: path.read_bytes() for path in paths}
    train, test = (_join([read_batch(contents[name], name) for name in names]) for names in (TRAIN, TEST))
    return train, test


def _read_archive(archive: Path) -> dict[str, bytes]:
    contents = {}
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            folder, _, name = member.name.rpartition("/")
            if folder == BATCHES and name in TRAIN + TEST and (file := members.extractfile(member)):
                contents[name] = file.read()
    return contents


def _join(batches: list[Images]) -> Images:
    return Images(torch.cat([part.pixels for part in batches]), torch.cat([part.labels for part in batches]))


def _listing() -> Sequence[PublishedFile]:
    from torchvision.datasets import CIFAR10

    batches = [PublishedFile(name, md5) for name, md5 in CIFAR10.train_list + CIFAR10.test_list]
    return [PublishedFile(ARCHIVE, CIFAR10.tgz_md5, (CIFAR10.url,)), *batches]
