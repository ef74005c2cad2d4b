"""Work off the step's path: encoding pictures and writing files, in one thread, first in first out."""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from vaex.runs.writing import WriteFailed

log = logging.getLogger("vaex")


class Background:
    """Runs what it is given in order, so that whatever was written before a checkpoint is there when the checkpoint is.

    An error comes up in the next call of `submit` or `wait`, or on leaving the context, which waits. When another error
    leads out of it, those of the background are logged.
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
        at_once = isinstance(error, KeyboardInterrupt)  # no more than what is being written
        self._pool.shutdown(wait=True, cancel_futures=at_once)
        problems = [future.exception() for future in self._pending if not future.cancelled()]
        self._pending.clear()
        raised = error
        for problem in filter(None, problems):
            if raised is None:
                raised = problem
            elif not (isinstance(problem, WriteFailed) and isinstance(raised, WriteFailed)):  # one disk, one line
                log.warning(str(problem), exc_info=None if isinstance(problem, WriteFailed) else problem)
        if raised is not error:
            assert raised is not None
            raise raised

    def submit(self, function: Callable[..., object], *arguments: object) -> None:
        self._pending.append(self._pool.submit(function, *arguments))
        while self._pending and (self._pending[0].done() or len(self._pending) > self.LONGEST):
            self._pending.popleft().result()

    def wait(self) -> None:
        """Until all is done."""
        while self._pending:
            self._pending.popleft().result()
