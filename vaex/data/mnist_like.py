"""Fashion-MNIST, Kuzushiji-MNIST and EMNIST: 28 × 28 grey pictures in MNIST's file format.

Sources: Xiao et al. 2017; Clanuwat et al. 2018; Cohen et al. 2017.
"""

import gzip
import string
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch

from vaex.data.arrays import cached_arrays
from vaex.data.dataset import Images, Source
from vaex.data.idx import parse_idx
from vaex.data.published import Listing, PublishedFile, dataset_folder, obtain, verify

FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

EmnistSplit = Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]
EMNIST_ARCHIVE = "gzip.zip"
MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"  # the small letters that differ from their capitals
CHARACTERS: dict[EmnistSplit, str] = {
    "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
    "bymerge": MERGED,
    "balanced": MERGED,
    "letters": string.ascii_lowercase,
    "digits": string.digits,
    "mnist": string.digits,
}


def fashion_mnist(*, root: str | None, download: bool) -> Source:
    """60,000 training and 10,000 test pictures of clothes in ten classes.

    Args:
        root: a folder with the four idx `.gz` files; None for datasets/fashion_mnist in the cache folder.
        download: whether to fetch files that are not there.

    Raises:
        OSError: a file is missing or can't be downloaded.
        ValueError: a file is damaged or another's.
    """

    def listing() -> Sequence[PublishedFile]:
        from torchvision.datasets import FashionMNIST

        return _listed(FashionMNIST.mirrors, FashionMNIST.resources)

    return _four_files(
        "fashion_mnist", dataset_folder("fashion_mnist", root, "FashionMNIST/raw"), listing, download, FASHION
    )


def kmnist(*, root: str | None, download: bool) -> Source:
    """60,000 training and 10,000 test images of ten handwritten hiragana. Arguments and errors as `fashion_mnist`."""

    def listing() -> Sequence[PublishedFile]:
        from torchvision.datasets import KMNIST

        return _listed(KMNIST.mirrors, KMNIST.resources)

    return _four_files("kmnist", dataset_folder("kmnist", root, "KMNIST/raw"), listing, download, KUZUSHIJI)


def emnist(*, root: str | None, download: bool, split: EmnistSplit) -> Source:
    """Handwritten letters and digits, upright: the authors' files hold every image transposed.

    Args:
        root: a folder with `gzip.zip`, which has all splits; None for datasets/emnist in the cache folder.
        download: whether to fetch it.
        split: `balanced` has 47 classes (112,800 / 18,800 images), `letters` 26 (124,800 / 20,800; labels 0 to 25, but
            1 to 26 in the files), `digits` 10 (240,000 / 40,000), `mnist` 10 (60,000 / 10,000), `byclass` 62 and
            `bymerge` 47 (697,932 / 116,323).

    Raises:
        OSError, ValueError: as `fashion_mnist`; or there is no such split.
    """
    if split not in CHARACTERS:
        raise ValueError(f"dataset.source.split={split}: must be one of {', '.join(get_args(EmnistSplit))}")

    def listing() -> Sequence[PublishedFile]:
        from torchvision.datasets import EMNIST

        return [PublishedFile(EMNIST_ARCHIVE, EMNIST.md5, (EMNIST.url,))]

    def read(part: str) -> Images:
        with zipfile.ZipFile(path) as archive:
            name = f"gzip/emnist-{split}-{part}"
            pixels = parse_idx(gzip.decompress(archive.read(f"{name}-images-idx3-ubyte.gz")), name, dimensions=3)
            labels = parse_idx(gzip.decompress(archive.read(f"{name}-labels-idx1-ubyte.gz")), name, dimensions=1)
        first = 1 if split == "letters" else 0
        return Images(pixels.transpose(1, 2).unsqueeze(1).contiguous(), labels.to(torch.int64) - first)

    def decode() -> tuple[Images, Images]:
        verify([path], listing)
        return read("train"), read("test")

    folder = dataset_folder("emnist", root, "EMNIST/raw")
    [path] = obtain(folder, [EMNIST_ARCHIVE], listing, download=download)
    train, test = cached_arrays(f"emnist {split}", [path], decode)
    return Source(train=train, test=test, classes=len(CHARACTERS[split]), class_names=tuple(CHARACTERS[split]))


def _listed(mirrors: Sequence[str], resources: Sequence[tuple[str, str]]) -> list[PublishedFile]:
    return [PublishedFile(name, md5, tuple(mirror + name for mirror in mirrors)) for name, md5 in resources]


def _four_files(name: str, folder: Path, listing: Listing, download: bool, class_names: tuple[str, ...]) -> Source:
    paths = obtain(folder, FILES, listing, download=download)

    def decode() -> tuple[Images, Images]:
        verify(paths, listing)
        train, train_labels, test, test_labels = (
            parse_idx(gzip.decompress(path.read_bytes()), path, dimensions)
            for path, dimensions in zip(paths, (3, 1, 3, 1), strict=True)
        )
        return (
            Images(train.unsqueeze(1), train_labels.to(torch.int64)),
            Images(test.unsqueeze(1), test_labels.to(torch.int64)),
        )

    train, test = cached_arrays(name, paths, decode)
    return Source(train=train, test=test, classes=len(class_names), class_names=class_names)
