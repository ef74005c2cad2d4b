"""The sections of a report in their order, from the runs and their statistics."""

import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vaex.data.dataset import changed_splits
from vaex.evaluation.comparison import ComparisonGroup, collapsed, ranking_group, recorded_identity
from vaex.evaluation.metric import Metric, declared
from vaex.evaluation.metrics import METRICS
from vaex.figures.plot import needs_matplotlib
from vaex.report import curves, plots, sheets
from vaex.report.axes import find_axes, value_text
from vaex.report.collect import STATES, Run
from vaex.report.document import Block, Card, Cards, Definitions, Document, Picture, Pictures, Section, Table, Text
from vaex.report.layout import sheet_rows, views
from vaex.report.statistics import Ranking, Study, gap_text, rankings, study, summary_text
from vaex.report.svg import standalone
from vaex.text_table import csv_table

FILES = "files"  # the folder of pictures, beside the page
LONGEST_NAME = 80  # characters of a picture's file name; file systems allow 255 bytes
MOST_NAMED = 8  # configurations in a sentence
MOST_REASONS = 50  # runs, each with its error
ELBO = "test/image_elbo"


def build_document(runs: Sequence[Run], folders: Sequence[Path], loaders: sheets.Loaders) -> Document:
    """The report on the runs that are in the folders."""
    studied = study(runs, report_metrics(runs))
    files = FileNames()
    reason = needs_matplotlib()
    remarks = (f"No plots: {reason}",) if reason else ()
    title = folders[0].resolve().name if len(folders) == 1 else f"{len(folders)} folders"
    sections = (
        sweep_section(studied),
        best_section(studied, folders),
        *([] if reason else plot_sections(studied, files)),
        *sheet_sections(studied, loaders, files),
        *([] if reason else training_sections(studied, files)),
        configurations_section(studied),
        runs_section(studied),
        notes_section(studied, remarks),
    )
    return Document(f"Report on {title}", lead(runs), tuple(section for section in sections if section.blocks), remarks)


def report_metrics(runs: Sequence[Run]) -> list[Metric]:
    """vaex's metrics that may be compared between runs, and all that results.json files declare themselves."""
    keys = {metric.key for metric in METRICS}
    declarations = [metric for metric in declared(run.results for run in runs) if metric.key not in keys]
    return [metric for metric in METRICS if metric.comparable] + declarations


def lead(runs: Sequence[Run]) -> str:
    counts = Counter(run.status for run in runs)
    states = [f"{counts[state]} {state}" for state in (*STATES, "unknown") if counts[state]]
    return f"{_count(len(runs), 'run')}: {', '.join(states)}"


def sweep_section(study: Study) -> Section:
    """The swept keys with their values, the seeds, and where runs are missing."""
    blocks: list[Block] = []
    design, configurations = study.design, study.configurations
    seeds = ", ".join(map(value_text, design.seeds))
    if design.axes:
        rows = [
            (axis.key, str(len(axis.values)), ", ".join("(none)" if v is None else value_text(v) for v in axis.values))
            for axis in design.axes
        ]
        rows.append(("seed", str(len(design.seeds)), f"{seeds} (repetitions)"))
        blocks.append(Table(("key", "values", ""), tuple(rows), frozenset({1}), frozenset({0})))
        possible = math.prod(len(axis.values) for axis in design.axes)
        number = f"All {possible}" if possible == len(configurations) else f"{len(configurations)} of {possible}"
        blocks.append(
            Text(f"{number} combinations of these values were run. Settings that all runs share are left out.")
        )
    elif configurations:
        blocks.append(Text(f"The runs differ only in the seed: {seeds}."))
    most = max((configuration.seeds for configuration in configurations), default=0)
    short = [f"{c.label} ({len(c.runs)} of {most})" for c in configurations if len(c.runs) < most]
    if short and len(configurations) > 1:
        text = f"Configurations with fewer completed seeds than others: {_listed(short, '; ')}."
        blocks.append(Text(text, "warning"))
    without = sum(not run.config for run in study.runs)
    if without:
        text = f"Runs that ended before they wrote a config.yaml, and appear only in the table of all runs: {without}."
        blocks.append(Text(text))
    return Section("What was swept", tuple(blocks))


