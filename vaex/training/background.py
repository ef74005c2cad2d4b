"""Encode pictures and write files in one background thread, so that training steps do not wait for them."""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from vaex.runs.writing import WriteFailed

log = logging.getLogger("vaex")


class Background:
    """Calls functions in the order of their submission, so that a checkpoint follows what was logged before it.

    If a function raises an exception, the next call of `submit` or `wait` raises it, or the end of the `with` block,
    which waits for all calls. If the block itself ends with an exception, those of the background are only logged.
    """

    MOST_PENDING = 8  # calls; each holds in memory what it will write

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vaex-background")
        self._pending: deque[Future[Any]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=type(error) is KeyboardInterrupt)
        problems = [problem for f in self._pending if not f.cancelled() and (problem := f.exception())]
        self._pending.clear()
        first = error or (problems.pop(0) if problems else None)
        for problem in problems:
            if not (isinstance(problem, WriteFailed) and isinstance(first, WriteFailed)):  # one line for one disk
                log.warning(str(problem), exc_info=None if isinstance(problem, WriteFailed) else problem)
        if first is not None and first is not error:
            raise first

    def submit(self, function: Callable[..., object], *arguments: object) -> None:
        """Call the function in the background; wait if too many calls are pending."""
        self._pending.append(self._pool.submit(function, *arguments))
        while self._pending and (self._pending[0].done() or len(self._pending) > self.MOST_PENDING):
            self._pending.popleft().result()

    def wait(self) -> None:
        """Wait until every call has ended."""
        while self._pending:
            self._pending.popleft().result()
