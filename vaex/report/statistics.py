"""Means and spreads over seeds, and the best configuration of a column of comparable numbers. Imports no torch."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vaex.report.axes import Design
from vaex.report.collect import Run, Value
from vaex.report.scores import Scale, Scored, distance_scale, elbo_scale, error_scale, score_scale


@dataclass(frozen=True)
class Summary:
    """Over seeds. `std` is the sample's, with n − 1; None for one seed."""

    mean: float
    std: float | None
    n: int


def summary(values: Sequence[float]) -> Summary | None:
    """None of no values."""
    if not values:
        return None
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Metric:
    """A number of a run.

    Attributes:
        name: in names of files.
        better: whether low or high is good; None where neither is.
        value: of a run; None where it has none, or not a finite one.
        scale: what the number is of; None where it is of nothing.
    """

    name: str
    title: str
    unit: str
    digits: int
    better: Literal["low", "high"] | None
    value: Callable[[Scored], float | None]
    scale: Callable[[Scored], Scale | None]

    def of(self, item: Scored, scale: Scale | None = None) -> float | None:
        """The run's finite number, if it is on this scale."""
        own = self.scale(item)
        value = None if own is None or (scale and own.key != scale.key) else self.value(item)
        return value if value is not None and math.isfinite(value) else None

    def shown(self, found: Summary | None) -> str:
        if found is None:
            return "–"
        mean = self.figure(found.mean)
        return mean if found.std is None else f"{mean} ± {self.figure(found.std)}"

    def figure(self, value: float) -> str:
        """With the metric's digits."""
        return f"{value:,.{self.digits}f}".replace("-", "−")


def _result(name: str) -> Callable[[Scored], float | None]:
    return lambda item: item.row.results.get(f"test/{name}")


def _score(of: str) -> Callable[[Scored], Scale | None]:
    return lambda item: score_scale(item) if item.row.group.score == of else None


def _distortion(item: Scored) -> float | None:
    elbo, rate = item.row.elbo, item.row.rate
    return None if elbo is None or rate is None else -elbo - rate


BITS = Metric("bits_per_dim", "bits/dim", "bits", 4, "low", lambda item: item.row.score, _score("bits/dim"))
NLL = Metric("nll", "NLL", "nats per image", 2, "low", lambda item: item.row.score, _score("NLL"))
ELBO = Metric("elbo", "ELBO", "nats per image", 1, "high", lambda item: item.row.elbo, elbo_scale)
RATE = Metric("rate", "rate", "nats per image", 1, None, lambda item: item.row.rate, elbo_scale)
DISTORTION = Metric("distortion", "distortion", "nats per image", 1, None, _distortion, elbo_scale)
FID = Metric("fid", "FID", "by vaex's classifier", 1, "low", _result("fid"), distance_scale)
MSE = Metric("mse", "MSE", "of x in [0, 1]", 5, "low", _result("mse"), error_scale)
ACTIVE_UNITS = Metric("active_units", "active units", "latents", 1, None, _result("active_units"), error_scale)
METRICS = (BITS, NLL, ELBO, RATE, DISTORTION, FID, MSE, ACTIVE_UNITS)


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in nothing but the seed.

    Attributes:
        values: along the design's axes.
        items: completed, one for each seed.
        seeds: how many seeds were started.
    """

    values: tuple[Value, ...]
    label: str
    items: tuple[Scored, ...]
    seeds: int

    def summary(self, metric: Metric, scale: Scale | None = None) -> Summary | None:
        """Over the seeds whose number is on the scale; without one, on that of the first that has any."""
        for item in self.items if scale is None else ():
            if metric.of(item) is not None:
                scale = metric.scale(item)
                break
        values = [metric.of(item, scale) for item in self.items]
        return summary([value for value in values if value is not None])


def configurations(runs: Sequence[Run], items: Iterable[Scored], design: Design) -> list[Configuration]:
    """Of every run with a config, in the order of the axes. Of runs that repeat a configuration and a seed the last."""
    by_name = {item.run.name: item for item in items}
    found: dict[tuple[Value, ...], dict[Value, Scored | None]] = {}
    for run in runs:
        if run.config:
            seeds = found.setdefault(design.values(run), {})
            seeds[run.seed] = by_name.get(run.name) or seeds.get(run.seed)
    order = {axis: {value: n for n, value in enumerate(axis.values)} for axis in design.axes}
    return [
        Configuration(values, design.label(values), tuple(item for item in seeds.values() if item), len(seeds))
        for values, seeds in sorted(
            found.items(),
            key=lambda entry: [order[axis][value] for axis, value in zip(design.axes, entry[0], strict=True)],
        )
    ]


@dataclass(frozen=True)
class Column:
    """Comparable numbers, the best configuration first."""

    metric: Metric
    scale: Scale
    entries: tuple[tuple[Configuration, Summary], ...]


def scales(metric: Metric, found: Iterable[Configuration]) -> list[Scale]:
    """Those on which some configuration has the number."""
    items = [item for configuration in found for item in configuration.items]
    there = [metric.scale(item) for item in items if metric.of(item) is not None]
    return sorted({scale.key: scale for scale in there if scale}.values(), key=lambda scale: scale.order)


def columns(found: Sequence[Configuration]) -> list[Column]:
    """Every column in which there is something to choose from. An ELBO only where nothing better is known."""
    made = []
    for metric in (BITS, NLL, FID, MSE, ELBO):
        for scale in scales(metric, found):
            pairs = [(configuration, configuration.summary(metric, scale)) for configuration in found]
            entries = [(configuration, over_seeds) for configuration, over_seeds in pairs if over_seeds]
            if len(entries) > 1 and (metric is not ELBO or not scale.likelihoods):
                sign = 1 if metric.better == "low" else -1
                entries.sort(key=lambda entry: sign * entry[1].mean)
                made.append(Column(metric, scale, tuple(entries)))
    return made


def told_apart(metric: Metric, best: Summary, second: Summary) -> str:
    """What the seeds say about the gap between the two."""
    gap = abs(best.mean - second.mean)
    spreads = [found.std for found in (best, second) if found.std is not None]
    ahead = f"ahead by {metric.figure(gap)}"
    if len(spreads) < 2:
        return f"{ahead}; {'one seed each' if not spreads else 'one seed of one of them'} tells no spread"
    spread = f"the larger std over seeds is {metric.figure(max(spreads))}"
    return f"{ahead}; {spread}" if gap > max(spreads) else f"not told apart: {ahead}, and {spread}"
