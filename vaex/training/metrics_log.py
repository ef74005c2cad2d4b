"""The logs of a run: lines in metrics.jsonl and TensorBoard events, under the same names.

Both files grow by whole lines or events. When a run resumes, everything logged after its checkpoint is removed from
both, so that they equal those of a run that was never stopped.
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
from typing import Any, Self

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import custom_scalars, histogram, hparams

from vaex.figures.events import picture_summary
from vaex.figures.sheet import encode_png
from vaex.runs.folder import METRICS
from vaex.runs.writing import WriteFailed, WritePolicy, replace_file

Numbers = Mapping[str, float | list[float]]
log = logging.getLogger("vaex")

# A resumed run logs these again, at its start or at its end.
LOGGED_AGAIN = ("test/", "_hparams_/", "custom_scalars__config__")
# TensorBoard's page of custom scalars shows what the loss trades off, with all runs in one chart.
LAYOUT = {
    "rate and distortion": {
        f"{split}: {name}": ["Multiline", [f"^{split}/{name}$"]]
        for split in ("validation", "train")
        for name in ("rate", "distortion", "elbo")
    }
}
# The bins of PyTorch's SummaryWriter: from 1e-12 to 1e20, each 1.1 times as wide as the one before.
_BINS = 1e-12 * 1.1 ** np.arange(774)
HISTOGRAM_BINS = [*-_BINS[::-1], 0.0, *_BINS]


class MetricsLog:
    """Writes a run's metrics.jsonl and TensorBoard events.

    Args:
        folder: the run folder.
        from_step: the step that the run resumes from, or 0; everything logged after it is removed.
        policy: what happens if a file can't be written.
    """

    def __init__(self, folder: Path, from_step: int, policy: WritePolicy | None = None) -> None:
        self.folder, self.from_step = folder, from_step
        self.policy = policy or WritePolicy(folder)
        path = folder / METRICS
        with self.policy.guard("metrics", path, required=True):
            lines = _drop_lines_after(path, from_step)
            self._existing_tags = _drop_events_after(folder, from_step)
            self._lines = _GrowingFile(path)
            self._events = EventsFile(folder)
        # A run killed after a checkpoint may have logged more of that step, which the resumed run would log again.
        self._existing_lines = {frozenset(line) for line in lines if line["step"] == from_step}
        # Tells a TensorBoard that has read later steps from the earlier files to discard them.
        self._add_event(Event(step=from_step + 1 if from_step else 0, session_log=SessionLog(status=SessionLog.START)))
        self._end: Summary | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with suppress(WriteFailed) if error else nullcontext(), ExitStack() as stack:
            for file in (self._lines, self._events):
                stack.enter_context(self.policy.guard("metrics", file.path))
                stack.callback(file.close)

    def numbers(self, step: int, epoch: float, numbers: Numbers) -> None:
        """Log one line, and for each number a scalar (for each list, a histogram)."""
        line = {"step": step, "epoch": round(epoch, 4), **numbers}
        if step != self.from_step or frozenset(line) not in self._existing_lines:
            with self.policy.guard("metrics", self._lines.path):
                self._lines.append((json.dumps(line) + "\n").encode())
        summary = Summary()
        for name, value in numbers.items():
            if isinstance(value, list):
                summary.MergeFrom(histogram(name, np.array(value), HISTOGRAM_BINS))  # type: ignore[no-untyped-call]
            else:
                summary.value.add(tag=name, simple_value=value)
        self._add_summary(summary, step)

    def picture(self, step: int, name: str, content: Tensor | bytes, *paths: Path) -> None:
        """Write a picture to every path.

        Args:
            name: tag of the picture in TensorBoard.
            content: a sheet, uint8 [1 or 3, height, width], which is written as PNG and also to TensorBoard; or the
                bytes of a file.
        """
        file = content if isinstance(content, bytes) else encode_png(content)
        for path in paths:
            with self.policy.guard("picture", path):
                for folder in (path.parent.parent, path.parent):
                    if self.folder in folder.parents:  # the run folder itself is not created again if it is gone
                        folder.mkdir(exist_ok=True)
                replace_file(path, file)
        if not isinstance(content, bytes):
            self._add_summary(picture_summary(name, content, file), step)

    def hyperparameters(self, values: dict[str, Any], metrics: list[str]) -> None:
        """Log the run's row of the hparams table. PyTorch's `add_hparams` would add it as another TensorBoard run."""
        _, start, self._end = hparams(values, dict.fromkeys(metrics, math.nan))  # type: ignore[no-untyped-call]
        # Without the summary of an experiment, TensorBoard makes the columns from the values of all runs that it shows;
        # with it, from those of one run.
        for summary in (start, custom_scalars(LAYOUT)):  # type: ignore[no-untyped-call]
            self._add_summary(summary, 0)

    def finish(self) -> None:
        """Mark the row of the hparams table as completed."""
        assert self._end is not None
        self._add_summary(self._end, 0)

    def _add_summary(self, summary: Summary, step: int) -> None:
        values = [v for v in summary.value if step != self.from_step or v.tag not in self._existing_tags]
        if values:
            self._add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _add_event(self, event: Event) -> None:
        with self.policy.guard("events", self._events.path):
            self._events.add(event)


class _GrowingFile:
    """A file that grows by whole pieces. If a piece can't be written, it is written together with the next one."""

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

    write = append  # RecordWriter calls it by this name

    def close(self) -> None:
        """Raises OSError."""
        try:
            if self._unwritten:
                self.append(b"")
        finally:
            self._file.close()


