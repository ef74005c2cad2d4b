"""Sums of the metrics of training steps. A step records its metrics on the device, and the host adds them up later."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_METRICS = 16


class IntervalSums(NamedTuple):
    """The metrics of an interval, without the steps that were skipped because some value was not finite."""

    sums: dict[str, float]  # of each metric
    peak_loss: float  # highest loss of a single step
    skipped: int  # number of skipped steps


class RunningSums:
    """Sums of the metrics of every step since the host last took them.

    On the device, a step only writes its metrics into a row of a table: every further operation there would be another
    kernel, and a step of a small model consists mostly of kernels that handle a few numbers.

    Args:
        device: where the steps run.
        rows: the most steps between two calls of `take`.

    Attributes:
        names: the metrics, in the order of the columns of `table`.
        table: a row for each step since the host last read it, with 1 after the metrics; all other rows are zero,
            float32 [rows, MOST_METRICS + 1].
        row: the row of the next step, int64 [1].
        steps: number of steps that the host has read.
    """

    def __init__(self, device: torch.device, rows: int) -> None:
        self.names: tuple[str, ...] = ()
        self._names_read: tuple[str, ...] = ()  # the order of the totals
        self.table = torch.zeros(rows, MOST_METRICS + 1, device=device)
        self.row = torch.zeros(1, dtype=torch.int64, device=device)
        self.steps = 0
        self._one = torch.ones((), device=device)
        # What the host has read: sums, number of skipped steps, and for `take_nonfinite` the first of these steps and
        # how often each metric was not finite.
        self._totals, self._peak_loss, self._skipped = torch.zeros(MOST_METRICS, dtype=torch.float64), -math.inf, 0
        self._first, self._nonfinite = 0, torch.zeros(MOST_METRICS, dtype=torch.int64)

    def add(self, metrics: dict[str, Tensor]) -> Tensor:
        """Record the metrics of a step, the loss first.

        Returns 1 if the step must be skipped because one of them is not finite, else 0, [] float32. This runs inside
        the compiled or captured step.
        """
        self.names = tuple(metrics)
        values = torch.stack((*metrics.values(), self._one))
        self.table[:, : len(values)].index_copy_(0, self.row, values[None])
        self.row += 1
        return ((values * 0).sum() != 0).float()  # 0 · x is NaN if x is not finite, and NaN differs from 0

    def _sort_totals(self) -> None:
        """Give the totals the order of the metrics. It differs in a run that another version of vaex has begun."""
        for values in (self._totals, self._nonfinite):
            by_name = dict(zip(self._names_read, values.tolist(), strict=False))
            values.zero_()
            values[: len(self.names)] = torch.tensor([by_name.get(name, 0) for name in self.names], dtype=values.dtype)
        self._names_read = self.names

    def _read(self) -> None:
        """Add what the device has recorded to the sums on the host. The host waits for the device once."""
        if self._names_read != self.names:
            self._sort_totals()
        count = len(self.names)
        table = self.table.cpu()
        values = table[table[:, count] > 0, :count].double()
        finite = values.isfinite()
        good = finite.all(1)
        # One step after the other, so that the sums do not depend on when they were read.
        self._totals[:count] = torch.cat([self._totals[None, :count], values[good]]).cumsum(0)[-1]
        if good.any():
            self._peak_loss = max(self._peak_loss, float(values[good, 0].max()))
        if not good.all():
            self._first = self._first or self.steps + int((~good).nonzero()[0]) + 1
            self._skipped += int((~good).sum())
            self._nonfinite[:count] += (~finite).sum(0)
        self.steps += len(values)
        self.table.zero_()
        self.row.zero_()

    def take(self) -> IntervalSums:
        """Read the sums and start again from zero."""
        self._read()
        interval = IntervalSums(
            dict(zip(self.names, self._totals.tolist(), strict=False)), self._peak_loss, self._skipped
        )
        self._totals.zero_()
        self._peak_loss, self._skipped = -math.inf, 0
        return interval

    def take_nonfinite(self) -> tuple[int, dict[str, int]]:
        """The first skipped step, counted from 1, and the number of steps in which each metric was not finite."""
        first, counts = self._first, self._nonfinite.tolist()
        self._first = 0
        self._nonfinite.zero_()
        return first, {name: count for name, count in zip(self.names, counts, strict=False) if count}

    def state_dict(self) -> dict[str, Any]:
        self._read()
        totals = self._totals.clone()
        totals[len(self.names)] = self._skipped
        nonfinite = torch.cat([torch.tensor([self._first]), self._nonfinite])
        return {
            "names": [*self.names, "skipped"],
            "totals": totals,
            "peak": torch.tensor(self._peak_loss),
            "bad": nonfinite,
        }

    def load_state_dict(self, state: dict[str, Any], steps: int) -> None:
        """Continue from a state that was saved after this number of steps."""
        *names, _ = state["names"]
        self.names = self._names_read = tuple(names)
        self.steps = steps
        self._totals.copy_(state["totals"])
        self._skipped, self._peak_loss = round(float(self._totals[len(names)])), float(state["peak"])
        self._totals[len(names) :] = 0
        self._first, self._nonfinite = int(state["bad"][0]), state["bad"][1:].clone()
        self.table.zero_()
        self.row.zero_()
