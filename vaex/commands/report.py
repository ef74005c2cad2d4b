"""`vaex report`: the results of a sweep as one page, and its tables and plots as files.

Modules that help does not need are imported only after the arguments have been checked.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vaex.commands.arguments import Parser
from vaex.commands.datasets import LatestDataset
from vaex.errors import UserError, printable

PAGE, MARKDOWN, TABLE = "report.html", "report.md", "runs.csv"


def main(arguments: list[str]) -> None:
    """Write the report, and print the state of the runs and the files.

    Raises:
        UserError: an argument is invalid, a folder contains no run, or the report can't be written.
    """
    options = _parse(arguments)
    from vaex.build import load_model
    from vaex.report.collect import collect
    from vaex.report.markdown import markdown
    from vaex.report.page import page
    from vaex.report.sections import build_document, runs_csv
    from vaex.report.sheets import Loaders
    from vaex.runs.writing import replace_file

    runs = collect(options.folders)
    out: Path = options.out or options.folders[0] / "report"
    with _writing(out):  # before the long work, so that an error is reported early
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / TABLE, runs_csv(runs).encode())
    datasets = LatestDataset(options.data)
    document = build_document(runs, options.folders, Loaders(load_model, lambda run: datasets.of(run)[2]))
    with _writing(out):
        for picture in document.pictures:
            (out / picture.file).parent.mkdir(exist_ok=True)
            replace_file(out / picture.file, picture.content)
        replace_file(out / MARKDOWN, markdown(document).encode())
        replace_file(out / PAGE, page(document).encode())
    lines = [document.lead, *document.remarks, *(str(out / name) for name in (PAGE, MARKDOWN, TABLE))]
    print("\n".join(map(printable, lines)))


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: can't be written ({error.strerror}); give another folder: --out=…") from error


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="vaex report",
        usage="vaex report [--out FOLDER] [--data PATH] RUN_FOLDER …",
        description="Report on the runs of a sweep: the swept values, the best configuration by each metric, means and "
        "spreads over seeds, plots against the swept values, reconstructions and samples of all models in aligned "
        "columns, and every run with its state. Writes report.html, which needs no network, report.md and runs.csv.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="folders of runs or sweeps")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the report there; default: RUN_FOLDER/report")
    parser.add_data()
    options = parser.parse_args(arguments)
    if options.out is None and len(options.folders) > 1:
        parser.error("--out=FOLDER: is required if several folders are given")
    return options
