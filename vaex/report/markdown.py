"""A report as Markdown, with its pictures in files beside it."""

import re
from html import escape

from vaex.errors import printable
from vaex.report.document import Block, Cards, Definitions, Document, Pictures, Table, Text


def markdown(document: Document) -> str:
    parts = [f"# {_escape(document.title)}", _escape(document.lead) + "."]
    for section in document.sections:
        parts += [f"## {_escape(section.title)}", *map(_block, section.blocks)]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return _text(text)
        case Definitions(entries):
            return "\n".join(f"- **{_escape(name)}**: {_text(text)}" for name, text in entries)
        case Cards(cards):
            header = ("metric", "compared between", "best", "value", "")
            rows = tuple((card.title, card.group, card.winner, card.value, "; ".join(card.lines)) for card in cards)
            return _table(Table(header, rows, frozenset({3})))
        case Table():
            return (f"**{_escape(block.title)}**\n\n" if block.title else "") + _table(block)
        case Pictures(pictures):
            return "\n\n".join(f"![{_escape(picture.title)}]({picture.file})" for picture in pictures)


def _table(table: Table) -> str:
    rule = ["--:" if n in table.numbers else "---" for n in range(len(table.header))]
    rows = [[_code(cell) if n in table.code else _escape(cell) for n, cell in enumerate(row)] for row in table.rows]
    lines = [[_escape(cell) for cell in table.header], rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    """As code, in which nothing can be escaped; plain if there is something to escape."""
    return _escape(text) if re.search(r"[&<>`|\\]|[^\S ]", text) else f"`{text}`"


def _text(text: str) -> str:
    """Escape all markup except `code` in backticks."""
    parts = text.split("`")
    return "".join(_code(part) if n % 2 and len(parts) % 2 else _escape(part) for n, part in enumerate(parts))


def _escape(text: str) -> str:
    """Text without markup, whichever dialect reads it: not all know a backslash before every character."""
    return re.sub(r"([\\|*_\[\]`])", r"\\\1", escape(printable(re.sub(r"\s+", " ", text)), quote=False))
