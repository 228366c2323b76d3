"""Content of a page before it becomes HTML: plain text and charts, so nothing is markup by
accident."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

WIDE, NARROW = 1000.0, 320.0
"""Width of a chart in pixels, on a screen and on a phone."""


@dataclass(frozen=True)
class Tile:
    """One figure at the top of a page."""

    name: str
    value: str
    what: str
    """Explanation of the figure."""


@dataclass(frozen=True)
class StatusView:
    """Whether the run is complete, in a word and a sentence."""

    complete: bool
    word: str
    sentence: str


@dataclass(frozen=True)
class Paragraph:
    """One or more sentences; a note is set smaller."""

    kind: ClassVar[str] = "paragraph"
    text: str
    note: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Figure:
    """A chart, drawn for a screen and for a phone; the style sheet shows the one that fits."""

    kind: ClassVar[str] = "figure"
    wide: Markup
    narrow: Markup
    caption: str

    @classmethod
    def drawn(
        cls, draw: Callable[[float, str], Markup], caption: str, wide: float = WIDE
    ) -> Figure:
        """Draw both charts by a function of the width in pixels and the class of the chart."""
        return cls(draw(wide, "wide"), draw(min(wide, NARROW), "narrow"), caption)


@dataclass(frozen=True)
class Head:
    """The head of a column."""

    text: str
    kind: str = "number"
    """Kind of its cells: ``word``, ``number`` or ``bar``."""


@dataclass(frozen=True)
class TableEntry:
    """One cell of a table."""

    text: str = ""
    note: str = ""
    """A less prominent line below the text."""
    unit: str = ""
    share: float | None = None
    """Length of a bar from 0 to 1; None: no bar. The number itself is in another cell."""


@dataclass(frozen=True)
class DataTable:
    """A table; the first entry of each row is the head of the row."""

    kind: ClassVar[str] = "table"
    heads: tuple[Head, ...]
    rows: tuple[tuple[TableEntry, ...], ...]
    caption: str = ""
    foot: tuple[TableEntry, ...] = ()
    row_notes: tuple[str, ...] = ()
    """Sentence beneath each row, over the whole width; empty if no row has one."""
    stacks: bool = False
    """Whether each row becomes a list of its values on a narrow page, for many columns."""


@dataclass(frozen=True)
class Beside:
    """A chart with a table beside it."""

    kind: ClassVar[str] = "beside"
    figure: Figure
    table: DataTable


@dataclass(frozen=True)
class Legend:
    """The meaning of the colors and patterns of a chart."""

    kind: ClassVar[str] = "legend"
    entries: tuple[tuple[str, str], ...]
    """Entries (name of the style, words)."""


@dataclass(frozen=True)
class GalleryObject:
    """One object of a gallery."""

    image: str | None
    """Picture as the ``data:`` URL of a PNG; None without one."""
    alternative: str
    """What the image shows, or why there is none."""
    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Pictures with words beneath them."""

    kind: ClassVar[str] = "gallery"
    items: tuple[GalleryObject, ...]


@dataclass(frozen=True)
class Preformatted:
    """Preformatted text, e.g. JSON."""

    kind: ClassVar[str] = "preformatted"
    text: str


@dataclass(frozen=True)
class Definitions:
    """Terms with their definitions."""

    kind: ClassVar[str] = "definitions"
    pairs: tuple[tuple[str, str], ...]


Part = (
    Paragraph
    | Heading
    | Figure
    | DataTable
    | Beside
    | Legend
    | Gallery
    | Preformatted
    | Definitions
)


@dataclass(frozen=True)
class Section:
    """One card of a page."""

    ident: str
    """Its anchor in the page."""
    title: str
    lead: str = ""
    parts: tuple[Part, ...] = ()
    half: bool = False
    """Whether two such sections are placed side by side if there is room."""


@dataclass(frozen=True)
class PageView:
    """A whole page, without references to anything outside."""

    title: str
    eyebrow: str
    heading: str
    sub: str
    status: StatusView
    tiles: tuple[Tile, ...]
    wide_tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    foot: str
