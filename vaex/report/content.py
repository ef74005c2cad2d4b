"""What a report says: its sections, from the runs and their statistics. Imports no torch."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vaex.report.axes import Design, shown
from vaex.report.blocks import Block, Card, Cards, Points, Section, Table, Text
from vaex.report.collect import STATES, Run
from vaex.report.scores import Scale, Scored, home
from vaex.report.statistics import (
    ACTIVE_UNITS,
    BITS,
    DISTORTION,
    ELBO,
    FID,
    METRICS,
    MSE,
    NLL,
    RATE,
    Column,
    Configuration,
    columns,
    told_apart,
)

MOST_NAMED = 8  # in a sentence
MOST_STOPPED = 50  # runs, each with its error


def lead(runs: Sequence[Run]) -> str:
    counts = Counter(run.status for run in runs)
    states = [f"{counts[state]} {state}" for state in (*STATES, "unknown") if counts[state]]
    return f"{len(runs)} run{'s' * (len(runs) != 1)}: {', '.join(states)}"


def swept(runs: Sequence[Run], design: Design, found: Sequence[Configuration]) -> Section:
    """Which keys, which values, how many seeds; and where runs are missing."""
    blocks: list[Block] = []
    if design.axes:
        rows = [
            (axis.key, str(len(axis.values)), ", ".join("(none)" if v is None else shown(v) for v in axis.values))
            for axis in design.axes
        ]
        rows.append(("seed", str(len(design.seeds)), ", ".join(map(shown, design.seeds)) + " (repetitions)"))
        blocks.append(Table(("key", "values", ""), tuple(rows), frozenset({1}), frozenset({0})))
        possible = 1
        for axis in design.axes:
            possible *= len(axis.values)
        every = f"All {possible}" if possible == len(found) else f"{len(found)} of {possible}"
        blocks.append(Text(f"{every} combinations of the values were run; what all runs share is not repeated here."))
    elif found:
        blocks.append(Text(f"Nothing differs between the runs but the seed: {', '.join(map(shown, design.seeds))}."))
    most = max((configuration.seeds for configuration in found), default=0)
    short = [c for c in found if len(c.items) < most]
    if short and len(found) > 1:
        named = [f"{c.label} ({len(c.items)} of {most})" for c in short[:MOST_NAMED]]
        more = f", and {len(short) - MOST_NAMED} more" if len(short) > MOST_NAMED else ""
        blocks.append(Text(f"Fewer seeds completed than of others: {'; '.join(named)}{more}.", "warning"))
    without = sum(not run.config for run in runs)
    if without:
        blocks.append(Text(f"Ended before a config.yaml was written, and so only in the table of all runs: {without}."))
    return Section("What was swept", tuple(blocks))


def best(found: Sequence[Configuration], folders: Sequence[Path]) -> Section:
    """The best configuration of each column, what may not be compared and why, and how to get what is missing."""
    everything = columns(found)
    across = [column for column in everything if column.scale.likelihoods]
    within = [column for column in everything if not column.scale.likelihoods]
    blocks: list[Block] = [*missing(found, folders), *_collapsed(found)]
    if across:
        blocks.append(Cards(tuple(map(_card, across))))
    if within:
        blocks.append(Text("Within one likelihood only, where no bound on a probability is known:"))
        blocks.append(Cards(tuple(map(_card, within))))
    homes = {scale.key: scale for scale in _homes(found)}
    reasons: dict[str, list[str]] = {}
    for scale in homes.values():
        reasons.setdefault(scale.reason, []).append(scale.title)
    if reasons:
        blocks.append(Text("What may be compared, and what may not:"))
        blocks.append(Points(tuple(("; ".join(dict.fromkeys(titles)), reason) for reason, titles in reasons.items())))
    if everything:
        blocks.append(
            Text(
                "Best by the mean over seeds, on the test split: the best of many is a little lucky there, and "
                "to choose by it is to use the test images.",
                "small",
            )
        )
    elif not any(c.items for c in found):
        blocks.append(Text("No run has completed, so there is nothing to compare yet."))
    return Section("Best of each column", tuple(blocks))


def _card(column: Column) -> Card:
    metric, ((winner, first), *others) = column.metric, column.entries
    sign = -1 if metric.better == "high" else 1
    runs = [(metric.of(item, column.scale), item.run.name) for item in winner.items]
    value, name = min(((v, n) for v, n in runs if v is not None), key=lambda pair: sign * pair[0])
    seeds = f"{first.n} of {winner.seeds} seeds" if first.n != winner.seeds else f"{first.n} seed{'s' * (first.n > 1)}"
    lines = [f"{seeds}; best run `{name}`, {metric.figure(value)}"]
    if others:
        second, its = others[0]
        lines.append(f"next: {second.label}, {metric.shown(its)}; {told_apart(metric, first, its)}")
    if column.scale.order in (5, 6):  # the others' reasons are told once, below
        lines.append(column.scale.reason)
    arrow = "lowest" if metric.better == "low" else "highest"
    return Card(f"{metric.title}, {arrow}", column.scale.title, metric.shown(first), winner.label or name, tuple(lines))


def missing(found: Sequence[Configuration], folders: Sequence[Path]) -> list[Text]:
    """Which numbers of `vaex eval` the completed runs lack, and the command that adds them."""
    items = [item for configuration in found for item in configuration.items]
    command = f"`vaex eval {shlex.join(map(str, folders))}`"
    bare = [item for item in items if "test/psnr" not in item.run.results]
    said = []
    if bare:
        count = "The runs have" if len(bare) == len(items) else f"{len(bare)} of {len(items)} completed runs have"
        said.append(f"{count} the numbers of training only. {command} adds importance-weighted NLL, bits/dim and FID.")
        if any(item.row.kind == "density" and not item.ranked for item in bare):
            said.append(
                "Until then the ELBOs of densities are of the levels k/255 and bound nothing: they are compared within "
                "one likelihood, and no likelihood is ranked against another by them."
            )
    elif items and not any("test/fid" in item.run.results for item in items):
        said.append(f"No FID: {command} measures it where the images have labels, or with `--fid means`.")
    return [Text(" ".join(said), "warning")] if said else []


def _collapsed(found: Sequence[Configuration]) -> list[Text]:
    """A warning where a model doesn't use its z, since its numbers then say little of its beta."""
    from vaex.evaluation.comparison import collapsed  # and torch

    counts = {c.label: sum(collapsed(item.row.results) is not None for item in c.items) for c in found}
    named = [f"{label or 'here'} ({count})" for label, count in counts.items() if count]
    if not named:
        return []
    more = f", and {len(named) - MOST_NAMED} more configurations" if len(named) > MOST_NAMED else ""
    listed = ", ".join(named[:MOST_NAMED]) + more
    return [Text(f"The posterior has collapsed, so that z is not used: {listed}.", "warning")]


