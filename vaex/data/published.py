"""Files of published datasets: read from a folder, or downloaded into it once, through torchvision, and verified."""

import contextlib
import hashlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from vaex.data.cache import cache_folder, cached_arrays, file_key, folder_lock
from vaex.data.dataset import Images, Source

SILENCE = 30  # seconds without a byte after which a download has failed


@dataclass(frozen=True)
class PublishedFile:
    """A file as its authors published it: its MD5, and its addresses or the id of a file of Google Drive."""

    name: str
    md5: str
    urls: tuple[str, ...] = ()
    drive_id: str = ""


# torchvision has the checksums and addresses. A listing is a function because importing torchvision takes seconds.
Listing = Callable[[], Sequence[PublishedFile]]


def dataset_folder(name: str, root: str | None, subfolder: str) -> Path:
    """The folder of a dataset's files: `root`, or torchvision's `subfolder` of it if that exists.

    A root of None is datasets/<name> in the cache folder of vaex.
    """
    folder = cache_folder() / "datasets" / name if root is None else Path(root).expanduser()
    return folder / subfolder if (folder / subfolder).is_dir() else folder


def load_published(
    name: str,
    folder: Path,
    files: Sequence[str],
    listing: Listing,
    read: Callable[[Sequence[Path]], tuple[Images, Images]],
    *,
    class_names: tuple[str, ...],
    download: bool,
) -> Source:
    """The source that `read` decodes from verified files; later runs map its images from the cache.

    Args:
        name: the dataset with every option that changes what `read` returns.
        folder, files, listing, download: as for `obtain`.
        read: takes the paths of the files in their order and returns the training and test images.
        class_names: of the labels 0, 1, ...; empty for images without labels.

    Raises:
        OSError: a file is missing or can't be downloaded.
        ValueError: a file is damaged or a different one of that name.
    """
    paths = obtain(folder, files, listing, download=download)

    def decode() -> tuple[Images, Images]:
        verify(paths, listing)
        return read(paths)

    train, test = cached_arrays(name, paths, decode)
    return Source(train=train, test=test, classes=len(class_names), class_names=class_names)


def obtain(folder: Path, names: Sequence[str], listing: Listing, *, download: bool) -> list[Path]:
    """Paths of the named files. Missing files are downloaded if `download` is set; existing files are never changed.

    Raises:
        FileNotFoundError: a file is missing.
        OSError: a file can't be downloaded, or the download differs from what was published.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing and not download:
        raise FileNotFoundError(
            f"{folder}: {', '.join(missing)} not found; put {'it' if len(missing) == 1 else 'them'} there, "
            "set dataset.source.root=… to a folder that has all files, or set dataset.source.download=true"
        )
    if missing:
        published = {file.name: file for file in listing()}
        with download_lock(folder):
            for name in missing:
                if not (folder / name).is_file():  # another process may have downloaded it in the meantime
                    _download(published[name], folder, missing)
    return [folder / name for name in names]


def verify(paths: Sequence[Path], listing: Listing) -> None:
    """Raise ValueError for a file whose MD5 is not the published one. A file that passed isn't read again."""
    marks = {path: cache_folder() / "verified" / file_key("", [path]) for path in paths}
    unverified = [path for path in paths if not marks[path].exists()]
    published = {file.name: file.md5 for file in (listing() if unverified else ())}
    for path in unverified:
        with path.open("rb") as content:
            md5 = hashlib.file_digest(content, "md5").hexdigest()
        if md5 != published[path.name]:
            raise ValueError(
                f"{path}: has MD5 {md5}, but the published file has {published[path.name]}; it is damaged or a "
                "different file of that name: replace it"
            )
        with contextlib.suppress(OSError):
            marks[path].parent.mkdir(parents=True, exist_ok=True)
            marks[path].touch()


@contextlib.contextmanager
def download_lock(folder: Path) -> Iterator[None]:
    """Create the folder and let one process at a time add files to it; the others of a sweep wait.

    Raises:
        OSError: the folder can't be written to.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder))
        except OSError as error:
            raise OSError(
                f"{folder}: can't be written to ({error.strerror}); set dataset.source.root=… to a writable folder"
            ) from error
        yield


def _download(file: PublishedFile, folder: Path, missing: Sequence[str]) -> None:
    """Download into a temporary folder first: a file under its own name is complete, even if the process is killed."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as partial:
            _fetch(file, partial)
            os.replace(Path(partial) / file.name, folder / file.name)
    except Exception as error:  # urllib, http, torchvision and gdown raise exceptions of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"{folder}: {file.name} could not be downloaded ({reason}); try again, put {', '.join(missing)} there, "
            "or set dataset.source.root=… to a folder that has all files"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _fetch(file: PublishedFile, folder: str) -> None:
    """Download with a progress bar. torchvision checks the MD5 and raises RuntimeError if it is wrong."""
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
