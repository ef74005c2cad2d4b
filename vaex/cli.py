"""The `vaex` command. Imports nothing heavy until a verb needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE = """\
vaex trains autoencoders from composable configs: dataset × architecture × likelihood × beta.

  vaex train                               a VAE on MNIST, with its numbers and its pictures
  vaex train likelihood=laplace beta=4     other options and values
  vaex train -m beta=0.5,1,2,4             a sweep
  vaex train resume=RUN_FOLDER             go on with a run
  vaex train --help                        all options

  vaex eval RUN_FOLDER …                   all test numbers of runs or of a sweep, and one table
  vaex draw RUN_FOLDER [KIND …]            interpolations, traversals, latents, curves and more
  vaex report FOLDER …                     one page of a sweep: what is best, plots, pictures in line, every run
  vaex describe likelihood=laplace         the options, layers, FLOPs and memory of what would be trained
  vaex eval --help, vaex draw --help       their options

  vaex --version"""


def main() -> None:
    arguments = sys.argv[1:]
    first = arguments[0] if arguments else "--help"
    if first in ("--help", "-h", "help"):
        print(USAGE)
    elif first in ("--version", "version"):
        from vaex import __version__

        print(f"vaex {__version__}")
    elif first == "train":
        train(arguments[1:])
    elif first == "eval":
        evaluate(arguments[1:])
    elif first == "draw":
        draw(arguments[1:])
    elif first == "report":
        report(arguments[1:])
    elif first == "describe":
        describe(arguments[1:])
    elif first in ("--shell-completion", "-sc"):  # how the shell calls back, without the verb
        train(arguments)
    elif first.startswith("-") or "=" in first:
        fail(f"{first}: comes after the verb; write vaex train {' '.join(arguments)}")
    else:
        fail(f"{first}: no such command; there are vaex train, eval, draw, report, describe, and vaex --help")


def fail(message: str, code: int = 1) -> NoReturn:
    from vaex.training.torchrun import rank

    if rank() == 0:  # the others have the same to say, or leave it to this one
        print(f"vaex: {message}", file=sys.stderr)
    sys.exit(code)


def train(arguments: list[str]) -> None:
    """Compose with Hydra and train; every error that a person can mend is one line."""
    if {"--help", "-h"} & set(arguments):
        from vaex.config.help import train_help

        print(train_help(arguments))
        return
    from vaex.config.errors import asks_for_sweep, check_arguments, one_line, resume_overrides
    from vaex.errors import Interrupted, UserError
    from vaex.training.torchrun import arguments_here

    debug, task = _debug(), _Task()
    with _one_line_errors():
        try:
            check_arguments(arguments)
            arguments = arguments_here(arguments)
            if "COMP_LINE" in os.environ:  # Hydra completes a command without verbs
                os.environ["COMP_LINE"] = os.environ["COMP_LINE"].replace(" train ", " ", 1)
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, rather than print in its own way and exit
            if asks_for_sweep(arguments):
                from vaex.sweeps.multirun import sweep

                sweep(arguments)
                return
            sys.argv = ["vaex", *resume_overrides(arguments)]  # as Hydra wants it, without the verb
            _hydra_main(task)()
            if task.error:
                raise task.error
        except (Interrupted, UserError):
            raise
        except Exception as error:
            message = None if debug else one_line(error, arguments, task.started)
            if message is None:
                raise
            raise UserError(message) from error


def evaluate(arguments: list[str]) -> None:
    from vaex.commands.eval import main as run

    with _one_line_errors():
        run(arguments)


def draw(arguments: list[str]) -> None:
    from vaex.commands.draw import main as run

    with _one_line_errors():
        run(arguments)


def report(arguments: list[str]) -> None:
    from vaex.commands.report import main as run

    with _one_line_errors():
        run(arguments)


def describe(arguments: list[str]) -> None:
    from vaex.commands.describe import main as run

    with _one_line_errors():
        run(arguments)


def _debug() -> bool:
    return any(os.environ.get(name) == "1" for name in ("VAEX_DEBUG", "HYDRA_FULL_ERROR"))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Every error that a person can mend ends the process with one line, or with its traceback for who asks."""
    from vaex.errors import Interrupted, UserError

    debug = _debug()
    try:
        yield
    except Interrupted as stop:
        fail(f"interrupted: {stop}", stop.exit_code)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except BrokenPipeError:  # who reads our output has closed it: | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except UserError as error:
        if debug:
            raise
        fail(str(error))


def _hydra_main(task: _Task) -> Callable[[], None]:
    import hydra

    from vaex.config.schema import config_dir

    decorate: Callable[[Callable[[DictConfig], float | None]], Callable[[], None]] = hydra.main(
        version_base="1.3", config_path=str(config_dir()), config_name="train"
    )

    def run(composed: DictConfig) -> float | None:
        return task(composed)

    return decorate(run)


class _Task:
    """What Hydra calls with a composed config.

    It keeps an error for `train` to tell, since Hydra would print lines of its own about it.
    """

    def __init__(self) -> None:
        self.started = False
        self.error: Exception | None = None

    def __call__(self, composed: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from vaex.commands.train import run
        from vaex.errors import UserError

        self.started = True
        try:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise UserError("hydra.mode=MULTIRUN: ask for a sweep by -m on the command line")
            return run(composed)
        except Exception as error:
            self.error = error
            return None