def _homes(found: Sequence[Configuration]) -> list[Scale]:
    scales = {home(item).key: home(item) for configuration in found for item in configuration.items}
    return sorted(scales.values(), key=lambda scale: scale.order)


def configuration_tables(design: Design, found: Sequence[Configuration]) -> Section:
    """Mean ± std over seeds, one table for each kind of numbers, ranked where they rank."""
    blocks: list[Block] = []
    for scale in _homes(found):
        members = []
        for configuration in found:
            if items := tuple(item for item in configuration.items if home(item).key == scale.key):
                members.append(replace(configuration, items=items))
        score = next((m for m in (BITS, NLL) if any(c.summary(m) for c in members)), None)
        if score:
            means = {c.label: over_seeds.mean for c in members if (over_seeds := c.summary(score))}
            members.sort(key=lambda c: means[c.label])
        metrics = [m for m in METRICS if any(c.summary(m) for c in members)]
        header = ["#"] * bool(score) + [axis.key for axis in design.axes] + [metric.title for metric in metrics] + ["n"]
        rows = [
            ([str(n)] if score else [])
            + [shown(value) for value in c.values]
            + [metric.shown(c.summary(metric)) for metric in metrics]
            + [str(len(c.items))]
            for n, c in enumerate(members, 1)
        ]
        first = bool(score) + len(design.axes)
        numeric = {n + bool(score) for n, axis in enumerate(design.axes) if axis.numeric}
        numbers = numeric | set(range(first, len(header))) | ({0} if score else set())
        blocks.append(Table(tuple(header), tuple(map(tuple, rows)), frozenset(numbers), title=scale.title))
    if blocks:
        blocks.append(Text("Mean ± sample standard deviation (n − 1) over n seeds; one seed has no ±.", "small"))
    return Section("Configurations", tuple(blocks))


