"""Signals that ask a run to stop. They only set a flag, which the run checks whenever it can save a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
DEFAULT_HANDLERS = (signal.SIG_DFL, signal.default_int_handler)  # what a Python process starts with


class StopFlag:
    """`number` is the signal that asked the run to stop, or 0."""

    def __init__(self) -> None:
        self.number = 0


@contextmanager
def stop_on_signals(*, under_torchrun: bool = False) -> Iterator[StopFlag]:
    """The first of SIGNALS sets the flag. A second signal of the same kind ends the process at once.

    Under torchrun a second signal does nothing: torchrun passes a cluster's signal on to every process, and sends
    another to all of them when one ends. Neither may end a process that is saving a checkpoint or reporting an error.
    In the end torchrun kills the processes that still run.

    A signal that was ignored stays ignored. If a signal had another handler, such as that of a cluster's engine, the
    handler is called at the end of the `with` block, when the run has saved a checkpoint.
    """
    flag = StopFlag()
    previous: dict[int, Any] = {}

    def request_stop(number: int, frame: FrameType | None) -> None:
        flag.number = number
        if not under_torchrun:
            default = previous[number] in DEFAULT_HANDLERS
            signal.signal(number, signal.SIG_DFL if default else previous[number])

    try:
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, request_stop)
    except ValueError:  # outside the main thread, where Python sets no handlers
        previous.clear()
    try:
        yield flag
    finally:
        for caught, handler in previous.items():
            ignore = under_torchrun and handler in DEFAULT_HANDLERS
            signal.signal(caught, signal.SIG_IGN if ignore else handler)
        if flag.number and previous[flag.number] not in DEFAULT_HANDLERS:
            signal.raise_signal(flag.number)
