"""The whole report: its sections in order, with the plots and the pictures that its runs allow."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from vaex.report import content, plots, training
from vaex.report.axes import Design, find_axes
from vaex.report.blocks import Block, Document, Picture, Pictures, Section, Text
from vaex.report.collect import Run
from vaex.report.layout import rows, views
from vaex.report.scores import scored
from vaex.report.statistics import Configuration, configurations
from vaex.report.svg import standalone, why_no_plots

FILES = "files"  # beside the page
SAME_IMAGES = "The decoder's mean; down each column the same test image."
SAME_DRAWS = "The decoder's mean; down each column the same z, drawn from the prior."


def assemble(runs: Sequence[Run], folders: Sequence[Path]) -> Document:
    """Of the runs found in the folders."""
    design = find_axes(runs)
    items = scored(runs)
    found = configurations(runs, items, design)
    no_plots = why_no_plots()
    remarks = (no_plots,) if no_plots else ()
    name = folders[0].resolve().name if len(folders) == 1 else f"{len(folders)} folders"
    sections = (
        content.swept(runs, design, found),
        content.best(found, folders),
        *(() if no_plots else _against(design, found)),
        *_sheets(design, found),
        *(() if no_plots else _training(design, found)),
        content.configuration_tables(design, found),
        content.all_runs(runs, items, design),
        content.notes(items, design, found, remarks),
    )
    return Document(f"Report on {name}", content.lead(runs), sections, remarks)


def _against(design: Design, found: Sequence[Configuration]) -> list[Section]:
    """Plots along each swept number."""
    made = []
    for n, view in enumerate(views(design, found)):
        rates = plots.rate_distortion(view, found) if n == 0 else []
        blocks: list[Block] = []
        if rates:
            text = "Mean ± std over seeds in both directions. Distortions of different things have their own panels."
            made.append(Section("Rate and distortion", (_plots(rates), Text(_and(text, view.caption), "small"))))
        if drawn := plots.against(view, found):
            blocks = [_plots(drawn), Text(_and("Mean ± std over seeds.", view.caption), "small")]
            made.append(Section(f"Against {view.axis.key}", tuple(blocks)))
    return made


def _training(design: Design, found: Sequence[Configuration]) -> list[Section]:
    panels = training.panels(design, found)
    if not panels:
        return []
    text = (
        "Every seed a line; the first twentieth of the steps doesn't stretch the axis. Different panels' ELBOs are of "
        "different things."
    )
    return [Section("Training", (_plots(plots.training_curves(panels)), Text(text, "small")))]


def _sheets(design: Design, found: Sequence[Configuration]) -> list[Section]:
    asked = rows(design, found)
    if not asked:
        return []
    from vaex.report import sheets  # and torch

    drawn = sheets.draw(asked)
    seeds = f"Of each configuration the first seed only ({', '.join(drawn.seeds)})."
    gaps = []
    for view in views(design, found)[:1]:
        seeds = _and(seeds, view.caption)
        gaps = view.gaps
    made = []
    for title, name, these, text in (
        ("Reconstructions", "reconstructions", drawn.reconstructions, SAME_IMAGES),
        ("Samples", "samples", drawn.samples, SAME_DRAWS),
    ):
        pictures = [
            Picture(
                f"{FILES}/{name}{n if len(these) > 1 else ''}.png",
                sheet.title,
                sheet.png(),
                strips=tuple(zip(sheet.labels, sheet.strips(), strict=True)),
            )
            for n, sheet in enumerate(these, 1)
        ]
        if pictures:
            made.append(Section(title, (Pictures(tuple(pictures)), Text(" ".join((text, seeds)), "small"))))
    remarks = [*drawn.remarks, *[f"No completed run, so no row: {'; '.join(gaps)}."] * bool(gaps)]
    if remarks:
        made.append(Section("About the pictures", tuple(map(Text, remarks))))
    return made


def _plots(made: Sequence[plots.Plot]) -> Pictures:
    return Pictures(
        tuple(Picture(f"{FILES}/{plot.name}.svg", plot.title, standalone(plot.svg), svg=plot.svg) for plot in made)
    )


def _and(text: str, caption: str) -> str:
    return f"{text} {caption}".strip()


def runs_csv(runs: Sequence[Run]) -> str:
    """One line a run: what differs, the seed, the state, every number of its results that is one number."""
    design = find_axes(runs)
    lines = []
    for run in runs:
        axes = {axis.key: design.value(run, axis) for axis in design.axes}
        plain = {name: value for name, value in run.results.items() if not isinstance(value, list | dict)}
        lines.append({"run": run.name, **axes, "seed": run.seed, "status": run.status, **plain, "reason": run.reason})
    columns = list(dict.fromkeys(name for line in lines for name in line if name != "reason"))
    file = io.StringIO()
    writer = csv.DictWriter(file, [*columns, "reason"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()
