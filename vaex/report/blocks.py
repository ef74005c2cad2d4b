"""What a report is made of, before it is HTML or Markdown. Texts may hold `code` in backticks."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Text:
    text: str
    kind: Literal["plain", "small", "warning"] = "plain"


@dataclass(frozen=True)
class Points:
    """A list, each with what it is about in front."""

    points: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """`numbers` are the columns to align on the right; `code` those of paths and keys."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()
    code: frozenset[int] = frozenset()
    title: str = ""
    sortable: bool = False


@dataclass(frozen=True)
class Card:
    """The best of a column: what is measured, of what, by whom, and what else there is to know."""

    title: str
    of: str
    value: str
    winner: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Cards:
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Picture:
    """A file beside the page. In the page a plot stands as its `svg`, and a sheet as labelled `strips` of PNG."""

    file: str
    title: str
    content: bytes
    svg: str = ""
    strips: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Pictures:
    pictures: tuple[Picture, ...]


Block = Text | Points | Table | Cards | Pictures


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """`lead` is the line under the title; `remarks` are for the terminal too."""

    title: str
    lead: str
    sections: tuple[Section, ...]
    remarks: tuple[str, ...] = ()

    @property
    def pictures(self) -> list[Picture]:
        blocks = [block for section in self.sections for block in section.blocks]
        return [picture for block in blocks if isinstance(block, Pictures) for picture in block.pictures]
