"""What a run logs: lines in metrics.jsonl and TensorBoard events, of one run and under the same names."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from vaex.figures.events import picture_summary
from vaex.figures.sheet import encode_png
from vaex.folder import replace_file

Hyperparameters = dict[str, str | int | float | bool]


class Record:
    """Writes a run's metrics.jsonl and TensorBoard events.

    Args:
        folder: of the run.
        metrics_file: name of the JSON lines.
        from_step: of a run that goes on; what was logged after that step is dropped.
    """

    def __init__(self, folder: Path, metrics_file: str, from_step: int) -> None:
        path = folder / metrics_file
        kept = []
        if from_step and path.exists():
            kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= from_step]
        self._lines = open(path, "w")
        self._lines.writelines(line + "\n" for line in kept)
        self._writer: Any = SummaryWriter(str(folder), purge_step=from_step + 1 if from_step else None)
        self._end: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lines.close()
        self._writer.close()

    def numbers(self, step: int, epoch: float, numbers: Mapping[str, float | list[float]]) -> None:
        """One line, and a scalar each (a histogram for a list)."""
        self._lines.write(json.dumps({"step": step, "epoch": round(epoch, 4), **numbers}) + "\n")
        self._lines.flush()
        for name, value in numbers.items():
            if isinstance(value, list):
                self._writer.add_histogram(name, torch.tensor(value), step)
            else:
                self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, content: Tensor | bytes, *paths: Path) -> None:
        """A sheet, uint8 [1 or 3, height, width], as PNG into TensorBoard and every path; or a file as it is."""
        file = content if isinstance(content, bytes) else encode_png(content)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, file)
        if not isinstance(content, bytes):
            self._writer.file_writer.add_summary(picture_summary(name, content, file), step)

    def hyperparameters(self, values: Hyperparameters, metrics: list[str]) -> None:
        """The run's row in the hparams table, in this run and not in one of its own as add_hparams would make it."""
        experiment, start, self._end = hparams(values, dict.fromkeys(metrics, math.nan))  # type: ignore[no-untyped-call]
        for summary in (experiment, start):
            self._writer.file_writer.add_summary(summary)

    def finish(self) -> None:
        """Mark the row in the hparams table as done."""
        self._writer.file_writer.add_summary(self._end)
