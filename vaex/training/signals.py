"""Signals that ask a run to stop: they only set a flag, which the run looks at when it can save itself."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """`number` is the signal that asked to stop, or 0."""

    def __init__(self) -> None:
        self.number = 0


@contextmanager
def stop_on_signals(*, under_torchrun: bool = False) -> Iterator[StopFlag]:
    """The first of SIGNALS sets the flag; a second one of the same kind ends the process at once, as without us.

    Not under torchrun, which passes on a signal that a cluster has sent to every process, and sends one to all when one
    of them ends: neither may end a process that saves itself, or has yet to say why it ended. Torchrun kills in the
    end.

    A signal that was ignored stays so. Where somebody else, such as a cluster's engine, had a handler, it is called
    when the run has saved itself and this context is left.
    """
    flag = StopFlag()
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        flag.number = number
        if not under_torchrun:
            signal.signal(number, signal.SIG_DFL if _is_pythons(before[number]) else before[number])

    try:
        for wanted in SIGNALS:
            if signal.getsignal(wanted) not in (signal.SIG_IGN, None):
                before[wanted] = signal.signal(wanted, ask)
    except ValueError:  # not in the main thread, where Python takes no handlers
        before.clear()
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if under_torchrun and _is_pythons(handler) else handler)
        if flag.number and not _is_pythons(before[flag.number]):
            signal.raise_signal(flag.number)


def _is_pythons(handler: Any) -> bool:
    """Whether it is what a process has from the start."""
    return handler in (signal.SIG_DFL, signal.default_int_handler)
