"""Stopping the runs of a sweep that are processes on this machine, whichever launcher started them."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from vaex.errors import Interrupted
from vaex.training.signals import block_signals, request_stop, stop_on_signals, stop_on_signals_for_life

INTERVAL = 0.5  # seconds between two looks


@contextmanager
def stop_runs_on_signals(launcher: str) -> Iterator[None]:
    """In the process of the sweep: a signal asks all runs to stop, and the `with` block goes on until they have ended.

    For the launchers of other packages, which know nothing of it.

    Raises:
        Interrupted: at the end of the block, if there was a signal.
    """
    if launcher == "joblib_local":
        from joblib.externals.loky.backend import resource_tracker as tracker_of_joblib

        for tracker in (resource_tracker, tracker_of_joblib):
            # A signal to all processes would end the tracker, and another one would print tracebacks.
            with block_signals():
                tracker.ensure_running()
    ended = threading.Event()
    with stop_on_signals() as stop:

        def forward() -> None:
            while not ended.wait(INTERVAL):
                for run in multiprocessing.active_children() if stop.number else ():
                    request_stop(run.pid or 0)  # repeated, since a process ignores it until its run begins

        thread = threading.Thread(target=forward, daemon=True)
        thread.start()
        try:
            yield
        except Exception:
            if not stop.number:  # else this is how the launcher reports that its processes were asked to stop
                raise
        finally:
            ended.set()
            thread.join()
        if stop.number:
            raise Interrupted(stop.number, "the sweep was stopped")


def stop_with_sweep() -> None:
    """In the process of a run: stop on signals, and when the process of the sweep ends, even if it was killed."""
    stop_on_signals_for_life()
    if "stop-with-sweep" not in (thread.name for thread in threading.enumerate()):  # a process may have several runs
        threading.Thread(target=_wait_for_sweep, name="stop-with-sweep", daemon=True).start()


def _wait_for_sweep() -> None:
    sweep = multiprocessing.parent_process()
    assert sweep is not None
    try:
        sweep.join()
    except (TypeError, ValueError):  # joblib gives its processes no handle of their parent
        while os.getppid() == sweep.pid:
            time.sleep(INTERVAL)
    request_stop(os.getpid())
