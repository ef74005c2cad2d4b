"""Writing the files of a run: whole or not at all, with one policy for files that can't be written."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vaex.errors import UserError

TEMPORARY = ".vaex-tmp"  # at the end of the name of a file that is being written

log = logging.getLogger("vaex")


class WriteFailed(UserError):
    """A file of the run can't be written."""


class Writing:
    """What happens when a file of the run can't be written: the run ends with one line, or goes on with a warning.

    Args:
        folder: of the run.
        stop: else the run goes on, and each kind of file is warned of once, until it can be written again.
    """

    REMEDIES: dict[int | None, str] = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some of your quota",
        errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
        errno.EROFS: "make it writable",
        errno.EACCES: "make it writable",
        errno.EPERM: "make it writable",
    }

    def __init__(self, folder: Path, *, stop: bool = True) -> None:
        self.folder, self.stop = folder, stop
        self._failing: dict[str, int | None] = {}

    @contextmanager
    def of(self, what: str, path: Path, *, must: bool = False) -> Iterator[None]:
        """Around writing a kind of file. Raises WriteFailed if the run is to stop then, or this one `must` be."""
        try:
            yield
        except OSError as error:
            if os.path.isdir(self.folder):
                reason = os.strerror(error.errno) if error.errno else str(error)
                problem = f"{what} {path}: can't be written ({reason}); {self.REMEDIES.get(error.errno, 'mend that')}"
                then = f", then go on: vaex train resume={self.folder}"
            else:
                problem = f"{self.folder}: is gone"
                then = ", and what the run had saved with it; start the run anew"
            if self.stop or must:
                raise WriteFailed(problem + then) from error
            if self._failing.get(what, 0) != error.errno:
                log.warning(f"{problem}. Going on; the next save tries again")
            self._failing[what] = error.errno
        else:
            if self._failing.pop(what, 0):
                log.info(f"{what} {path}: written again")


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write so that at any moment, also of a crash, `path` holds either the old content or the new, whole.

    Raises OSError, and leaves the old content.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
