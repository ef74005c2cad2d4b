"""A table of evaluated runs: as text in 120 columns, as CSV and as JSON. Imports no torch."""

import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vaex.errors import printable
from vaex.evaluation.comparison import ComparisonGroup, Description, comparison_group, ranking_group
from vaex.evaluation.metric import Metric
from vaex.text_table import csv_table, end_of, text_table

WIDTH = 120
RUN_WIDTH, LIKELIHOOD_WIDTH = 40, 28  # longest cells; a run's path is shortened further if other columns need the room


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        run: its name in the table.
        results: what was measured, with its description.
        notes: sentences to print below the table.
    """

    run: str
    results: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def about(self) -> Description:
        about = Description.read(self.results)
        assert about is not None, "ranking_group has refused results without a description"
        return about


def ranked(rows: Iterable[Row]) -> list[tuple[ComparisonGroup, list[Row]]]:
    """Rows by group, each with the best run first; in the given order where runs are not ranked."""

    def score(row: Row) -> float:
        key = ranking_group(row.results).ranked_by
        value = row.results[key] if key else 0.0
        return math.inf if value is None or math.isnan(value) else value

    groups: dict[ComparisonGroup, list[Row]] = {}
    for row in sorted(rows, key=score):
        groups.setdefault(ranking_group(row.results), []).append(row)
    return sorted(groups.items(), key=lambda item: (item[0].order, item[0].title))


def text(rows: Iterable[Row], metrics: Sequence[Metric]) -> str:
    """One table for each group, with the reason why its runs may be compared and the notes on its runs."""
    parts = []
    for group, members in ranked(rows):
        lines = [group.title, *_table(group, members, metrics)]
        for sentence in (group.reason, *_about_the_scores(group, members), *_about_the_fid(members)):
            lines += textwrap.wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="  ")
        for row in members:
            for note in row.notes:
                lines += textwrap.wrap(f"{row.run}: {note}", WIDTH, initial_indent="  ! ", subsequent_indent="    ")
        parts.append("\n".join(map(printable, lines)))
    return "\n\n".join(parts)


def _table(group: ComparisonGroup, members: list[Row], metrics: Sequence[Metric]) -> list[str]:
    """Columns without any number are left out."""
    columns = [metric for metric in metrics if metric.column != ""]
    header = ["#", "run", "likelihood", "kind", "beta"]
    for metric in columns:
        header += [metric.title if metric.column is None else metric.column] + ["±"] * bool(metric.stderr_key)
    lines: list[list[str | None]] = []
    for number, row in enumerate(members, 1):
        about = row.about
        line: list[str | None] = [
            str(number) if group.ranked_by else None,
            end_of(row.run, RUN_WIDTH),
            _without_middle(about.likelihood_name, LIKELIHOOD_WIDTH),
            about.kind if group.ranked_by == "test/bits_per_dim" else None,  # other groups have one kind
            None if about.beta is None else f"{about.beta:g}",
        ]
        for metric in columns:
            comparable = metric.comparable is None or comparison_group(metric, row.results)
            line.append(metric.plain_text(metric.value(row.results)) if comparable else None)
            if metric.stderr_key:
                line.append(metric.plain_text(metric.stderr(row.results)) if comparable else None)
        lines.append(line)
    return text_table(header, lines, left=(1, 2, 3), width=WIDTH, shorten=1, drop_empty=True)


def _about_the_scores(group: ComparisonGroup, members: list[Row]) -> list[str]:
    if group.ranked_by is None:
        return []
    results, about = members[0].results, members[0].about
    in_bits = group.ranked_by == "test/bits_per_dim"
    sentence = "The score is computed from the ELBO, a looser bound than --samples would give."
    if results["test/bits_per_dim_from"] == "importance":
        fitted = " from a posterior fitted to it" if results.get("test/nll_posterior") == "fitted" else ""
        sentence = (
            f"The score is importance-weighted with {results['test/nll_samples']:,} samples of z for each image"
            f"{fitted}, and with finitely many samples it is biased upwards"
        )
        halving = max((row.results.get("test/nll_halving") or 0.0 for row in members), default=0.0)
        if halving > 0:
            per_unit = math.prod(about.image_shape) * math.log(2) if in_bits else 1.0
            unit = "bits/dim" if in_bits else "nats"
            sentence += f"; with half as many it would be up to {halving / per_unit:.2g} {unit} higher"
        sentence += "."
    sentence += " ± is the standard error over images."
    if in_bits:
        sentence += " The ELBO, in nats, is that of the 8-bit image: D · log 256 is subtracted from a density's."
    return [sentence]


def _about_the_fid(members: list[Row]) -> list[str]:
    """What the FID depends on. The runs of a group may differ only in where z comes from."""
    sentences = []
    for name, key, features in (
        ("FID", "test/fid", "in the features of vaex's own classifier, not of Inception"),
        ("I-FID, and I-rFID for reconstructions,", "test/fid_inception", "in the features of Inception-v3"),
    ):
        measured = [row.results for row in members if key in row.results]
        if measured:
            first = measured[0]
            latents = ", ".join(dict.fromkeys(results[f"{key}_latent"] for results in measured))
            sentence = f"{name} of {first[f'{key}_images']:,} {first[f'{key}_draws']}, z from the {latents}, {features}"
            floor = first.get(f"{key}_floor")
            sentences.append(sentence + ("." if floor is None else f"; real images give {floor:.1f}."))
    return sentences


def _without_middle(name: str, width: int) -> str:
    """The name in at most `width` characters, without its middle: names of options differ at both ends."""
    if len(name) <= width:
        return name
    return name[: width // 2] + "…" + name[len(name) - (width - width // 2 - 1) :]


def records(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One flat object for each run, in the table's order; numbers that are not finite are None."""
    return [
        {
            "group": group.title,
            "rank": number if group.ranked_by else None,
            "run": row.run,
            "likelihood": row.about.likelihood,
            "kind": row.about.kind,
            "scale": row.about.scale,
            "beta": row.about.beta,
            **finite(row.results),
        }
        for group, members in ranked(rows)
        for number, row in enumerate(members, 1)
    ]


def finite(results: dict[str, Any]) -> dict[str, Any]:
    """The results with None for NaN and infinity, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in results.items()}


def as_json(rows: Iterable[Row]) -> str:
    return json.dumps(records(rows), indent=2) + "\n"


def as_csv(rows: Iterable[Row]) -> str:
    """Without lists and objects, such as the rate of each latent, which only the JSON has."""
    return csv_table(records(rows))
