"""Files of published datasets: found in a folder, or downloaded into it, whole and once, through torchvision."""

import contextlib
import fcntl
import hashlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from vaex.data.cache import cache_folder

SILENCE = 30  # seconds without a byte after which a download has failed


@dataclass(frozen=True)
class PublishedFile:
    """A file as its authors published it, under one of `urls` or as a file of Google Drive, with its MD5."""

    name: str
    md5: str
    urls: tuple[str, ...] = ()
    drive_id: str = ""


# torchvision holds the tables of checksums and addresses. A function, because importing it takes seconds.
Listing = Callable[[], Sequence[PublishedFile]]


def dataset_folder(name: str, root: str | None, subfolder: str) -> Path:
    """Where a dataset's files are: in `root`, or under `subfolder` of it, where torchvision would put them.

    None stands for datasets/<name> in vaex's cache folder.
    """
    folder = cache_folder() / "datasets" / name if root is None else Path(root).expanduser()
    return folder / subfolder if (folder / subfolder).is_dir() else folder


def obtain(folder: Path, names: Sequence[str], listing: Listing, *, download: bool) -> list[Path]:
    """Paths of the named files, the missing ones downloaded first if so asked. Files that are there stay as they are.

    Raises:
        FileNotFoundError: a file is missing.
        OSError: a file can't be downloaded, or what came isn't what was published.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing and not download:
        raise FileNotFoundError(
            f"{folder}: {', '.join(missing)} not found; put {'it' if len(missing) == 1 else 'them'} there, "
            "give the folder that has all files as dataset.source.root=…, or set dataset.source.download=true"
        )
    if missing:
        listed = {file.name: file for file in listing()}
        with folder_lock(folder):
            for name in missing:
                if not (folder / name).is_file():  # another run may have brought it meanwhile
                    _download(listed[name], folder, missing)
    return [folder / name for name in names]


def verify(paths: Sequence[Path], listing: Listing) -> None:
    """Raises ValueError for a file whose MD5 is not the published one. What passed once is taken on trust later."""
    marks = {path: cache_folder() / "verified" / digest("", [path]) for path in paths}
    doubtful = [path for path in paths if not marks[path].exists()]
    listed = {file.name: file for file in (listing() if doubtful else ())}
    for path in doubtful:
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "md5").hexdigest()
        if found != listed[path.name].md5:
            raise ValueError(
                f"{path}: has MD5 {found}, as published it has {listed[path.name].md5}; it is damaged or another of "
                "that name: replace it"
            )
        with contextlib.suppress(OSError):
            marks[path].parent.mkdir(parents=True, exist_ok=True)
            marks[path].touch()


def digest(key: str, files: Sequence[Path]) -> str:
    """SHA-256 of a key with the files' paths, sizes and times of last change: another when one of them changes."""
    state = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((key, state)).encode()).hexdigest()


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Makes the folder and lets one process at a time work in it; the others of a sweep wait."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise OSError(
            f"{folder}: can't be written to ({error.strerror}); give one that can be as dataset.source.root=…"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # which ends with the process, however that ends
        yield


def _download(file: PublishedFile, folder: Path, missing: Sequence[str]) -> None:
    """Into a folder of its own first: a file under its name is whole, whenever the process is killed."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as partial:
            _fetch(file, partial)
            os.replace(Path(partial) / file.name, folder / file.name)
    except Exception as error:  # urllib, http, torchvision and gdown each have kinds of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"{folder}: {file.name} could not be downloaded ({reason}); try again, put {', '.join(missing)} there, "
            "or give the folder that has all files as dataset.source.root=…"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _fetch(file: PublishedFile, folder: str) -> None:
    """With a progress bar; torchvision checks the MD5 and raises RuntimeError when it is wrong."""
    from torchvision.datasets.utils import download_file_from_google_drive, download_url

    if file.drive_id:
        if find_spec("gdown") is None:
            raise ModuleNotFoundError("it needs gdown: pip install 'vaex-autoencoders[datasets]'")
        download_file_from_google_drive(file.drive_id, folder, file.name, file.md5)
        return
    *mirrors, last = file.urls
    for url in mirrors:
        with contextlib.suppress(RuntimeError, OSError):
            download_url(url, folder, file.name, file.md5)
            return
    download_url(last, folder, file.name, file.md5)