def best_section(study: Study, folders: Sequence[Path]) -> Section:
    """The best configuration by each metric, what may not be compared and why, and how to add what is missing."""
    ranked = rankings(study)
    reasons: dict[str, dict[str, None]] = {}  # reason -> titles of its groups
    for group in (*_ranking_groups(study), *(ranking.group for ranking in ranked)):
        reasons.setdefault(group.reason, {})[group.title] = None
    blocks: list[Block] = [*_missing(study, folders), *_changed_images(study), *_collapsed(study)]
    across = [_card(ranking) for ranking in ranked if ranking.group.across_likelihoods]
    within = [_card(ranking) for ranking in ranked if not ranking.group.across_likelihoods]
    if across:
        blocks.append(Cards(tuple(across)))
    if within:
        blocks.append(Text("Within one likelihood, where no bound on the probability of an image is known:"))
        blocks.append(Cards(tuple(within)))
    if reasons:
        blocks.append(Text("Which runs may be compared, and why:"))
        blocks.append(Definitions(tuple(("; ".join(titles), reason) for reason, titles in reasons.items())))
    if ranked:
        text = (
            "The best configuration has the best mean over seeds on the test split. The best of many is a little lucky "
            "there, and choosing by this page uses the test images for the choice."
        )
        blocks.append(Text(text, "small"))
    elif not study.completed:
        blocks.append(Text("No run has completed, so there is nothing to compare yet."))
    return Section("Best configurations", tuple(blocks))


def _card(ranking: Ranking) -> Card:
    metric, group, ((winner, first), *others) = ranking.metric, ranking.group, ranking.entries
    runs = [(value, run.name) for run in winner.runs if (value := run.value(metric, group)) is not None]
    value, name = (min if metric.better == "lower" else max)(runs, key=lambda pair: pair[0])
    seeds = f"{first.n} of {winner.seeds} seeds" if first.n != winner.seeds else _count(first.n, "seed")
    lines = [f"{seeds}; best run `{name}`, {metric.text(value)}"]
    if others:
        second, summary = others[0]
        lines.append(f"next: {second.label}, {summary_text(metric, summary)}; {gap_text(metric, first, summary)}")
    title = f"{metric.title}, {'lowest' if metric.better == 'lower' else 'highest'}"
    return Card(title, group.title, summary_text(metric, first), winner.label or name, tuple(lines))


def _missing(study: Study, folders: Sequence[Path]) -> list[Text]:
    """Which results of `vaex eval` the completed runs lack, and the command that adds them."""
    runs = study.completed
    command = f"`vaex eval {shlex.join(map(str, folders))}`"
    sentences = []
    if undescribed := sum(run.about is None for run in runs):
        sentences.append(
            f"{undescribed} of {_count(len(runs), 'completed run')} do not say what their numbers describe, because an "
            f"older version made them. They are listed and not compared. {command} adds the description."
        )
    unevaluated = [run for run in runs if "test/psnr" not in run.results]
    if unevaluated:
        number = "The runs" if len(unevaluated) == len(runs) else f"{len(unevaluated)} of {len(runs)} completed runs"
        sentences.append(
            f"{number} have only the numbers that training measured. {command} adds the importance-weighted NLL, "
            "bits/dim and FID."
        )
        if any(r.about and r.about.kind == "density" and "test/scored_pixels" not in r.results for r in unevaluated):
            sentences.append(
                "Until then, the ELBOs of densities are of the levels k/255 and bound nothing: they are compared "
                "within one likelihood, and do not rank likelihoods."
            )
    elif runs and not any("test/fid" in run.results for run in runs):
        sentences.append(f"No FID: {command} measures it if the images have labels, or with `--fid means`.")
    return [Text(" ".join(sentences), "warning")] if sentences else []


def _collapsed(study: Study) -> list[Text]:
    """A warning where a model does not use z, because its numbers then hardly depend on its beta."""
    counts = {c.label: sum(collapsed(run.results) is not None for run in c.runs) for c in study.configurations}
    names = [f"{label or 'all'} ({_count(count, 'run')})" for label, count in counts.items() if count]
    text = f"The posterior has collapsed, so that z is not used: {_listed(names, ', ')}."
    return [Text(text, "warning")] if names else []


def _changed_images(study: Study) -> list[Text]:
    """A warning where runs with the same settings of the dataset had different images."""
    first: dict[object, Run] = {}  # settings of the dataset -> its first run
    changes = []
    for run in study.completed:
        settings = tuple(sorted((k, str(v)) for k, v in run.config.items() if k.startswith("dataset.")))
        earlier = first.setdefault((run.choices.get("dataset"), settings), run)
        before, now = (recorded_identity(each.results) for each in (earlier, run))
        if difference := changed_splits(before, now):
            changes.append(f"`{run.name}` and `{earlier.name}`: {difference}")
    text = (
        f"The images of a dataset changed between runs: {_listed(changes, '; ')}. Numbers of different test images are "
        "not compared; other training images are a difference between the runs that no table shows."
    )
    return [Text(text, "warning")] if changes else []


