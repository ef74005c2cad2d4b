"""A report as one HTML page that needs no network and no other file."""

import re
from base64 import b64encode
from html import escape
from pathlib import Path

from vaex.report.collect import STATES
from vaex.report.document import Block, Card, Cards, Definitions, Document, Picture, Pictures, Section, Table, Text

LONG = 60  # characters; longer cells may be wrapped


def page(document: Document) -> str:
    style, script = (Path(__file__).with_name(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    links = "".join(f'<a href="#{_anchor(section)}">{escape(section.title)}</a>' for section in document.sections)
    body = "\n".join(map(_section, document.sections))
    title = escape(document.title)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        f'<p class="lead">{escape(document.lead)}</p>\n<nav>{links}</nav>\n{body}\n</main>\n'
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _anchor(section: Section) -> str:
    return re.sub(r"\W+", "-", section.title.lower())


def _section(section: Section) -> str:
    blocks = "\n".join(map(_block, section.blocks))
    return f'<section id="{_anchor(section)}">\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>'


def _block(block: Block) -> str:
    match block:
        case Text(text, kind):
            return f'<p class="{kind}">{_inline(text)}</p>'
        case Definitions(entries):
            return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{_inline(text)}</dd>' for name, text in entries)}</dl>"
        case Cards(cards):
            return f'<div class="cards">{"".join(map(_card, cards))}</div>'
        case Table():
            return _table(block)
        case Pictures(pictures):
            layout = "sheets" if any(picture.strips for picture in pictures) else "plots"
            return f'<div class="{layout}">{"".join(map(_picture, pictures))}</div>'


def _inline(text: str) -> str:
    """Escaped text, with `code` in backticks as a code element."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _card(card: Card) -> str:
    lines = "".join(f"<li>{_inline(line)}</li>" for line in card.lines)
    return (
        f'<div class="card"><div class="metric">{escape(card.title)}</div><div class="group">{escape(card.group)}</div>'
        f'<div class="value">{escape(card.value)}</div><div class="winner">{escape(card.winner)}</div>'
        f"<ul>{lines}</ul></div>"
    )


def _table(table: Table) -> str:
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    header = "".join(
        f"<th{_class('n' if n in table.numbers else '')}>{escape(cell)}</th>" for n, cell in enumerate(table.header)
    )
    rows = "".join(f"<tr>{''.join(_cell(table, n, cell) for n, cell in enumerate(row))}</tr>\n" for row in table.rows)
    return (
        f'{title}<div class="box" tabindex="0"><table{_class("sortable" if table.sortable else "")}>'
        f"<thead><tr>{header}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


def _cell(table: Table, n: int, cell: str) -> str:
    classes = ["n"] * (n in table.numbers) + [cell] * (cell in STATES) + ["long"] * (len(cell) > LONG)
    text = f"<code>{escape(cell)}</code>" if n in table.code else escape(cell)
    return f"<td{_class(' '.join(classes))}>{text}</td>"


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _picture(picture: Picture) -> str:
    title = escape(picture.title)
    if picture.svg:
        return f'<figure class="plot" role="img" aria-label="{title}">{picture.svg}</figure>'
    strips = "".join(
        f'<span>{escape(label)}</span><img alt="{escape(label)}" src="data:image/png;base64,{b64encode(png).decode()}">'
        for label, png in picture.strips
    )
    heading = f"<h3>{title}</h3>" if title else ""
    return f'<figure class="sheet">{heading}<div class="strips">{strips}</div></figure>'
