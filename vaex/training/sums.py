"""Sums of the metrics of training steps, on the device. The host reads them once per logging interval."""

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
    """Sums of the metrics of every step since the host last read them.

    Attributes:
        names: the metrics in the order of `values`, then "skipped".
        values: sums of the metrics; after them the number of skipped steps; and last the highest loss of a single step,
            [MOST_METRICS + 1] float32. One tensor, so that the host waits for the device once to read them.
        nonfinite: number of the first skipped step, counted from 1, or 0; then for each metric the number of steps in
            which it was not finite, [1 + MOST_METRICS] int64.
    """

    def __init__(self, device: torch.device) -> None:
        self.names: tuple[str, ...] = ()
        self.values = torch.zeros(MOST_METRICS + 1, device=device)
        self.values[-1] = -torch.inf
        self.nonfinite = torch.zeros(1 + MOST_METRICS, dtype=torch.int64, device=device)

    def add(self, metrics: dict[str, Tensor], step: Tensor) -> Tensor:
        """Add the metrics of a step, the loss first; or count the step as skipped if any of them is not finite.

        Returns 1 if the step must be skipped, else 0, [] float32. This runs inside the compiled or captured step.
        """
        values = torch.stack(tuple(metrics.values()))
        self.names = (*metrics, "skipped")
        count = len(metrics)
        finite = values.isfinite()
        good = finite.all()
        skipped = (~good).float()
        self.values[:count] += torch.where(good, values, 0)
        self.values[count] += skipped
        peak_loss = self.values[-1]
        peak_loss.copy_(torch.where(good, torch.maximum(peak_loss, values[0]), peak_loss))
        self.nonfinite[1 : count + 1] += ~finite
        self.nonfinite[0].copy_(torch.where((self.nonfinite[0] == 0) & ~good, step, self.nonfinite[0]))
        return skipped

    def take(self) -> IntervalSums:
        """Read the sums and start again from zero."""
        *totals, peak_loss = self.values.tolist()
        sums = dict(zip(self.names, totals, strict=False))
        self.values.zero_()
        self.values[-1] = -torch.inf
        return IntervalSums(sums, peak_loss, round(sums.pop("skipped")))

    def take_nonfinite(self) -> tuple[int, dict[str, int]]:
        """The first skipped step, counted from 1, and the number of steps in which each metric was not finite."""
        first, *counts = self.nonfinite.tolist()
        self.nonfinite.zero_()
        return first, {name: count for name, count in zip(self.names, counts, strict=False) if count}

    def state_dict(self) -> dict[str, Any]:
        names = list(self.names)
        return {"names": names, "totals": self.values[:-1], "peak": self.values[-1], "bad": self.nonfinite}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names = tuple(state["names"])
        self.values[:-1].copy_(state["totals"])
        self.values[-1].copy_(state["peak"])
        self.nonfinite.copy_(state["bad"])
