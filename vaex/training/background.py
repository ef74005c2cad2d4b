"""Work off the step's path: encoding pictures and writing files, in one thread, first in first out."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self


class Background:
    """Runs what it is given in order, so that whatever was written before a checkpoint is there when the checkpoint is.

    An error comes up in the next call of `submit` or `wait`. Leaving the context waits, and raises no more errors.
    """

    LONGEST = 8  # calls that may wait: each holds what it writes in memory

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vaex-background")
        self._pending: deque[Future[Any]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)

    def submit(self, function: Callable[..., object], *arguments: object) -> None:
        while self._pending and (self._pending[0].done() or len(self._pending) >= self.LONGEST):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function, *arguments))

    def wait(self) -> None:
        """Until all is done."""
        while self._pending:
            self._pending.popleft().result()
