"""The parts of a report, before they are rendered as HTML or Markdown. Texts may contain `code` in backticks."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Text:
    text: str
    kind: Literal["plain", "small", "warning"] = "plain"


@dataclass(frozen=True)
class Definitions:
    """A list of terms, each with its explanation."""

    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """`numbers` are the columns to align on the right; `code` those that contain paths and keys."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()
    code: frozenset[int] = frozenset()
    title: str = ""
    sortable: bool = False


@dataclass(frozen=True)
class Card:
    """The best configuration by one metric; `group` says between which runs the metric is compared."""

    title: str
    group: str
    value: str
    winner: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Cards:
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Picture:
    """A file beside the page. The page itself contains a plot as `svg`, and a sheet as labeled `strips` of PNG."""

    file: str
    title: str
    content: bytes
    svg: str = ""
    strips: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Pictures:
    pictures: tuple[Picture, ...]


Block = Text | Definitions | Table | Cards | Pictures


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """`lead` is the line below the title; `remarks` are printed in the terminal, too. No section is empty."""

    title: str
    lead: str
    sections: tuple[Section, ...]
    remarks: tuple[str, ...] = ()

    @property
    def pictures(self) -> list[Picture]:
        blocks = [block for section in self.sections for block in section.blocks]
        return [picture for block in blocks if isinstance(block, Pictures) for picture in block.pictures]