def _ranking_groups(study: Study) -> list[ComparisonGroup]:
    groups = dict.fromkeys(ranking_group(run.results) for run in study.completed if run.about)
    return sorted(groups, key=lambda group: group.order)


def plot_sections(study: Study, files: "FileNames") -> list[Section]:
    """Plots along each swept number."""
    sections = []
    for n, view in enumerate(views(study)):
        rates = plots.rate_distortion(view, study) if n == 0 else []
        if rates:
            text = (
                "Mean ± std over seeds in both directions. Distortions that may not be compared have their own panels."
            )
            sections.append(Section("Rate and distortion", (_pictures(rates, files), _caption(text, view.caption))))
        if metrics := plots.against(view, study):
            blocks = _pictures(metrics, files), _caption("Mean ± std over seeds.", view.caption)
            sections.append(Section(f"Against {view.axis.key}", blocks))
    return sections


def training_sections(study: Study, files: "FileNames") -> list[Section]:
    text = (
        "One curve for each run. The first twentieth of the steps does not count for the limits of the axis. ELBOs in "
        "different panels may not be comparable."
    )
    panels = plots.training_curves(curves.panels(study))
    return [Section("Training", (_pictures(panels, files), Text(text, "small")))] if panels else []


def sheet_sections(study: Study, loaders: sheets.Loaders, files: "FileNames") -> list[Section]:
    rows = sheet_rows(study)
    if not rows:
        return []
    pages = sheets.draw(rows, loaders)
    view = next(iter(views(study)), None)
    caption = f"Only the first seed of each configuration ({', '.join(pages.seeds)}). {view.caption if view else ''}"
    sections = []
    for title, pictures, content in (
        ("Reconstructions", pages.reconstructions, "the same test image"),
        ("Samples", pages.samples, "the same z from the prior, if that is N(0, I)"),
    ):
        parts = tuple(
            Picture(
                files.add(f"{title}{n if len(pictures) > 1 else ''}", "png"),
                sheet.title,
                sheet.png(),
                strips=tuple(zip(sheet.labels, sheet.strips(), strict=True)),
            )
            for n, sheet in enumerate(pictures, 1)
        )
        text = f"The decoder's mean. Every column shows {content}."
        if parts:
            sections.append(Section(title, (Pictures(parts), _caption(text, caption))))
    remarks = list(pages.remarks)
    if view and view.gaps:
        remarks.append(f"No completed run, so no row: {'; '.join(view.gaps)}.")
    return [*sections, Section("Notes on the pictures", tuple(map(Text, remarks)))]


def configurations_section(study: Study) -> Section:
    """Mean ± std over seeds, one table for each ranking group, ranked where the group has a score."""
    blocks: list[Block] = []
    axes = study.design.axes
    for group in _ranking_groups(study):
        members = []
        for configuration in study.configurations:
            runs = tuple(run for run in configuration.runs if run.about and ranking_group(run.results) == group)
            if runs:
                members.append(replace(configuration, runs=runs))
        score = study.metric(group.ranked_by) if group.ranked_by else None
        if score:
            members.sort(key=lambda c: s.mean if (s := c.summary(score)) else math.inf)
        metrics = [metric for metric in study.metrics if any(c.summary(metric) for c in members)]
        header = ["#"] * bool(score) + [axis.key for axis in axes] + [metric.title for metric in metrics] + ["n"]
        rows = [
            [
                *([str(n)] if score else []),
                *map(value_text, c.values),
                *(summary_text(metric, c.summary(metric)) for metric in metrics),
                str(len(c.runs)),
            ]
            for n, c in enumerate(members, 1)
        ]
        texts = {bool(score) + n for n, axis in enumerate(axes) if not axis.numeric}
        numbers = frozenset(range(len(header))) - texts
        blocks.append(Table(tuple(header), tuple(map(tuple, rows)), numbers, title=group.title))
    if blocks:
        text = "Mean ± sample standard deviation (n − 1) over n seeds. With one seed there is no ±."
        blocks.append(Text(text, "small"))
    return Section("Configurations", tuple(blocks))


