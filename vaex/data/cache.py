"""Files in the cache folder: data are decompressed, decoded or drawn once, and later runs map them from the disk."""

import contextlib
import errno
import fcntl
import gzip
import hashlib
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from vaex.data.dataset import Images

log = logging.getLogger("vaex")


def cache_folder() -> Path:
    """$VAEX_CACHE, or the folder vaex in the user's cache folder."""
    if folder := os.environ.get("VAEX_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vaex"


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name, complete, when the block ends, and not at all if the block raises.

    The folder is created. Raises OSError if the file can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_lock(folder: Path, message: str | None = None, *, wait: bool = True) -> Iterator[None]:
    """Create the folder and let one process at a time work in it. The lock ends with its process, however that ends.

    Args:
        message: logged before waiting for another process.
        wait: for the lock; otherwise raise BlockingIOError if another process holds it.

    Raises:
        OSError: the folder can't be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            if message:
                log.info(message)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def map_array(path: Path, shape: tuple[int, ...] | None = None) -> Tensor:
    """Map an .npy file, or a file of plain uint8 values if `shape` is given: pages are read from the disk when used.

    Writing to the tensor never changes the file.

    Raises:
        OSError, ValueError, EOFError: the file can't be read, is too short, or holds no array of numbers.
    """

    def load(mode: str) -> Tensor:
        if shape is None:
            return torch.from_numpy(np.load(path, mmap_mode=mode))  # type: ignore[arg-type]
        return torch.from_numpy(np.memmap(path, np.uint8, mode, shape=shape))  # type: ignore[call-overload]

    try:
        return load("c")
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
    # Linux refuses a writable copy larger than memory and swap. A write to a read-only map would end the process.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return load("r")


def decompress(packed: bytes) -> bytes:
    """gzip.decompress, with the result cached by the hash of `packed`.

    If the cache can't be written, or the cached file is damaged, the bytes are decompressed again.

    Raises:
        OSError, EOFError, zlib.error: as gzip.decompress.
    """
    crc32, size = struct.unpack("<II", packed[-8:].rjust(8, b"\0"))  # the last fields of a gzip file
    path = cache_folder() / hashlib.sha256(packed).hexdigest()
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if len(content) == size and zlib.crc32(content) == crc32:
            return content
    content = gzip.decompress(packed)
    with contextlib.suppress(OSError), new_file(path) as file:
        file.write(content)
    return content


def file_key(name: str, files: Sequence[Path]) -> str:
    """SHA-256 of a name and the files' paths, sizes and modification times: changing a file changes the key."""
    state = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((name, state)).encode()).hexdigest()


def cached_arrays(
    name: str, files: Sequence[Path], decode: Callable[[], tuple[Images, Images]]
) -> tuple[Images, Images]:
    """Training and test images, mapped from the cache; `decode` reads them if these files aren't cached yet.

    If the cache can't be written, or a cached array is cut short, the files are decoded again.

    Args:
        name: the dataset with every option that changes the result.
        files: what `decode` reads. Files with another path, size or modification time are decoded anew.
        decode: returns training and test images without factors.
    """
    folder = cache_folder() / "arrays" / file_key(name, files)
    paths = [folder / f"{part}.npy" for part in ("train-pixels", "train-labels", "test-pixels", "test-labels")]
    with contextlib.suppress(OSError, ValueError, EOFError):
        train, train_labels, test, test_labels = map(map_array, paths)
        return Images(train, train_labels), Images(test, test_labels)
    images = decode()
    with contextlib.suppress(OSError):
        for path, tensor in zip(paths, [t for part in images for t in (part.pixels, part.labels)], strict=True):
            with new_file(path) as file:
                np.save(file, tensor.numpy())
    return images
