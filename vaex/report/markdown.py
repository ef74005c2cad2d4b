"""A report as Markdown, its pictures beside it."""

import re

from vaex.report.blocks import Block, Cards, Document, Pictures, Points, Table, Text


def markdown(document: Document) -> str:
    parts = [f"# {document.title}", document.lead + "."]
    for section in document.sections:
        if section.blocks:
            parts.append(f"## {section.title}")
            parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return _text(text)
        case Points(points):
            return "\n".join(f"- **{_cell(name)}**: {_text(text)}" for name, text in points)
        case Cards(cards):
            header = ("column", "of", "best", "value", "")
            rows = tuple((card.title, card.of, card.winner, card.value, "; ".join(card.lines)) for card in cards)
            return _table(Table(header, rows, frozenset({3})))
        case Table():
            return (f"**{_cell(block.title)}**\n\n" if block.title else "") + _table(block)
        case Pictures(pictures):
            return "\n\n".join(f"![{_cell(picture.title)}]({picture.file})" for picture in pictures)


def _table(table: Table) -> str:
    rule = ["--:" if n in table.numbers else "---" for n in range(len(table.header))]
    rows = [[_code(cell) if n in table.code else _cell(cell) for n, cell in enumerate(row)] for row in table.rows]
    lines = [[_cell(cell) for cell in table.header], rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(cell: str) -> str:
    return "`" + cell.replace("|", "\\|").replace("`", "'") + "`"


def _text(text: str) -> str:
    """Nothing of it is markup but `code` in backticks."""
    parts = text.split("`")
    return "".join(f"`{part}`" if n % 2 else _cell(part) for n, part in enumerate(parts))


def _cell(text: str) -> str:
    """Nothing of it is markup."""
    for character in "\\|<*_[":
        text = text.replace(character, "\\" + character)
    return re.sub(r"\s+", " ", text)
