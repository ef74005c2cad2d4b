"""What a number in results.json is: its name, how it is written, and what it may be compared with. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Results = Mapping[str, Any]  # the flat object of results.json

DECLARATIONS = "metrics"  # key of results.json under which metrics from outside vaex are declared

# The kinds of comparison; vaex.evaluation.comparison says which runs each of them puts together.
Comparison = Literal["bits", "nll", "elbo", "images", "lpips", "samples", "inception"]


@dataclass(frozen=True)
class Metric:
    """A number of a run, declared once, beside the function that computes it.

    Attributes:
        key: its key in results.json, such as "test/mse".
        title: the heading of its column.
        unit: of the number; empty for a pure number.
        digits: digits after the decimal point.
        better: which direction is better; None where neither is.
        comparable: which runs it may be compared between; None to compare it with nothing.
        stderr_key: key of its standard error; None where none is estimated.
        column: its heading in the terminal table; None for the title, empty to leave it out.
    """

    key: str
    title: str
    unit: str = ""
    digits: int = 3
    better: Literal["lower", "higher"] | None = None
    comparable: Comparison | None = "images"
    stderr_key: str | None = None
    column: str | None = None

    @property
    def is_valid(self) -> bool:
        """Whether the attributes, which may come from a file, have their types."""
        texts = isinstance(self.title, str) and isinstance(self.unit, str)
        optional = isinstance(self.stderr_key, str | None) and isinstance(self.column, str | None)
        choices = self.better in (None, "lower", "higher") and self.comparable in (None, *get_args(Comparison))
        return texts and optional and choices and isinstance(self.digits, int) and 0 <= self.digits < 18

    @property
    def name(self) -> str:
        """The last part of the key, as it appears in file names."""
        return self.key.rpartition("/")[2]

    def value(self, results: Results) -> float | None:
        """The number of a run; None where it is missing or not finite."""
        return _number(results.get(self.key))

    def stderr(self, results: Results) -> float | None:
        """The standard error of the number of a run; None where it is missing or not finite."""
        return _number(results.get(self.stderr_key)) if self.stderr_key else None

    def text(self, value: float | None) -> str:
        """The number as a page shows it, such as −1,234.5; a dash where there is none."""
        return "–" if value is None else f"{value:,.{self.digits}f}".replace("-", "−")

    def plain_text(self, value: float | None) -> str:
        """The number as a terminal shows it, such as -1234.5; a dash where there is none."""
        return "–" if value is None else f"{value:.{self.digits}f}"


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def declaration(metrics: Iterable[Metric]) -> dict[str, dict[str, Any]]:
    """The entry of results.json from which `declared` reads metrics back."""
    return {metric.key: asdict(metric) for metric in metrics}


def declared(runs: Iterable[Results]) -> list[Metric]:
    """The metrics that results.json files declare themselves, each once."""
    metrics: dict[str, Metric] = {}
    for results in runs:
        entries = results.get(DECLARATIONS)
        for key, entry in entries.items() if isinstance(entries, dict) else ():
            try:
                metric = Metric(**entry)
            except TypeError:  # written by another version, or by hand
                continue
            if metric.key == key and metric.is_valid:
                metrics.setdefault(key, metric)
    return list(metrics.values())