def runs_section(study: Study) -> Section:
    """Every run, whatever its state."""
    design, elbo = study.design, study.metric(ELBO)
    metrics = [m for m in study.metrics if any(_shown_value(run, m) is not None for run in study.runs)]
    header = ["run", *(axis.key for axis in design.axes), "seed", "status", *(metric.title for metric in metrics)]
    header += ["ELBO of"] * (elbo in metrics) + ["seconds"]
    rows = []
    for run in study.runs:
        row = [run.name, *map(value_text, design.values(run)), value_text(run.seed), run.status]
        row += [_shown_text(run, metric) for metric in metrics]
        row += [_elbo_of(run)] * (elbo in metrics)
        seconds = run.results.get("train/seconds")
        rows.append((*row, f"{seconds:,.0f}" if isinstance(seconds, int | float) else "–"))
    texts = {"run", "status", "ELBO of"} | {axis.key for axis in design.axes if not axis.numeric}
    numbers = frozenset(n for n, name in enumerate(header) if name not in texts)
    blocks: list[Block] = [Table(tuple(header), tuple(rows), numbers, frozenset({0}), sortable=len(rows) > 2)]
    if any(metric.stderr(run.results) is not None for metric in metrics for run in study.runs):
        blocks.append(Text("Here ± is the standard error over test images.", "small"))
    reasons = [(_description(run, study), run.reason) for run in study.runs if run.reason]
    if reasons:
        more = f" ({len(reasons) - MOST_REASONS} more in runs.csv)" if len(reasons) > MOST_REASONS else ""
        blocks += [Text(f"Why runs stopped, and files that can't be read{more}:")]
        blocks += [Definitions(tuple(reasons[:MOST_REASONS]))]
    return Section("All runs", tuple(blocks))


def _shown_value(run: Run, metric: Metric) -> float | None:
    """The number, unless the run's description says that it does not apply to the run."""
    hidden = not run.completed or (run.about and metric.comparable and run.group(metric) is None)
    return None if hidden else metric.value(run.results)


def _shown_text(run: Run, metric: Metric) -> str:
    """The number and, where it is known, its standard error over images."""
    value, stderr = _shown_value(run, metric), metric.stderr(run.results)
    return metric.text(value) if value is None or stderr is None else f"{metric.text(value)} ± {metric.text(stderr)}"


def _description(run: Run, study: Study) -> str:
    seed = f"seed={value_text(run.seed)}" if run.seed is not None else ""
    settings = ", ".join(filter(None, (study.design.label(study.design.values(run)), seed)))
    return f"{run.name}: {run.status}" + (f" ({settings})" if settings else "")


def _elbo_of(run: Run) -> str:
    """What the run's ELBO describes, in two words."""
    about, pixels = run.about, run.results.get("test/scored_pixels")
    if about is None or not about.stochastic:
        return "–"
    if pixels:
        return "binary images" if pixels == "binary" else "8-bit images"
    return "pseudo" if about.kind == "pseudo" else "k/255"


def notes_section(study: Study, remarks: Sequence[str]) -> Section:
    """Which keys differ without being an axis, and which runs do not count."""
    notes = [("Not in this report", remark) for remark in remarks]
    for title, keys in (
        ("Follow from another value, so no axes", study.design.followers),
        ("Concern only how the runs were executed, so no axes", study.design.execution),
    ):
        if keys:
            notes.append((title, ", ".join(f"`{key}`" for key in keys)))
    repeated = sum(run.completed and bool(run.config) for run in study.runs) - len(study.completed)
    if repeated:
        text = f"Completed runs with the same configuration and seed as a later one, which is used instead: {repeated}."
        notes.append(("Repeated runs", text))
    return Section("Notes", (Definitions(tuple(notes)),) if notes else ())


class FileNames:
    """Names for the files of pictures: short enough for any file system, and each used once."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def add(self, title: str, suffix: str) -> str:
        stem = re.sub(r"[^A-Za-z0-9]+", "_", title).strip("_").lower()[:LONGEST_NAME].rstrip("_")
        name, n = stem, 1
        while name in self._used:
            n += 1
            name = f"{stem}_{n}"
        self._used.add(name)
        return f"{FILES}/{name}.{suffix}"


def _pictures(made: Sequence[plots.Plot], files: FileNames) -> Pictures:
    return Pictures(
        tuple(Picture(files.add(plot.name, "svg"), plot.title, standalone(plot.svg), svg=plot.svg) for plot in made)
    )


def _caption(*sentences: str) -> Text:
    return Text(" ".join(sentences).strip(), "small")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _listed(names: Sequence[str], separator: str) -> str:
    more = f", and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return separator.join(names[:MOST_NAMED]) + more


def runs_csv(runs: Sequence[Run]) -> str:
    """One line for each run: the swept values, the seed, the state, and every single value in its results.json."""
    design = find_axes(runs)
    lines = []
    for run in runs:
        axes = {axis.key: design.value(run, axis) for axis in design.axes}
        values = {"seed": run.seed, "status": run.status, **run.results, "reason": run.reason}
        lines.append({"run": run.name, **axes, **values})
    return csv_table(lines, last="reason")
