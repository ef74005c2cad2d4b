"""What a run logs: lines in metrics.jsonl and TensorBoard events, of one run and under the same names.

Both files grow by whole pieces. When a run goes on, what it had logged after its checkpoint is removed from both, so
that they are those of a run that wasn't stopped.
"""

import json
import logging
import math
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import custom_scalars, histogram, hparams

from vaex.figures.events import picture_summary
from vaex.figures.sheet import encode_png
from vaex.runs.writing import WriteFailed, Writing, replace_file

Hyperparameters = dict[str, str | int | float | bool]
log = logging.getLogger("vaex")

# Logged by every process anew: at its start, and when the run is done.
ANEW = ("test/", "_hparams_/", "custom_scalars__config__")
# TensorBoard's page of custom scalars: what the loss trades, of all runs beside each other.
LAYOUT = {
    "rate and distortion": {
        f"{split}: {name}": ["Multiline", [f"^{split}/{name}$"]]
        for split in ("validation", "train")
        for name in ("rate", "distortion", "elbo")
    }
}
# As in PyTorch's SummaryWriter: growing by a tenth, from 1e-12 to 1e20.
_BINS = 1e-12 * 1.1 ** np.arange(774)
HISTOGRAM_BINS = [*-_BINS[::-1], 0.0, *_BINS]


class Record:
    """Writes a run's metrics.jsonl and TensorBoard events.

    Args:
        folder: of the run.
        metrics_file: name of the JSON lines.
        from_step: of a run that goes on; what was logged after that step is dropped.
        writing: what happens when a file can't be written.
    """

    def __init__(self, folder: Path, metrics_file: str, from_step: int, writing: Writing | None = None) -> None:
        self.folder, self.from_step = folder, from_step
        self.writing = writing or Writing(folder)
        path = folder / metrics_file
        with self.writing.of("metrics", path, must=True):
            lines = _drop_lines_after(path, from_step)
            tags = _drop_events_after(folder, from_step)
            self._lines = _Growing(path)
            self._events = _Growing(_new_events_path(folder))
        # A run that was killed between a step's checkpoint and what it logged next logs that step's rest again.
        self._keys_there = {frozenset(line) for line in lines if line["step"] == from_step}
        self._tags_there = tags
        self._add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # A TensorBoard that had read more of the earlier files takes this as the end of them.
        self._add_event(Event(step=from_step + 1 if from_step else 0, session_log=SessionLog(status=SessionLog.START)))
        self._end: Summary | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(WriteFailed) if error else nullcontext(), ExitStack() as stack:
            for file in (self._lines, self._events):
                stack.enter_context(self.writing.of("metrics", file.path))
                stack.callback(file.close)

    def numbers(self, step: int, epoch: float, numbers: Mapping[str, float | list[float]]) -> None:
        """One line, and a scalar each (a histogram for a list)."""
        line = {"step": step, "epoch": round(epoch, 4), **numbers}
        if step != self.from_step or frozenset(line) not in self._keys_there:
            with self.writing.of("metrics", self._lines.path):
                self._lines.append((json.dumps(line) + "\n").encode())
        summary = Summary()
        for name, value in numbers.items():
            if isinstance(value, list):
                summary.MergeFrom(histogram(name, np.array(value), HISTOGRAM_BINS))  # type: ignore[no-untyped-call]
            else:
                summary.value.add(tag=name, simple_value=value)
        self._add_summary(summary, step)

    def picture(self, step: int, name: str, content: Tensor | bytes, *paths: Path) -> None:
        """A sheet, uint8 [1 or 3, height, width], as PNG into TensorBoard and every path; or a file as it is."""
        file = content if isinstance(content, bytes) else encode_png(content)
        for path in paths:
            with self.writing.of("picture", path):
                for folder in (path.parent.parent, path.parent):
                    if self.folder in folder.parents:  # which isn't made again if it is gone
                        folder.mkdir(exist_ok=True)
                replace_file(path, file)
        if not isinstance(content, bytes):
            self._add_summary(picture_summary(name, content, file), step)

    def hyperparameters(self, values: Hyperparameters, metrics: list[str]) -> None:
        """The run's row in the hparams table, in this run and not in one of its own as add_hparams would make it."""
        experiment, start, self._end = hparams(values, dict.fromkeys(metrics, math.nan))  # type: ignore[no-untyped-call]
        for summary in (experiment, start, custom_scalars(LAYOUT)):  # type: ignore[no-untyped-call]
            self._add_summary(summary, 0)

    def finish(self) -> None:
        """Mark the row in the hparams table as done."""
        assert self._end is not None
        self._add_summary(self._end, 0)

    def _add_summary(self, summary: Summary, step: int) -> None:
        values = [value for value in summary.value if step != self.from_step or value.tag not in self._tags_there]
        if values:
            self._add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _add_event(self, event: Event) -> None:
        with self.writing.of("events", self._events.path):
            RecordWriter(self._events).write(event.SerializeToString())


