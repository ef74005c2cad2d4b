"""Write each file of a run whole or not at all, with one policy for files that can't be written."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vaex.errors import REMEDIES, UserError

TEMPORARY = ".vaex-tmp"  # suffix of a file that is being written

log = logging.getLogger("vaex")


class WriteFailed(UserError):
    """A file of the run can't be written.

    Args:
        problem: which file, why, and what to do.
        next_step: what to do afterwards.
    """

    def __init__(self, problem: str, next_step: str = "") -> None:
        super().__init__(problem + next_step)
        self.problem = problem


class WritePolicy:
    """If a file of the run can't be written, the run either stops with one line or continues with a warning.

    Args:
        folder: the run folder.
        stop: whether a failed write stops the run. If not, each kind of file is warned about once, until it can be
            written again.
    """

    def __init__(self, folder: Path, *, stop: bool = True) -> None:
        self.folder, self.stop = folder, stop
        self._failures: dict[str, int | None] = {}  # kind of file -> errno of its last failed write

    @contextmanager
    def guard(self, kind: str, path: Path, *, required: bool = False) -> Iterator[None]:
        """Apply the policy to the code in the `with` block, which writes `path`, a file of this kind.

        Raises:
            WriteFailed: the write failed, and the policy is to stop or this file is `required`.
        """
        try:
            yield
        except OSError as error:
            if os.path.isdir(self.folder):
                reason = os.strerror(error.errno) if error.errno else str(error)
                remedy = REMEDIES.get(error.errno, "fix the cause")
                problem = f"{kind} {path}: can't be written ({reason}); {remedy}"
                next_step = ", then start the run again"
                if (self.folder / "config.yaml").exists():
                    next_step = f", then continue with vaex train resume={self.folder}"
            else:
                problem = f"{self.folder}: no longer exists"
                next_step = ", so everything that the run saved is lost; start the run again"
            if self.stop or required:
                raise WriteFailed(problem, next_step) from error
            if self._failures.get(kind, 0) != error.errno:
                log.warning(f"{problem}. The run continues, and the next save tries again")
            self._failures[kind] = error.errno
        else:
            if self._failures.pop(kind, 0):
                log.info(f"{kind} {path}: can be written again")


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Replace the content of a file atomically: even after a crash, `path` holds either the old content or the new.

    Raises:
        OSError: the file can't be written; the old content is still there.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the new name is on the disk once the folder is, too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
