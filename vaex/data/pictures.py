"""Picture files -> uint8 images of one size, decoded once into the cache and mapped from there.

A picture is turned upright by its EXIF tag, made grey or RGB, cut to its central square and resized:

- Transparent pixels show white, the page that such pictures are drawn for.
- Colours become grey by ITU-R 601-2 luma. 16-bit grey keeps its whole range, k/65535 -> k/255 rounded; wider or real
  pixels are refused, for their range isn't known. CMYK is converted without colour profiles.
- The filter is an antialiased triangle (Pillow's BILINEAR, torchvision's default too). Its weights are positive;
  bicubic and Lanczos overshoot at edges, and clipping that piles up pixels at exactly 0 and 255, which distorts
  densities. Pillow's box takes whole pixels only, which shifts edges where the ratio isn't whole.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import uuid
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from vaex.data.cache import cache_folder

log = logging.getLogger("vaex")

FORMAT = 1  # of a cache entry; to be raised when the same files would give other pixels
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others may start programs, as EPS does
PAGE = 2**20  # bytes
PAGES = 256
GROUP = 32  # pictures decoded by one thread in one go

Pixels = NDArray[np.uint8]
Decoded = tuple[Tensor, dict[str, str], Path | None]  # pixels, why pictures were left out, the file that lists these


@dataclass(frozen=True)
class Pictures:
    """Files, their names relative to `root`, and what is to be made of them."""

    files: Sequence[Path]
    names: list[str]
    root: Path
    size: int
    channels: int
    crop: int | None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    def key(self) -> str:
        """SHA-256 of all that decides the pixels, but for the files' contents.

        Data sets out of tidied archives can share all names, sizes and times, so a few of the contents count too.
        """
        key = hashlib.sha256(repr((FORMAT, self.size, self.channels, self.crop)).encode())
        for file, name in zip(self.files, self.names, strict=True):
            with contextlib.suppress(OSError):  # one that has vanished is named later
                status = file.stat()
                key.update(os.fsencode(name) + b"\0%d %d\0" % (status.st_size, status.st_mtime_ns))
        for file in self.files[:: -(-len(self.files) // 16)]:
            with contextlib.suppress(OSError), open(file, "rb") as content:
                key.update(content.read(2**16))
        return key.hexdigest()


@dataclass
class Failures:
    """Pictures left out, by name, with the reason; and those of them that may be readable some day."""

    reasons: dict[str, str]
    unreadable: list[str]

    def add(self, name: str, error: Exception) -> None:
        self.reasons[name] = " ".join(f"{type(error).__name__}: {error}".split())
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            self.unreadable.append(name)


def decoded(
    files: Sequence[Path], *, root: Path, size: int, channels: int, crop: int | None = None
) -> tuple[Tensor, list[int]]:
    """Pixels uint8 [N', channels, size, size], mapped from the cache, and the indices of `files` that they are.

    A file that can't be decoded is left out and named in a warning. The cache entry is found again by the files' names,
    sizes and times, and by a few of their contents. One that was cut off is noticed and made anew. So is any change in
    one of up to 256 MiB; of a larger one, 256 evenly spaced MiB are looked at. Where the cache can't be written, the
    pixels are in memory.

    Args:
        files: pictures in `root`, at least one.
        root: a folder; where it is doesn't matter to the cache.
        size: side of the images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        crop: side of the central square cut out before resizing, in pixels; None for the largest there is.

    Raises:
        ValueError: no file can be decoded, or an argument makes no sense.
        OSError: the cache's disk is too full.
    """
    for key, value in (("size", size), ("crop", crop)):
        if value is not None and value < 1:
            raise ValueError(f"dataset.source.{key}={value}: must be at least 1 pixel")
    if channels not in (1, 3):
        raise ValueError(f"dataset.source.channels={channels}: must be 1 (grey) or 3 (RGB)")
    start = os.path.join(root, "")
    names = [str(file).removeprefix(start) for file in files]
    pictures = Pictures(files=files, names=names, root=root, size=size, channels=channels, crop=crop)
    entry = cache_folder() / "pictures" / pictures.key()
    pixels, failed, listed = _read(entry, pictures) or _make(entry, pictures)
    if failed:
        first = "; ".join(f"{name!r} ({reason})" for name, reason in list(failed.items())[:3])
        where = f"; all are in {listed}" if listed else ""
        log.warning(f"{root}: {len(failed)} of {len(names)} pictures can't be decoded and are left out: {first}{where}")
    return pixels, [index for index, name in enumerate(names) if name not in failed]


def decode(file: Path, *, size: int, channels: int, crop: int | None) -> Pixels:
    """One picture [channels, size, size]. Raises whatever Pillow does; ValueError where it is smaller than `crop`."""
    with Image.open(file, formats=FORMATS) as image:
        ImageOps.exif_transpose(image, in_place=True)
        width, height = image.size
        side = crop or min(width, height)
        if side > min(width, height):
            raise ValueError(f"{width} × {height} pixels are less than the crop of {side}")
        left, top = (width - side) // 2, (height - side) // 2
        # Not resize(box=…), whose filter would look beyond the square.
        square = _flat(image, "L" if channels == 1 else "RGB").crop((left, top, left + side, top + side))
        square = square.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """Without transparency, palette or more than 8 bits."""
    if image.mode == "F":
        raise ValueError("real-valued pixels, whose range isn't known")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("grey beyond 16 bits, whose range isn't known")
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    elif "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        drawn = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(drawn, mask=drawn.getchannel("A"))
    return image.convert(mode)


def _decode_all(pictures: Pictures, keep: Callable[[Pixels], object]) -> Failures:
    """Hand the decoded pictures to `keep`, in the order of their files. ValueError where not one is good."""

    def group(start: int) -> list[Pixels | Exception]:
        done: list[Pixels | Exception] = []
        for file in pictures.files[start : start + GROUP]:
            try:
                done.append(decode(file, size=pictures.size, channels=pictures.channels, crop=pictures.crop))
            except Exception as error:  # damaged files raise anything: OSError, SyntaxError, struct.error, …
                done.append(error)
        return done

    failures = Failures({}, [])
    names = iter(pictures.names)
    waiting: deque[Future[list[Pixels | Exception]]] = deque()  # bounded: `keep` may be slower than the threads
    total = len(pictures.files)
    workers = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    bar = tqdm(total=total, desc="decoding pictures", unit="", unit_scale=True, leave=False, disable=None)

    def take() -> None:
        for done in waiting.popleft().result():
            name = next(names)
            if isinstance(done, Exception):
                failures.add(name, done)
            else:
                keep(done)
            bar.update()

    with warnings.catch_warnings(), bar, ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata
        try:
            for start in range(0, total, GROUP):
                waiting.append(pool.submit(group, start))
                if len(waiting) > 4 * workers:
                    take()
            while waiting:
                take()
        finally:
            pool.shutdown(cancel_futures=True)
    if len(failures.reasons) == total:
        name, reason = next(iter(failures.reasons.items()))
        raise ValueError(
            f"dataset.source.root={pictures.root}: none of {total} pictures can be decoded; first {name!r}: {reason}"
        )
    return failures


def _make(entry: Path, pictures: Pictures) -> Decoded:
    """Decode into a new entry, unless another process has done so meanwhile; into memory where there can be none."""
    needed = len(pictures.files) * math.prod(pictures.shape)
    amount = f"{needed / 1e9:.3g} GB of decoded pictures"
    with contextlib.ExitStack() as stack:
        try:
            work = stack.enter_context(_claimed(entry))
        except OSError as error:
            log.warning(
                f"{entry.parent}: can't be written ({error.strerror}); {amount} are kept in memory and made anew in "
                "each run; set VAEX_CACHE to a folder that can be written"
            )
            pixels = np.empty((len(pictures.files), *pictures.shape), np.uint8)
            rows = iter(pixels)
            failures = _decode_all(pictures, lambda row: np.copyto(next(rows), row))
            return torch.from_numpy(pixels[: len(pixels) - len(failures.reasons)]), failures.reasons, None
        if found := _read(entry, pictures):
            return found
        if os.path.isdir(entry):
            log.warning(f"{entry}: damaged or out of date; the pictures are decoded again")
        try:
            free = shutil.disk_usage(work).free
            if free < needed:
                raise OSError(None, f"{free / 1e9:.3g} GB are free")
            failed = _write(work, pictures)
            _discard(entry)
            work.rename(entry)
        except OSError as error:
            raise OSError(
                f"{entry.parent}: can't hold {amount} ({error.strerror}); "
                "make room, or set VAEX_CACHE to a folder on another disk"
            ) from error
    return mapped(entry / "pixels.npy"), failed, entry / "failed.txt"


def _write(work: Path, pictures: Pictures) -> dict[str, str]:
    """An entry's files; gives why pictures were left out.

    The rows are written one after the other, not through a map, where a full disk would be a crash and no error.
    """
    with open(work / "pixels.npy", "wb") as file:
        _write_header(file, len(pictures.files), pictures)
        failures = _decode_all(pictures, lambda pixels: file.write(pixels.tobytes()))
        kept = [name for name in pictures.names if name not in failures.reasons]
        file.seek(0)
        _write_header(file, len(kept), pictures)  # as long as before: NumPy leaves room for more digits
        file.flush()
        os.fsync(file.fileno())
    reasons = "".join(f"{name!r} {reason}\n" for name, reason in failures.reasons.items())
    (work / "failed.txt").write_text(reasons, encoding="utf-8", errors="backslashreplace")
    index = {
        "versions": {"format": FORMAT, "pillow": PIL.__version__},
        "root": str(pictures.root),
        "crc32": _checksum(work / "pixels.npy"),
        "files": kept,
        "failed": failures.reasons,
        "unreadable": failures.unreadable,
    }
    (work / "index.json").write_text(json.dumps(index, indent=0))
    return failures.reasons


def _write_header(file: BinaryIO, rows: int, pictures: Pictures) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *pictures.shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _read(entry: Path, pictures: Pictures) -> Decoded | None:
    """None where there is no entry, or a damaged one, or one without a picture that couldn't be read but now can."""
    try:
        index = json.loads((entry / "index.json").read_text())
        failed, path = index["failed"], entry / "pixels.npy"
        kept = [name for name in pictures.names if name not in failed]
        if kept != index["files"] or _checksum(path) != index["crc32"]:
            return None
        if any(_readable(pictures.root / name) for name in index["unreadable"]):
            return None
        pixels = mapped(path)
        if pixels.shape != (len(kept), *pictures.shape):
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return pixels, failed, entry / "failed.txt"


def mapped(path: Path) -> Tensor:
    """An .npy file as a tensor, read from the disk as it is used. Writing to the tensor never changes the file."""
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
    # Linux refuses a writable copy that is larger than memory and swap. Writing to this one would end the process.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.load(path, mmap_mode="r"))


def _checksum(path: Path) -> int:
    """CRC-32 of the file, or of evenly spaced pages of a large one, its last always among them."""
    pages = -(-path.stat().st_size // PAGE)
    crc = 0
    with open(path, "rb") as file:
        for page in sorted({*range(0, pages, -(-pages // PAGES)), pages - 1}):
            file.seek(page * PAGE)
            crc = zlib.crc32(file.read(PAGE), crc)
    return crc


@contextlib.contextmanager
def _claimed(entry: Path) -> Iterator[Path]:
    """An empty folder beside the entry that no other process writes; discarded at the end unless it was renamed.

    Whoever holds the lock in it has it. The lock ends with its process, however that ends, so what a killed one has
    left is known for what it is and discarded too.
    """
    work = entry.with_name(f"{entry.name}.tmp")
    entry.parent.mkdir(parents=True, exist_ok=True)
    for other in entry.parent.glob("*.tmp"):
        with contextlib.suppress(OSError), open(other / "lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _has(lock, other):
                _discard(other)
    while True:
        work.mkdir(exist_ok=True)
        try:
            lock = open(work / "lock", "wb")
        except FileNotFoundError:  # another process has just renamed it
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process is decoding the same pictures; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not _has(lock, work):
                continue
            try:
                yield work
            finally:
                if _has(lock, work):
                    _discard(work)
            return


def _has(lock: BinaryIO, folder: Path) -> bool:
    """Whether the folder has not been renamed, and another made under its name, while this waited for the lock."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / "lock"))
    except FileNotFoundError:
        return False


def _discard(folder: Path) -> None:
    trash = folder.with_name(f"{uuid.uuid4().hex}.tmp")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(trash)  # at once, so that nobody meets a part of it
        shutil.rmtree(trash, ignore_errors=True)


def _readable(file: Path) -> bool:
    try:
        with open(file, "rb") as content:
            content.read(1)
        return True
    except OSError:
        return False