class NoRecord:
    """The Record of a process whose numbers and pictures another one writes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def numbers(self, step: int, epoch: float, numbers: Mapping[str, float | list[float]]) -> None:
        pass

    def picture(self, step: int, name: str, content: Tensor | bytes, *paths: Path) -> None:
        pass

    def hyperparameters(self, values: Hyperparameters, metrics: list[str]) -> None:
        pass

    def finish(self) -> None:
        pass


class _Growing:
    """A file that grows by whole pieces. One that can't be written is kept, and written before the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "ab", buffering=0)
        self._unwritten = b""
        self._lock = threading.Lock()

    def append(self, piece: bytes) -> None:
        """Raises OSError."""
        with self._lock:
            self._unwritten += piece
            end = os.fstat(self._file.fileno()).st_size
            try:
                rest = memoryview(self._unwritten)
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    self._file.truncate(end)
                raise
            self._unwritten = b""

    write = append  # as RecordWriter wants it

    def close(self) -> None:
        """Raises OSError."""
        try:
            if self._unwritten:
                self.append(b"")
        finally:
            self._file.close()


def _drop_lines_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove lines of later steps and those that will be logged anew, and what isn't a line; returns those kept."""
    texts = path.read_bytes().splitlines() if path.exists() else []
    kept, damaged = [], []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            later = line["step"] > step or any(key.startswith(ANEW) for key in line)
        except (ValueError, TypeError, LookupError):
            if number < len(texts):  # the last may have been cut off when the run was killed
                damaged.append(str(number))
            continue
        if not later:
            kept.append((text, line))
    if damaged:
        log.warning(f"{path}: left out line {', '.join(damaged)}, which can't be read")
    content = b"".join(text + b"\n" for text, _ in kept)
    if texts:
        replace_file(path, content)
    return [line for _, line in kept]


def _events_paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("events.out.tfevents.*") if path.is_file())


def _new_events_path(folder: Path) -> Path:
    """By seconds since 1970, after all others there, since TensorBoard reads files in the order of their names.

    Its own writer appends a number to such a name, so that no other file is called or comes between.
    """
    seconds = int(time.time())
    for path in _events_paths(folder):
        if match := re.match(r"events\.out\.tfevents\.(\d+)", path.name):
            seconds = max(seconds, int(match[1]) + 1)
    return folder / f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}"


def _drop_events_after(folder: Path, step: int) -> set[str]:
    """Remove events of later steps and those that will be logged anew; returns the tags that have one of `step`."""
    tags: set[str] = set()
    for path in _events_paths(folder):
        content = path.read_bytes()
        kept = []
        for record, event in _records(content):
            own = [value.tag for value in event.summary.value]
            if event.step <= step and not any(tag.startswith(ANEW) for tag in own):
                kept.append(record)
                tags |= set(own) if event.step == step else set()
        if len(whole := b"".join(kept)) < len(content):
            replace_file(path, whole)
    return tags


def _records(content: bytes) -> Iterator[tuple[bytes, Event]]:
    """Of an event file: length, its checksum, an Event, its checksum. Ends where a record was cut off or is damaged."""
    position = 0
    while position + 12 <= len(content):
        end = position + 12 + struct.unpack_from("<Q", content, position)[0] + 4
        if end > len(content):
            return
        try:
            event = Event.FromString(content[position + 12 : end - 4])
        except Exception:  # protobuf's DecodeError
            return
        yield content[position:end], event
        position = end
