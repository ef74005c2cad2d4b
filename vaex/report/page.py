"""A report as one HTML page that needs nothing but itself: no network, no other file."""

import re
from base64 import b64encode
from html import escape

from vaex.report.blocks import Block, Card, Cards, Document, Picture, Pictures, Points, Section, Table, Text
from vaex.report.collect import STATES
from vaex.report.look import CSS, SORTING

LONG = 60  # letters in a cell that may be wrapped


def page(document: Document) -> str:
    sections = [section for section in document.sections if section.blocks]
    links = "".join(f'<a href="#{_anchor(section)}">{escape(section.title)}</a>' for section in sections)
    body = "\n".join(map(_section, sections))
    title = escape(document.title)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        f'<p class="lead">{escape(document.lead)}</p>\n<nav>{links}</nav>\n{body}\n</main>\n'
        f"<script>{SORTING}</script>\n</body>\n</html>\n"
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
        case Points(points):
            return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{_inline(text)}</dd>' for name, text in points)}</dl>"
        case Cards(cards):
            return f'<div class="cards">{"".join(map(_card, cards))}</div>'
        case Table():
            return _table(block)
        case Pictures(pictures):
            layout = "sheets" if any(picture.strips for picture in pictures) else "plots"
            return f'<div class="{layout}">{"".join(map(_picture, pictures))}</div>'


def _inline(text: str) -> str:
    """Escaped, with `code` as such."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _card(card: Card) -> str:
    lines = "".join(f"<li>{_inline(line)}</li>" for line in card.lines)
    return (
        f'<div class="card"><div class="what">{escape(card.title)}</div><div class="of">{escape(card.of)}</div>'
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
    kinds = ["n"] * (n in table.numbers) + [cell] * (cell in STATES) + ["long"] * (len(cell) > LONG)
    text = f"<code>{escape(cell)}</code>" if n in table.code else escape(cell)
    return f"<td{_class(' '.join(kinds))}>{text}</td>"


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _picture(picture: Picture) -> str:
    title = escape(picture.title)
    if picture.svg:
        return f'<figure class="plot" role="img" aria-label="{title}">{picture.svg}</figure>'
    strips = "".join(
        f'<span>{escape(label)}</span><img alt="{escape(label)}" src="{_data(png)}">' for label, png in picture.strips
    )
    heading = f"<h3>{title}</h3>" if title else ""
    return f'<figure class="sheet">{heading}<div class="strips">{strips}</div></figure>'


def _data(png: bytes) -> str:
    return "data:image/png;base64," + b64encode(png).decode()
