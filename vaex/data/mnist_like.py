"""Fashion-MNIST, Kuzushiji-MNIST and EMNIST: 28 × 28 gray pictures in MNIST's file format.

Sources: Xiao et al. 2017; Clanuwat et al. 2018; Cohen et al. 2017.
"""

import gzip
import string
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from vaex.data.dataset import Images, Source
from vaex.data.idx import FILES, parse_splits
from vaex.data.published import PublishedFile, dataset_folder, load_published

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
        root: the folder of the four idx `.gz` files; None for datasets/fashion_mnist in the cache folder.
        download: whether to download missing files.

    Raises OSError and ValueError as `load_published`.
    """
    return _load_idx_files("fashion_mnist", "FashionMNIST", root, download, FASHION)


def kmnist(*, root: str | None, download: bool) -> Source:
    """60,000 training and 10,000 test images of ten handwritten hiragana. Arguments and errors as `fashion_mnist`."""
    return _load_idx_files("kmnist", "KMNIST", root, download, KUZUSHIJI)


def emnist(*, root: str | None, download: bool, split: EmnistSplit) -> Source:
    """Handwritten letters and digits, upright: the authors' files hold every image transposed.

    Args:
        root: the folder of `gzip.zip`, which has all splits; None for datasets/emnist in the cache folder.
        download: whether to download it if it is missing.
        split: `balanced` has 47 classes (112,800 / 18,800 images), `letters` 26 (124,800 / 20,800; labels 0 to 25, but
            1 to 26 in the files), `digits` 10 (240,000 / 40,000), `mnist` 10 (60,000 / 10,000), `byclass` 62 and
            `bymerge` 47 (697,932 / 116,323).

    Raises OSError and ValueError as `load_published`, and ValueError if there is no such split.
    """
    if split not in CHARACTERS:
        raise ValueError(f"dataset.source.split={split}: must be one of {', '.join(get_args(EmnistSplit))}")

    def listing() -> Sequence[PublishedFile]:
        from torchvision.datasets import EMNIST

        return [PublishedFile(EMNIST_ARCHIVE, EMNIST.md5, (EMNIST.url,))]

    def read(paths: Sequence[Path]) -> tuple[Images, Images]:
        with zipfile.ZipFile(paths[0]) as archive:
            names = [f"gzip/emnist-{split}-{name.replace('t10k', 'test')}" for name in FILES]
            train, test = parse_splits([gzip.decompress(archive.read(name)) for name in names], names)
        return upright(train), upright(test)

    def upright(images: Images) -> Images:
        return Images(images.pixels.mT.contiguous(), images.labels - (1 if split == "letters" else 0))

    folder = dataset_folder("emnist", root, "EMNIST/raw")
    names = tuple(CHARACTERS[split])
    return load_published(
        f"emnist {split}", folder, [EMNIST_ARCHIVE], listing, read, class_names=names, download=download
    )


def _load_idx_files(name: str, kind: str, root: str | None, download: bool, class_names: tuple[str, ...]) -> Source:
    """`kind` is the dataset's class in torchvision."""

    def listing() -> Sequence[PublishedFile]:
        from torchvision import datasets

        published = getattr(datasets, kind)
        return [
            PublishedFile(file, md5, tuple(m + file for m in published.mirrors)) for file, md5 in published.resources
        ]

    def read(paths: Sequence[Path]) -> tuple[Images, Images]:
        return parse_splits([gzip.decompress(path.read_bytes()) for path in paths], paths)

    folder = dataset_folder(name, root, f"{kind}/raw")
    return load_published(name, folder, FILES, listing, read, class_names=class_names, download=download)
