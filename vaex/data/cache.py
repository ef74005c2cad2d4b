"""Decoded data on disk, so that files are decompressed once and not in every run."""

import contextlib
import gzip
import hashlib
import os
import struct
import zlib
from pathlib import Path


def cache_folder() -> Path:
    """$VAEX_CACHE, or vaex in the user's cache folder."""
    if folder := os.environ.get("VAEX_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vaex"


def decompressed(packed: bytes) -> bytes:
    """What a gzip file holds: from the cache when the same bytes were decompressed before.

    A folder that can't be written or a damaged file in it costs only the time.

    Raises:
        OSError, EOFError, zlib.error: as gzip.decompress.
    """
    crc32, size = struct.unpack("<II", packed[-8:].rjust(8, b"\0"))  # how a gzip file ends
    path = cache_folder() / hashlib.sha256(packed).hexdigest()
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if len(content) == size and zlib.crc32(content) == crc32:
            return content
    content = gzip.decompress(packed)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(content)
        os.replace(temporary, path)
    return content
