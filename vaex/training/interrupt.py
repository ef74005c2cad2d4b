"""Signals that ask a run to stop: they only set a flag, which the run looks at when it can save itself."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopFlag:
    """`number` is the signal that asked to stop, or 0."""

    def __init__(self) -> None:
        self.number = 0


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """SIGINT and SIGTERM set the flag; a second one of the same kind ends the process at once, as without us."""
    flag = StopFlag()
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        flag.number = number
        signal.signal(number, before[number])

    try:
        for wanted in (signal.SIGINT, signal.SIGTERM):
            before[wanted] = signal.signal(wanted, ask)
    except ValueError:  # not in the main thread, where Python takes no handlers
        before.clear()
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