def all_runs(runs: Sequence[Run], items: Sequence[Scored], design: Design) -> Section:
    """Every run, whatever became of it."""
    scored = {item.run.name: item for item in items}
    metrics = [m for m in (BITS, NLL, ELBO, RATE, DISTORTION, FID, MSE, ACTIVE_UNITS) if any(map(m.of, items))]
    header = ["run", *(axis.key for axis in design.axes), "seed", "status", *(m.title for m in metrics)]
    header += ["ELBO is of"] * (ELBO in metrics) + ["seconds"]
    rows = []
    for run in runs:
        item = scored.get(run.name)
        row = [run.name, *map(shown, design.values(run)), shown(run.seed), run.status]
        for metric in metrics:
            value = metric.of(item) if item else None
            whole = metric is ACTIVE_UNITS and value is not None
            row.append("–" if value is None else f"{value:.0f}" if whole else metric.figure(value))
        if ELBO in metrics:
            row.append(_of(item) if item else "–")
        seconds = run.results.get("train/seconds")
        row.append(f"{seconds:,.0f}" if isinstance(seconds, int | float) else "–")
        rows.append(tuple(row))
    plain = {"run", "status", "ELBO is of"} | {axis.key for axis in design.axes if not axis.numeric}
    numbers = frozenset(n for n, name in enumerate(header) if name not in plain)
    table = Table(tuple(header), tuple(rows), numbers, frozenset({0}), sortable=len(rows) > 2)
    stopped = [(_named(run, design), run.reason) for run in runs if run.reason]
    blocks: list[Block] = [table]
    if stopped:
        more = f"; {len(stopped) - MOST_STOPPED} more in runs.csv" if len(stopped) > MOST_STOPPED else ""
        blocks += [Text(f"What stopped them, as far as they say{more}:"), Points(tuple(stopped[:MOST_STOPPED]))]
    return Section("All runs", tuple(blocks))


def _named(run: Run, design: Design) -> str:
    what = [design.label(design.values(run)), f"seed={shown(run.seed)}" * (run.seed is not None)]
    return f"{run.name}: {run.status}" + f" ({', '.join(filter(None, what))})" * any(what)


def _of(item: Scored) -> str:
    """In a word or two, what the run's ELBO is of."""
    if "test/rate" not in item.row.results:
        return "–"
    if item.ranked:
        return "binary images" if item.row.group.score == "NLL" else "8-bit images"
    return "pseudo" if item.row.kind == "pseudo" else "k/255" if item.row.kind == "density" else "unknown"


def notes(items: Sequence[Scored], design: Design, found: Sequence[Configuration], remarks: Sequence[str]) -> Section:
    """What a careful reader asks for."""
    said = [("Not in this report", remark) for remark in remarks]
    if design.followers:
        keys = ", ".join(f"`{key}`" for key in design.followers)
        said.append(("Goes with another value, so no axis of its own", keys))
    if design.execution:
        keys = ", ".join(f"`{key}`" for key in design.execution)
        said.append(("Differs in how runs ran, so no axis", keys))
    repeated = len(items) - sum(len(configuration.items) for configuration in found)
    if repeated:
        text = f"Completed runs with the configuration and seed of a later one, which counts: {repeated}."
        said.append(("Repeated", text))
    return Section("Notes", (Points(tuple(said)),) if said else ())
