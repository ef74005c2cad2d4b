"""`vaex report`: what a sweep has shown, as one page that needs no network, with its tables and plots as files.

Imports what a verb's help doesn't need only after the arguments are known to be good, and torch for pictures and for
what a likelihood is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vaex.commands.arguments import Parser
from vaex.errors import UserError

PAGE, MARKDOWN, TABLE = "report.html", "report.md", "runs.csv"


def main(arguments: list[str]) -> None:
    """Read, draw, write, and say in one line each what was written.

    Raises:
        UserError: an argument, a folder without runs, or one that can't be written.
    """
    options = _parse(arguments)
    from vaex.report.assemble import assemble, runs_csv
    from vaex.report.collect import collect
    from vaex.report.markdown import markdown
    from vaex.report.page import page
    from vaex.runs.writing import replace_file

    runs = collect(options.folders)
    out: Path = options.out or options.folders[0] / "report"
    with _writing(out):  # before the long work, to see whether it can be written
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / TABLE, runs_csv(runs).encode())
    document = assemble(runs, options.folders)
    with _writing(out):
        for picture in document.pictures:
            (out / picture.file).parent.mkdir(exist_ok=True)
            replace_file(out / picture.file, picture.content)
        replace_file(out / MARKDOWN, markdown(document).encode())
        replace_file(out / PAGE, page(document).encode())
    print("\n".join([document.lead, *document.remarks]))
    print("\n".join(str(out / name) for name in (PAGE, MARKDOWN, TABLE)))


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: can't be written ({error.strerror}); give another folder: --out=…") from error


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="vaex report",
        usage="vaex report [--out FOLDER] RUN_FOLDER …",
        description="Report on the runs of a sweep: what was swept, the best of each column of comparable numbers, "
        "means and spreads over seeds, plots against the swept values, the same test images and the same z through all "
        "models, and every run with its state. Writes report.html, which needs no network, report.md and runs.csv.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="of runs or of sweeps")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write there; default: RUN_FOLDER/report")
    options = parser.parse_args(arguments)
    if options.out is None and len(options.folders) > 1:
        parser.error("--out=FOLDER: is needed where several folders are given")
    return options
