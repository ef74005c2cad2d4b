"""Errors that the user can fix: one clear line with the key, the value and the remedy."""

import errno
from collections.abc import Iterable

MOST_PROBLEMS = 5  # in one line

# The number of an OSError -> what helps.
REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable"),
}


class UserError(Exception):
    """An error whose message is printed without a traceback, unless VAEX_DEBUG=1 or HYDRA_FULL_ERROR=1."""


def joined(problems: Iterable[str]) -> str:
    """The problems of several runs on one line, each once, and at most MOST_PROBLEMS of them."""
    unique = list(dict.fromkeys(problems))
    more = len(unique) - MOST_PROBLEMS
    return "; ".join(unique[:MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop, and the run saved a checkpoint.

    Hydra takes an Exception for the failure of one job and starts the next one, but not a KeyboardInterrupt.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(signal_number, message)
        self.signal_number, self.message, self.exit_code = signal_number, message, 128 + signal_number

    def __str__(self) -> str:
        return self.message


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(text: str) -> str:
    """The text on one line, with its control characters escaped, so that a terminal only shows it."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """The text with escapes for all characters that a terminal might not just show; blanks and accents stay."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
