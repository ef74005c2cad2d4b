"""Signals: the only module that sets handlers for them. The table in docs/reliability.md says what they do.

A process is in one of two states. Outside of `stop_on_signals` it has nothing to save, and the first signal ends it
from within the handler: an exception that a handler raises is lost if the handler interrupts a destructor. Inside, the
first signal sets a flag, which a run checks after every step.
"""

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WARNING = (signal.SIGUSR1, signal.SIGUSR2)  # clusters send one of them some time before they end a job
# A sweep asks the processes of its runs to stop with a signal of its own. By default a process ignores this signal, so
# it is harmless before the handler is set. It never counts as a second signal, so a process may also get others.
REQUEST = signal.SIGURG
SIGNALS = (*ENDING, *WARNING, REQUEST)

# Seconds within which signals count as one. `timeout` sends a signal to its command and again to the command's group; a
# terminal that is closed sends one to the shell, which passes it on, and to the shell's jobs.
SAME_MOMENT = 1.0


class StopFlag:
    """Whether a signal asked this process to stop: `number` is the first signal, or 0."""

    def __init__(self) -> None:
        self.number = 0
        self.end_unstarted: Callable[[int], None] | None = None
        self._received: list[int] = []
        self._first_ending: float | None = None  # when the first of ENDING was received, on the monotonic clock

    def start(self) -> None:
        """From now on there is something to save, so a signal sets the flag."""
        self.end_unstarted = None

    def _receive(self, number: int) -> bool:
        """Returns whether the process must end at once."""
        self.number = self.number or (signal.SIGTERM if number == REQUEST else number)
        self._received.append(number)
        if number not in ENDING:
            return False
        now = time.monotonic()
        if self._first_ending is None:
            self._first_ending = now
            return False
        return now - self._first_ending > SAME_MOMENT


_flag: StopFlag | None = None  # of the `stop_on_signals` that this process is in


def end_on_signals() -> None:
    """Outside of `stop_on_signals`, end this process on a signal, with exit code 128 + its number and with one line.

    A signal that was ignored stays ignored, here and in `stop_on_signals`, as `nohup` intends.
    """
    for number in (*ENDING, *WARNING):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, _end)


@contextmanager
def stop_on_signals(
    *, under_torchrun: bool = False, end_unstarted: Callable[[int], None] | None = None
) -> Iterator[StopFlag]:
    """The first signal sets the flag. Inside another `stop_on_signals`, the flag is that of the outer one.

    If one of ENDING is received more than SAME_MOMENT after the first of them, the process ends at once, by the default
    action of the signal. One of WARNING never does this, nor counts as the first: a cluster sends others after it.

    Under torchrun a second signal does nothing: torchrun passes a cluster's signal on to every process, and sends
    another to all of them when one ends. Neither may end a process that is saving a checkpoint or reporting an error.
    In the end torchrun kills the processes that still run.

    If another program has set a handler for a signal, such as a cluster's engine, the handler is called at the end of
    the `with` block, when the run has saved a checkpoint. Such a signal does not end the process by itself.

    Outside the main thread, where Python sets no handlers, the flag is never set.

    Args:
        end_unstarted: until `start` of the flag is called, a signal calls this with its number and ends the process.
            None if the flag is checked from the beginning.
    """
    global _flag
    if _flag is not None or threading.current_thread() is not threading.main_thread():
        yield _flag or StopFlag()
        return
    flag = _flag = StopFlag()
    flag.end_unstarted = None if under_torchrun else end_unstarted
    previous = _set_handlers(flag, can_end=not under_torchrun)
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if under_torchrun and not _is_foreign(handler) else handler)
        _flag = None
        for number in dict.fromkeys(flag._received):
            if _is_foreign(previous[number]):
                signal.raise_signal(number)


def stop_on_signals_for_life() -> None:
    """Enter `stop_on_signals` until this process ends, and receive the signals that were held back until now."""
    global _flag
    if threading.current_thread() is not threading.main_thread():
        return
    if _flag is None:
        _flag = StopFlag()
        _set_handlers(_flag, can_end=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def block_signals() -> Iterator[None]:
    """Hold signals back. A process started in the `with` block does so until it calls `stop_on_signals_for_life`."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def request_stop(process: int) -> None:
    """Set the flag of a process that is in `stop_on_signals`, which may be this one."""
    with suppress(ProcessLookupError):
        os.kill(process, REQUEST)


def _set_handlers(flag: StopFlag, *, can_end: bool) -> dict[int, Any]:
    """Returns the previous handlers."""
    previous: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        must_end = flag._receive(number)
        if not can_end or _is_foreign(previous[number]):
            return
        if flag.end_unstarted:
            flag.end_unstarted(number)
            _end(number, frame)
        elif must_end:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            previous[number] = signal.getsignal(number)
            signal.signal(number, handle)
    return previous


def _is_foreign(handler: Any) -> bool:
    return handler not in (signal.SIG_DFL, signal.default_int_handler, _end)


def _end(number: int, _: FrameType | None) -> None:
    """End this process, which has nothing to save."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, RuntimeError, ValueError):  # a closed terminal, or a signal in the middle of a write
            stream.flush()
    with suppress(OSError):
        os.write(2, f"vaex: interrupted by {signal.Signals(number).name}; run the same command again\n".encode())
    os._exit(128 + number)


def _leave_closed_terminal() -> None:
    """Discard output to a terminal that was closed, since writing to it is an error."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
