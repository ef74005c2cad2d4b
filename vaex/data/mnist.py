"""MNIST, read from its idx files, which are part of the package: nothing is downloaded."""

import zlib
from pathlib import Path

from vaex.data.cache import decompress
from vaex.data.dataset import Source
from vaex.data.idx import FILES, parse_splits

EMBEDDED = Path(__file__).parent / "embedded" / "mnist"


def mnist(*, root: str | None = None) -> Source:
    """60,000 training and 10,000 test images of 28 × 28 gray pixels in ten classes.

    Args:
        root: the folder of the four `.gz` files under their original names; None for the files in the package.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, is no idx file, or images and labels differ in number.
    """
    folder = EMBEDDED if root is None else Path(root).expanduser()
    paths = [folder / name for name in FILES]
    train, test = parse_splits([_read(path) for path in paths], paths)
    return Source(train=train, test=test, classes=10)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; dataset.source.root must hold MNIST's four idx .gz files")
    try:
        return decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error}); replace it") from error