class EventsFile(_GrowingFile):
    """A new file of TensorBoard events in a folder. Unlike that of TensorBoard's writer, it is written by the caller.

    Raises:
        OSError: it can't be created, or later written.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(_new_events_path(folder))
        self.add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, event: Event) -> None:
        RecordWriter(self).write(event.SerializeToString())


def _drop_lines_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove lines of later steps, lines that will be logged again and damaged lines. Returns the remaining lines."""
    texts = path.read_bytes().splitlines() if path.exists() else []
    remaining, lines, damaged = [], [], []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            drop = line["step"] > step or any(key.startswith(LOGGED_AGAIN) for key in line)
        except (ValueError, TypeError, LookupError):
            if number < len(texts):  # the last line may be incomplete because the run was killed
                damaged.append(str(number))
            continue
        if not drop:
            remaining.append(text + b"\n")
            lines.append(line)
    if damaged:
        log.warning(f"{path}: removed line {', '.join(damaged)}, which can't be read")
    if texts:
        replace_file(path, b"".join(remaining))
    return lines


def _events_paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("events.out.tfevents.*") if path.is_file())


def _new_events_path(folder: Path) -> Path:
    """A path whose name sorts after those of all existing event files, since TensorBoard reads them in that order.

    The name holds the seconds since 1970, as those of TensorBoard's own writer do. That writer appends a number, so no
    other file has this name.
    """
    seconds = int(time.time())
    for path in _events_paths(folder):
        if match := re.match(r"events\.out\.tfevents\.(\d+)", path.name):
            seconds = max(seconds, int(match[1]) + 1)
    return folder / f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}"


def _drop_events_after(folder: Path, step: int) -> set[str]:
    """Remove events of later steps and events that will be logged again. Returns the tags logged at `step`."""
    tags_of_step: set[str] = set()
    for path in _events_paths(folder):
        content = path.read_bytes()
        records = []
        for record, event in _records(content):
            tags = [value.tag for value in event.summary.value]
            if event.step <= step and not any(tag.startswith(LOGGED_AGAIN) for tag in tags):
                records.append(record)
                tags_of_step |= set(tags) if event.step == step else set()
        if len(remaining := b"".join(records)) < len(content):
            replace_file(path, remaining)
    return tags_of_step


def _records(content: bytes) -> Iterator[tuple[bytes, Event]]:
    """The records of an event file (length, checksum, event, checksum) that precede any damaged or incomplete one."""
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
