"""Means and spreads over seeds, and the best configuration by each metric. Imports no torch."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from vaex.evaluation.comparison import ComparisonGroup
from vaex.evaluation.metric import Metric
from vaex.report.axes import Design, find_axes
from vaex.report.collect import Run, Value


@dataclass(frozen=True)
class Summary:
    """Statistics over `n` seeds. `std` is the sample standard deviation (n − 1); None for one seed."""

    mean: float
    std: float | None
    n: int


def summarize(values: Sequence[float]) -> Summary | None:
    """None if there are no values."""
    if not values:
        return None
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def mean_text(metric: Metric, value: float) -> str:
    """A mean or a spread with the metric's digits. Means of whole numbers have one digit."""
    return replace(metric, digits=metric.digits or 1).text(value)


def summary_text(metric: Metric, summary: Summary | None) -> str:
    if summary is None:
        return metric.text(None)
    mean = mean_text(metric, summary.mean)
    return mean if summary.std is None else f"{mean} ± {mean_text(metric, summary.std)}"


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only in the seed.

    Attributes:
        values: along the axes of the design.
        runs: the completed run of each seed.
        seeds: number of seeds that were started.
    """

    values: tuple[Value, ...]
    label: str
    runs: tuple[Run, ...]
    seeds: int

    def summary(self, metric: Metric, group: ComparisonGroup | None = None) -> Summary | None:
        """Over the seeds whose number is in the group; by default in the group of the first run that has a number."""
        group = group or next(filter(None, (run.group(metric) for run in self.runs)), None)
        values = [run.value(metric, group) for run in self.runs] if group else []
        return summarize([value for value in values if value is not None])


@dataclass(frozen=True)
class Study:
    """The runs of a report, the axes along which they differ, and the metrics that they have."""

    runs: tuple[Run, ...]
    metrics: tuple[Metric, ...]
    design: Design
    configurations: tuple[Configuration, ...]

    @property
    def completed(self) -> list[Run]:
        """The runs whose numbers count: one for each configuration and seed."""
        return [run for configuration in self.configurations for run in configuration.runs]

    def metric(self, key: str) -> Metric | None:
        return next((metric for metric in self.metrics if metric.key == key), None)


def study(runs: Sequence[Run], metrics: Iterable[Metric]) -> Study:
    design = find_axes(runs)
    configurations = tuple(find_configurations(runs, design))
    measured = [metric for metric in metrics if any(metric.value(run.results) is not None for run in runs)]
    return Study(tuple(runs), tuple(measured), design, configurations)


def find_configurations(runs: Iterable[Run], design: Design) -> list[Configuration]:
    """The configurations of all runs that have a config, in the order of the axes.

    If several completed runs have the same configuration and seed, the last of them counts.
    """
    seeds_of: dict[tuple[Value, ...], dict[Value, Run | None]] = {}
    for run in runs:
        if run.config:
            seeds = seeds_of.setdefault(design.values(run), {})
            seeds[run.seed] = run if run.completed else seeds.get(run.seed)
    positions = [{value: n for n, value in enumerate(axis.values)} for axis in design.axes]
    return [
        Configuration(values, design.label(values), tuple(run for run in seeds.values() if run), len(seeds))
        for values, seeds in sorted(
            seeds_of.items(),
            key=lambda item: [position[value] for position, value in zip(positions, item[0], strict=True)],
        )
    ]


def groups(metric: Metric, configurations: Iterable[Configuration]) -> list[ComparisonGroup]:
    """The comparison groups in which some configuration has the number, in their order."""
    run_groups = [run.group(metric) for configuration in configurations for run in configuration.runs]
    return sorted(dict.fromkeys(filter(None, run_groups)), key=lambda group: group.order)


@dataclass(frozen=True)
class Ranking:
    """Configurations whose numbers may be compared, the best first."""

    metric: Metric
    group: ComparisonGroup
    entries: tuple[tuple[Configuration, Summary], ...]


def rankings(study: Study) -> list[Ranking]:
    """A ranking by every metric of at least two configurations; by the ELBO only where there is no better score."""
    result = []
    for metric in study.metrics:
        for group in groups(metric, study.configurations) if metric.better else ():
            if metric.comparable == "elbo" and group.across_likelihoods:
                continue
            pairs = [(configuration, configuration.summary(metric, group)) for configuration in study.configurations]
            entries = [(configuration, summary) for configuration, summary in pairs if summary]
            if len(entries) > 1:
                sign = 1 if metric.better == "lower" else -1
                entries.sort(key=lambda entry: sign * entry[1].mean)
                result.append(Ranking(metric, group, tuple(entries)))
    return result


def gap_text(metric: Metric, best: Summary, second: Summary) -> str:
    """By how much the best is ahead, with the interval of the difference, and whether that excludes zero."""
    gap = abs(best.mean - second.mean)
    ahead = f"ahead by {mean_text(metric, gap)}"
    half_width = interval(best, second)
    if half_width is None:
        each = "for one of them" if max(best.n, second.n) > 1 else "each"
        return f"{ahead}; the spread is unknown with one seed {each}"
    ahead += f" ± {mean_text(metric, half_width)} (95 % interval over seeds)"
    return ahead if gap > half_width else f"not distinguishable: {ahead}"


def interval(a: Summary, b: Summary) -> float | None:
    """Half the width of the 95 % t-interval of the difference of two means; None if one of them has a single seed.

    The variance is pooled, as if both configurations had the same. If both are the same in truth, 5 % of the intervals
    exclude zero, for any number of seeds. Welch's interval excludes it in 2 % of the cases for two seeds each.
    """
    if a.std is None or b.std is None:
        return None
    freedom = a.n + b.n - 2
    variance = ((a.n - 1) * a.std**2 + (b.n - 1) * b.std**2) / freedom
    return student_t_quantile(freedom) * math.sqrt(variance * (1 / a.n + 1 / b.n))


@cache
def student_t_quantile(degrees_of_freedom: int, probability: float = 0.95) -> float:
    """The t for which P(|T| <= t) is `probability`, by bisection."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, degrees_of_freedom) < probability else (low, middle)
    return math.sqrt(degrees_of_freedom) * math.tan(low)


def _central(theta: float, degrees_of_freedom: int) -> float:
    """P(|T| <= √ν tan θ) for ν degrees of freedom. Abramowitz & Stegun 1964, eqs. 26.7.3 and 26.7.4."""
    odd = degrees_of_freedom % 2
    term, total = math.sin(theta) * (math.cos(theta) if odd else 1.0), 0.0
    for k in range(odd, degrees_of_freedom - 1, 2):
        total += term
        term *= math.cos(theta) ** 2 * (k + 1) / (k + 2)
    return 2 / math.pi * (theta + total) if odd else total
