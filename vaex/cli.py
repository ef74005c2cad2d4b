"""The `vaex` command: runs the verb and prints each error as one line. Imports nothing heavy until a verb needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from io import TextIOWrapper
from typing import NoReturn

from vaex.training.signals import end_on_signals

VERBS = ("train", "eval", "draw", "report", "describe")  # vaex/commands/<verb>.py
USAGE = """\
vaex trains autoencoders from composable configs: dataset × architecture × likelihood × beta.

  vaex train                               train a VAE on MNIST; print its test metrics and draw figures
  vaex train likelihood=laplace beta=4     other options and values
  vaex train -m beta=0.5,1,2,4             a sweep
  vaex train resume=RUN_FOLDER             resume a run
  vaex train --help                        all options

  vaex eval RUN_FOLDER …                   evaluate runs, or all runs of a sweep, and print one table
  vaex draw RUN_FOLDER [KIND …]            interpolations, traversals, latents, curves and more
  vaex report FOLDER …                     one page about a sweep: its best runs, plots, images and every run
  vaex describe likelihood=laplace         the options, layers, FLOPs and memory of a run, without training it
  vaex eval --help                         the options of eval; likewise for draw, report and describe

  vaex --version"""


def main() -> None:
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":  # files would be read as ASCII
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):  # names of files may contain what no text does
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    end_on_signals()
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in VERBS:
        run(verb, arguments)
    elif verb in ("--shell-completion", "-sc"):  # the shell calls back without a verb
        run("train", [verb, *arguments])
    else:
        with one_line_errors():
            _without_verb(verb, arguments)


def run(verb: str, arguments: list[str]) -> None:
    """Run a verb as `vaex VERB ARGUMENTS` does.

    Raises:
        SystemExit: with the exit code and after one line on stderr, for an error that the user can fix.
    """
    with one_line_errors():
        import_module(f"vaex.commands.{verb}").main(arguments)


def _without_verb(first: str, others: list[str]) -> None:
    from vaex.errors import UserError

    if first in ("--help", "-h", "help"):
        print(USAGE)
    elif first in ("--version", "version"):
        from vaex import __version__

        print(f"vaex {__version__}")
    elif first.startswith("-") or "=" in first:
        raise UserError(f"{first}: stands before the verb; write vaex train {' '.join([first, *others])}")
    else:
        raise UserError(f"{first}: no such command; there are vaex {', '.join(VERBS)}, and vaex --help")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line for an error that the user can fix, or with its traceback if VAEX_DEBUG=1."""
    from vaex.errors import Interrupted, UserError

    debug = any(os.environ.get(name) == "1" for name in ("VAEX_DEBUG", "HYDRA_FULL_ERROR"))
    try:
        yield
        sys.stdout.flush()
    except Interrupted as interrupted:
        _fail(f"interrupted: {interrupted}", interrupted.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except UserError as error:
        if debug:
            raise
        _fail(str(error))
    except (OSError, UnicodeEncodeError) as error:
        if debug:
            raise
        _fail(_outside(error))


def _outside(error: OSError | UnicodeEncodeError) -> str:
    """One line about an error whose cause lies outside vaex: a disk, a permission, or a name."""
    from vaex.errors import REMEDIES

    where = "VAEX_DEBUG=1 shows where"
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object}: is not UTF-8 text; rename it ({where})"
    path = f"{error.filename}: " if error.filename else ""
    return f"{path}{error.strerror or error}; {REMEDIES.get(error.errno, 'fix the cause')} ({where})"


def _fail(message: str, code: int = 1) -> NoReturn:
    from vaex.errors import one_line
    from vaex.training.torchrun import rank

    if rank() == 0:  # the other processes of torchrun have the same error, or leave it to this one to report
        with suppress(OSError):  # the terminal was closed
            print(f"vaex: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
