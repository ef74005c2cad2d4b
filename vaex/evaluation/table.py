"""A table of evaluated runs: as text in 120 columns, as CSV and as JSON. Imports no torch."""

import csv
import io
import json
import math
import textwrap
from typing import Any

from vaex.evaluation.ranking import Group, Row, grouped

WIDTH = 120
RUN_WIDTH, LIKELIHOOD_WIDTH = 40, 28  # at most; the run's path gets less where the other columns need the room


def text(rows: list[Row]) -> str:
    """Groups one under the other, each with the sentence that says what it may be compared with."""
    parts = []
    for group, members in grouped(rows):
        lines = [group.title, *_lines(_cells(group, members))]
        lines += textwrap.wrap(group.reason, WIDTH, initial_indent="  ", subsequent_indent="  ")
        for sentence in _about_the_score(members):
            lines += textwrap.wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="  ")
        lines += [f"  {sentence}" for sentence in _about_the_distance(members)]
        for row in members:
            for note in row.notes:
                lines += textwrap.wrap(f"{row.run}: {note}", WIDTH, initial_indent="  ! ", subsequent_indent="    ")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _about_the_score(members: list[Row]) -> list[str]:
    if members[0].score is None:
        return []
    eight_bits = members[0].group.score == "bits/dim"
    taken_off = " elbo, in nats, is of the 8-bit image: D · log 256 is taken off a density's." if eight_bits else ""
    samples = members[0].results.get("test/nll_samples")  # one number a group, since it goes by the kind of pixels
    if samples is None:
        return ["From the ELBO: an upper bound, looser than --samples would give." + taken_off]
    return [
        f"Importance-weighted with {samples:,} draws of z for each image; ± is the standard error over images. "
        f"With finitely many draws the number errs upwards only.{taken_off}"
    ]


def _about_the_distance(members: list[Row]) -> list[str]:
    """What the column FID is of; runs may differ in nothing but where z came from."""
    found = [row.results for row in members if "test/fid" in row.results]
    if not found:
        return []
    latents = ", ".join(dict.fromkeys(results["test/fid_latent"] for results in found))
    first = found[0]
    return [
        f"FID of {first['test/fid_images']:,} {first['test/fid_draws']}, z from the {latents}; by vaex's classifier, "
        f"not Inception; real images give {first['test/fid_floor']:.1f}."
    ]


def _cells(group: Group, members: list[Row]) -> list[list[str]]:
    """A header, then a line for each run; columns that would be empty are left out."""
    score = group.score or "score"
    header = [
        "#",
        "run",
        "likelihood",
        "kind",
        "beta",
        score,
        "±",
        "elbo",
        "rate",
        "MSE",
        "PSNR",
        "SSIM",
        "AU",
        "cov90",
        "FID",
        "agree",
        "MIG",
        "DCI",
        "SAP",
        "FVAE",
    ]
    digits = 4 if group.score == "bits/dim" else 2
    lines = []
    for row in members:
        results = row.results
        lines.append(
            [
                "–" if row.rank is None else str(row.rank),
                row.run,
                _shortened(row.likelihood + (f"/{row.scale}" if row.scale else ""), LIKELIHOOD_WIDTH),
                row.kind if group.score == "bits/dim" else "–",  # the only groups with both
                "–" if row.beta is None else f"{row.beta:g}",
                _number(row.score, digits),
                _number(row.score_stderr, digits),
                _number(row.elbo, 1),
                _number(row.rate, 1),
                _number(results.get("test/mse"), 5),
                _number(results.get("test/psnr"), 1),
                _number(results.get("test/ssim"), 3),
                "–" if "test/active_units" not in results else str(results["test/active_units"]),
                _number(results.get("test/coverage_90"), 3),
                _number(results.get("test/fid"), 1),
                _number(results.get("test/class_agreement"), 3),
                _number(results.get("test/mig"), 3),
                _number(results.get("test/dci_disentanglement"), 3),
                _number(results.get("test/sap"), 3),
                _number(results.get("test/factor_vae"), 3),
            ]
        )
    kept = [n for n in range(len(header)) if n == 0 or any(line[n] != "–" for line in lines)]
    return [[line[n] for n in kept] for line in (header, *lines)]


def _lines(cells: list[list[str]]) -> list[str]:
    """Text to the left, numbers to the right; long paths lose their beginning."""
    widths = [max(len(line[n]) for line in cells) for n in range(len(cells[0]))]
    others = sum(widths) - widths[1] + len(widths) + 1  # a space between columns, two before the first
    widths[1] = min(widths[1], RUN_WIDTH, max(8, WIDTH - others))
    left = {"run", "likelihood", "kind"}
    lines = []
    for line in cells:
        shown = []
        for header, cell, width in zip(cells[0], line, widths, strict=True):
            cell = cell if len(cell) <= width else "…" + cell[len(cell) - width + 1 :]
            shown.append(cell.ljust(width) if header in left else cell.rjust(width))
        lines.append(("  " + " ".join(shown)).rstrip())
    return lines


def _shortened(name: str, width: int) -> str:
    """Without its middle where it's too long: names of options differ at both ends."""
    if len(name) <= width:
        return name
    return name[: width // 2] + "…" + name[len(name) - (width - width // 2 - 1) :]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def records(rows: list[Row]) -> list[dict[str, Any]]:
    """One flat object a run, in the table's order; what is not a finite number is None."""
    return [
        {
            "group": group.title,
            "rank": row.rank,
            "run": row.run,
            "likelihood": row.likelihood,
            "kind": row.kind,
            "scale": row.scale,
            "beta": row.beta,
            **finite(row.results),
        }
        for group, members in grouped(rows)
        for row in members
    ]


def finite(results: dict[str, Any]) -> dict[str, Any]:
    """JSON has no nan and no infinity: None in their place."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in results.items()}


def as_json(rows: list[Row]) -> str:
    return json.dumps(records(rows), indent=2) + "\n"


def as_csv(rows: list[Row]) -> str:
    """Lists, such as the rate of each latent, are in the JSON only."""
    plain = [{k: v for k, v in record.items() if not isinstance(v, list)} for record in records(rows)]
    columns = list(dict.fromkeys(name for record in plain for name in record))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return file.getvalue()
