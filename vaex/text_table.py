"""Tables and numbers in plain text, for the terminal and for spreadsheets."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence

from vaex.errors import printable


def text_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str | None]],
    *,
    left: Collection[int],
    width: int = 120,
    shorten: int | None = None,
    indent: str = "  ",
    gap: int = 1,
    missing: str = "–",
    drop_empty: bool = False,
) -> list[str]:
    """Align rows of cells in columns.

    Args:
        rows: one cell for each column. None, and a cell that equals `missing`, is shown as `missing`. A row without
            any cells is drawn as a horizontal rule.
        left: indices of the columns that are aligned to the left; numbers are aligned to the right.
        width: maximum number of characters in a line, including the indent.
        shorten: index of the column whose cells lose their beginning (`…end`, at least 8 characters) in a wider table.
        gap: spaces between columns.
        drop_empty: leave out columns after the first in which every cell is missing.
    Returns:
        The lines, the header first, without spaces at their ends.
    """
    table = [[missing if cell is None else printable(cell) for cell in row] for row in (header, *rows)]
    filled = [row for row in table[1:] if row]
    columns = [n for n in range(len(header)) if not (drop_empty and n) or any(row[n] != missing for row in filled)]
    widths = {n: max(len(row[n]) for row in table if row) for n in columns}
    total = sum(widths.values()) + gap * (len(columns) - 1)
    if shorten in widths:
        room = max(8, widths[shorten] - (len(indent) + total - width))
        total -= max(0, widths[shorten] - room)
        widths[shorten] = min(widths[shorten], room)

    def align(row: list[str], n: int) -> str:
        cell = end_of(row[n], widths[n])
        return cell.ljust(widths[n]) if n in left else cell.rjust(widths[n])

    lines = [(" " * gap).join(align(row, n) for n in columns) if row else "─" * total for row in table]
    return [(indent + line).rstrip() for line in lines]


def csv_table(rows: Sequence[Mapping[str, object]], last: str | None = None) -> str:
    """Rows as CSV, with a column for each key, in the order in which they first appear.

    Text that a spreadsheet would run as a formula begins with an apostrophe instead. Lists and mappings are left out.

    Args:
        last: the key of the last column.
    """
    plain = [{str(_cell(k)): _cell(v) for k, v in row.items() if not isinstance(v, list | dict)} for row in rows]
    columns = list(dict.fromkeys(name for row in plain for name in row if name != last))
    if last:
        columns.append(last)
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return file.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    return "'" * value.startswith(("=", "+", "-", "@", "\t", "\r")) + printable(value)


def end_of(text: str, width: int) -> str:
    """The text in at most `width` characters: a longer one loses its beginning, since paths differ at their ends."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def human(value: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: 1,360,697 -> 1.36 M."""
    if value < 1000 and value == int(value):
        return f"{int(value)} {unit}".rstrip()
    prefixes = iter(("", "k", "M", "G", "T", "P", "E"))
    prefix = next(prefixes)
    while float(f"{value:.3g}") >= 1000:
        value, prefix = value / 1000, next(prefixes)
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()
