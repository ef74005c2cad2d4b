"""Picture files -> uint8 images of one size, decoded once into the cache folder and mapped from there.

A picture is turned upright by its EXIF tag, converted to gray or RGB, cropped to its central square and resized:

- Transparent pixels become white, the usual background of such pictures.
- Colors become gray by ITU-R 601-2 luma. 16-bit gray keeps its whole range, k/65535 -> k/255 rounded. Pixels with
  more bits or real values are refused, since their range isn't known. CMYK is converted without color profiles.
- The filter is an antialiased triangle (Pillow's BILINEAR, also torchvision's default). Its weights are positive;
  bicubic and Lanczos filters overshoot at edges, and clipping then accumulates pixels at 0 and 1, which distorts
  densities. Pillow's box filter uses whole pixels only, which shifts edges if the ratio isn't an integer.

A cache entry is a folder with three files. `pixels.npy` holds the images, `failed.txt` lists the files that can't be
decoded, and `index.json`, written last, makes the entry valid: it has the file names and the checksum of the pixels.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from vaex.data.cache import cache_folder, folder_lock, map_array, new_file

log = logging.getLogger("vaex")

FORMAT = 2  # of a cache entry; must be raised if the same files would give other pixels
# Formats that Pillow names and doesn't decode itself: EPS starts a program, the others need code of other packages.
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
PAGE = 2**20  # bytes
PAGES = 256  # of a file that its checksum covers
BLOCK = 1024  # decoded pictures in memory at a time

Pixels = NDArray[np.uint8]
Failures = tuple[dict[str, str], list[str]]  # name -> reason, and the names of files that may be readable later


@dataclass(frozen=True)
class Pictures:
    """Picture files, their names relative to `root`, and the images to make of them."""

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
        """SHA-256 of the options and of the files' names, sizes and modification times.

        Datasets unpacked from archives can share all of these, so the beginnings of 16 files count as well.
        """
        key = hashlib.sha256(repr((FORMAT, self.size, self.channels, self.crop)).encode())
        for file, name in zip(self.files, self.names, strict=True):
            with contextlib.suppress(OSError):  # a file that has vanished is reported when it is decoded
                status = file.stat()
                key.update(os.fsencode(name) + b"\0%d %d\0" % (status.st_size, status.st_mtime_ns))
        for file in self.files[:: -(-len(self.files) // 16)]:
            with contextlib.suppress(OSError), open(file, "rb") as content:
                key.update(content.read(2**16))
        return key.hexdigest()


@cache
def picture_formats() -> dict[str, str]:
    """Suffix -> format, such as `.jfif` -> `JPEG`, of the files that Pillow decodes."""
    Image.preinit()  # the usual formats come first, and are tried first
    suffixes = Image.registered_extensions().items()
    return {suffix: name for suffix, name in suffixes if name in Image.OPEN and name not in NOT_DECODED}


@cache
def _formats() -> tuple[str, ...]:
    """The formats of these files, in the order in which Pillow tries them."""
    decoded = set(picture_formats().values())
    return tuple(name for name in Image.ID if name in decoded)


def decode_pictures(
    files: Sequence[Path], *, root: Path, size: int, channels: int, crop: int | None = None
) -> tuple[Tensor, list[int]]:
    """Decode picture files, or map them from the cache if they were decoded before.

    Files that can't be decoded are left out and named in a warning. A cache entry belongs to the files' names, sizes
    and modification times, and to a part of their contents. An incomplete entry is noticed and made again, and so is
    any change in an entry of up to 256 MiB; of a larger one, 256 evenly spaced MiB are checked. If the cache can't be
    written, the images are in memory.

    Args:
        files: picture files in `root`, at least one.
        root: a folder. It may be moved without losing the cache entry.
        size: side of the images, in pixels.
        channels: 1 (gray) or 3 (RGB).
        crop: side of the central square that is cut out before resizing, in pixels; None for the largest square.

    Returns:
        pixels, uint8 [N, channels, size, size], and for each row the index in `files`.

    Raises:
        ValueError: no file can be decoded, or an argument is out of range.
        OSError: the cache's disk is too full.
    """
    for key, value in (("size", size), ("crop", crop)):
        if value is not None and value < 1:
            raise ValueError(f"dataset.source.{key}={value}: must be at least 1 pixel")
    if channels not in (1, 3):
        raise ValueError(f"dataset.source.channels={channels}: must be 1 (gray) or 3 (RGB)")
    start = os.path.join(root, "")
    names = [str(file).removeprefix(start) for file in files]
    pictures = Pictures(files=files, names=names, root=root, size=size, channels=channels, crop=crop)
    entry = cache_folder() / "pictures" / pictures.key()
    pixels, reasons = _read_entry(entry, pictures) or _decode_into_entry(entry, pictures)
    if reasons:
        first = "; ".join(f"{name!r} ({reason})" for name, reason in list(reasons.items())[:3])
        failed_list = entry / "failed.txt"
        more = f"; {failed_list} lists all of them" if failed_list.exists() else ""
        log.warning(f"{root}: {len(reasons)} of {len(names)} pictures can't be decoded and are left out: {first}{more}")
    return pixels, [index for index, name in enumerate(names) if name not in reasons]


def decode(file: Path, *, size: int, channels: int, crop: int | None) -> Pixels:
    """Decode one picture, uint8 [channels, size, size]. Raises what Pillow raises; ValueError if `crop` exceeds it."""
    with Image.open(file, formats=_formats()) as image:
        ImageOps.exif_transpose(image, in_place=True)
        width, height = image.size
        side = crop or min(width, height)
        if side > min(width, height):
            raise ValueError(f"{width} × {height} pixels are less than the crop of {side}")
        left, top = (width - side) // 2, (height - side) // 2
        # Not resize(box=…): its filter would read pixels outside the square.
        square = _flat(image, "L" if channels == 1 else "RGB").crop((left, top, left + side, top + side))
        square = square.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """Convert to L or RGB: without transparency, palette or more than 8 bits."""
    if image.mode == "F":
        raise ValueError("pixels are real-valued: their range isn't known")
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.int64)
        if gray.min() < 0 or gray.max() > 65535:
            raise ValueError("gray values exceed 16 bits: their range isn't known")
        image = Image.fromarray(((gray * 255 + 32767) // 65535).astype(np.uint8))
    elif "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(layer, mask=layer.getchannel("A"))
    return image.convert(mode)


def _decode_all(pictures: Pictures, write: Callable[[Pixels], object]) -> Failures:
    """Decode in several threads and pass the images to `write`, in order. Raises ValueError if no file is good."""

    def try_decode(file: Path) -> Pixels | Exception:
        try:
            return decode(file, size=pictures.size, channels=pictures.channels, crop=pictures.crop)
        except Exception as error:  # damaged files raise anything: OSError, SyntaxError, struct.error, …
            return error

    reasons: dict[str, str] = {}
    unreadable = []
    total = len(pictures.files)
    workers = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    bar = tqdm(total=total, desc="decoding pictures", unit="", unit_scale=True, leave=False, disable=None)
    with warnings.catch_warnings(), bar, ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # Pillow warns about unusual metadata
        try:
            for start in range(0, total, BLOCK):
                block = slice(start, start + BLOCK)
                results = pool.map(try_decode, pictures.files[block])
                for name, result in zip(pictures.names[block], results, strict=True):
                    if not isinstance(result, Exception):
                        write(result)
                    else:
                        reasons[name] = " ".join(f"{type(result).__name__}: {result}".split())
                        if isinstance(result, MemoryError) or (isinstance(result, OSError) and result.errno):
                            unreadable.append(name)
                    bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
    if len(reasons) == total:
        name, reason = next(iter(reasons.items()))
        raise ValueError(
            f"dataset.source.root={pictures.root}: none of {total} pictures can be decoded; first {name!r}: {reason}"
        )
    return reasons, unreadable


def _decode_into_entry(entry: Path, pictures: Pictures) -> tuple[Tensor, dict[str, str]]:
    """Write the cache entry, unless another process does so; without a writable cache decode into memory."""
    needed = len(pictures.files) * math.prod(pictures.shape)
    amount = f"{needed / 1e9:.3g} GB of decoded pictures"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(entry, "another process is decoding the same pictures; waiting for it"))
        except OSError as error:
            log.warning(
                f"{entry.parent}: can't be written ({error.strerror}); {amount} are held in memory and decoded again "
                "in each run; set VAEX_CACHE to a writable folder"
            )
            pixels = np.empty((len(pictures.files), *pictures.shape), np.uint8)
            rows = iter(pixels)
            reasons, _ = _decode_all(pictures, lambda image: np.copyto(next(rows), image))
            return torch.from_numpy(pixels[: len(pixels) - len(reasons)]), reasons
        _remove_leftovers(entry)
        if complete := _read_entry(entry, pictures):
            return complete
        if (entry / "index.json").exists():
            log.warning(f"{entry}: damaged or out of date; the pictures are decoded again")
        try:
            free = shutil.disk_usage(entry).free
            if free < needed:
                raise OSError(None, f"{free / 1e9:.3g} GB are free")
            return _write_entry(entry, pictures)
        except OSError as error:
            raise OSError(
                f"{entry.parent}: can't hold {amount} ({error.strerror}); "
                "free some space, or set VAEX_CACHE to a folder on another disk"
            ) from error


def _write_entry(entry: Path, pictures: Pictures) -> tuple[Tensor, dict[str, str]]:
    """Write the three files. Rows are appended, since on a full disk writing through a map would kill the process."""
    (entry / "index.json").unlink(missing_ok=True)  # of a damaged entry
    with new_file(entry / "pixels.npy") as file:
        _write_header(file, len(pictures.files), pictures)
        reasons, unreadable = _decode_all(pictures, lambda image: file.write(image.tobytes()))
        good = [name for name in pictures.names if name not in reasons]
        file.seek(0)
        _write_header(file, len(good), pictures)  # has the same length: NumPy pads it for more digits
    index = {
        "versions": {"format": FORMAT, "pillow": PIL.__version__},
        "root": str(pictures.root),
        "crc32": _checksum(entry / "pixels.npy"),
        "files": good,
        "failed": reasons,
        "unreadable": unreadable,
    }
    failed = "".join(f"{name!r} {reason}\n" for name, reason in reasons.items())
    for name, text in (("failed.txt", failed), ("index.json", json.dumps(index, indent=0))):
        with new_file(entry / name) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    return map_array(entry / "pixels.npy"), reasons


def _write_header(file: BinaryIO, rows: int, pictures: Pictures) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *pictures.shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _read_entry(entry: Path, pictures: Pictures) -> tuple[Tensor, dict[str, str]] | None:
    """None if the entry is missing or damaged, or lacks a picture that couldn't be read then but can be now."""
    try:
        index = json.loads((entry / "index.json").read_text(encoding="utf-8"))
        reasons, path = index["failed"], entry / "pixels.npy"
        good = [name for name in pictures.names if name not in reasons]
        if good != index["files"] or _checksum(path) != index["crc32"]:
            return None
        if any(_is_readable(pictures.root / name) for name in index["unreadable"]):
            return None
        pixels = map_array(path)
        return (pixels, reasons) if pixels.shape == (len(good), *pictures.shape) else None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _checksum(path: Path) -> int:
    """CRC-32 of a file, or of evenly spaced pages of a large one, which always include the last page."""
    pages = -(-path.stat().st_size // PAGE)
    crc = 0
    with open(path, "rb") as file:
        for page in sorted({*range(0, pages, -(-pages // PAGES)), pages - 1}):
            file.seek(page * PAGE)
            crc = zlib.crc32(file.read(PAGE), crc)
    return crc


def _remove_leftovers(entry: Path) -> None:
    """Remove the unfinished files of killed processes: in this locked entry, and in all that no process has locked."""
    for leftover in entry.parent.glob("*/*.tmp"):
        lock = contextlib.nullcontext() if leftover.parent == entry else folder_lock(leftover.parent, wait=False)
        with contextlib.suppress(OSError), lock:
            leftover.unlink()


def _is_readable(file: Path) -> bool:
    try:
        with open(file, "rb") as content:
            content.read(1)
        return True
    except OSError:
        return False
