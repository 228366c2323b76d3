"""Formats numbers for people, and tables of them as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from textwrap import fill, wrap

from perseid.errors import BadInputError
from perseid.plaintext import csv_cell, one_line

FORMATS = ("text", "markdown", "csv")
MISSING = "–"
"""Text of a cell without a value."""
NOTE = 44
"""Most characters per line in a text column of a text table."""
GAP = "  "
"""Space between two columns of a text table."""
HEAD = 8
"""Fewest characters per line to which a head is wrapped."""
FOOTNOTE = 110
"""Most characters per line of a footnote."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table: the text for people, and the value for programs."""

    text: str
    value: str | float | int | None = None
    """Value in CSV, not rounded; None leaves the field empty."""


@dataclass(frozen=True)
class TableColumn:
    """One column of a table: its key, its head and its layout."""

    key: str
    head: str
    numeric: bool = True
    """Whether it holds numbers, which are aligned right."""
    names_row: bool = False
    """Whether it identifies the row: it is repeated if a table is cut to fit."""


@dataclass(frozen=True)
class TextTable:
    """A table, with definitions as footnotes."""

    title: str
    columns: tuple[TableColumn, ...]
    rows: tuple[Mapping[str, Cell], ...]
    footnotes: tuple[str, ...] = field(default=())

    def render(self, form: str, width: int | None = None) -> str:
        """Format as ``text``, ``markdown`` or ``csv`` (without title and footnotes).

        The result ends in a newline.

        Parameters
        ----------
        width
            Width of the terminal in characters. A wider ``text`` table is cut into several, one
            beneath the other, each with the columns that identify its rows. None: no limit.

        Raises
        ------
        BadInputError
            The form is unknown.
        """
        if form == "text":
            return _text(self, width)
        if form == "markdown":
            return _markdown(self)
        if form == "csv":
            return _csv(self)
        raise BadInputError(f"no table format {form!r}: use one of {', '.join(FORMATS)}")

    def filled(self) -> tuple[TableColumn, ...]:
        """The columns in which at least one row has a value; all columns if there is no row."""
        return tuple(
            column
            for column in self.columns
            if not self.rows or any(row[column.key].text != MISSING for row in self.rows)
        )


def number(value: float | None, digits: int = 4) -> Cell:
    """A number as a cell with at most `digits` significant figures."""
    if value is None or not math.isfinite(value):
        return Cell(MISSING)
    return Cell(significant(value, digits), value)


def significant(value: float, digits: int = 4) -> str:
    """Round to significant figures, without an exponent unless the number is tiny.

    ``1234.5`` -> ``1234``; ``0.97167`` -> ``0.9717``; ``0.000054`` -> ``0.00005400``.
    """
    if value == 0:
        return "0"
    # Decimal places that give this number of significant figures.
    places = digits - 1 - math.floor(math.log10(abs(value)))
    if places > 8:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, places)}f}"


def dollars(value: float) -> str:
    """USD with three significant figures; a price below a tenth of a millionth is only bounded."""
    return "< 0.0000001" if 0 < value < 1e-7 else significant(value, 3)


def quantity(value: float) -> str:
    """A whole number with separated thousands; others with four figures, or two if tiny."""
    if not math.isfinite(value):
        return MISSING
    if value == round(value):
        return f"{value:,.0f}"
    return significant(value, 4) if value >= 1e-3 else f"{value:.1e}"


def seconds(value: float | None) -> Cell:
    """Seconds as a cell: three decimal places below 1, two below 100, one below 1,000."""
    if value is None or not math.isfinite(value):
        return Cell(MISSING)
    places = 3 if value < 1 else 2 if value < 100 else 1 if value < 1000 else 0
    return Cell(f"{value:.{places}f}", value)


def whole(value: float | None) -> Cell:
    """A count as a cell, without decimals."""
    if value is None or not math.isfinite(value):
        return Cell(MISSING)
    return Cell(f"{value:.0f}", round(value))


def word(value: str | None) -> Cell:
    """A label as a cell."""
    return Cell(value, value) if value else Cell(MISSING)


@dataclass(frozen=True)
class _Set:
    """A column of a text table, as lines."""

    cells: tuple[tuple[str, ...], ...]
    """Lines of the head, then those of each row."""
    numeric: bool

    @property
    def width(self) -> int:
        """Length of the longest line."""
        return max(len(line) for cell in self.cells for line in cell)


def _text(table: TextTable, width: int | None) -> str:
    columns = table.filled()
    named = [_wrapped_column(table, column, width) for column in columns if column.names_row]
    # The columns that identify a row appear in every part of the table: all others get the rest.
    room = None
    if width is not None:
        room = max(HEAD, width - sum(one.width + len(GAP) for one in named))
    sets = [_wrapped_column(table, c, width if c.names_row else room) for c in columns]
    lines = [one_line(table.title), ""] if table.title else []
    for number, block in enumerate(_blocks(sets, named, width)):
        lines += [""] * (number > 0) + _block_lines(block)
    # Said in a footnote, so that nobody takes a missing column for a missing feature.
    left_out = [column.head for column in table.columns if column not in columns]
    notes = [*table.footnotes]
    if left_out and table.footnotes:
        notes.append(f"Columns without a value are left out: {', '.join(left_out)}.")
    filled = [
        fill(
            one_line(note),
            min(FOOTNOTE, width or FOOTNOTE),
            initial_indent="  ",
            subsequent_indent="    ",
        )
        for note in notes
    ]
    return "\n".join([*lines, "", *filled]).rstrip() + "\n"


def _wrapped_column(table: TextTable, column: TableColumn, width: int | None) -> _Set:
    """Wrap head and cells: the head to the width of its cells, notes to at most `NOTE`."""
    widest = min(NOTE, width or NOTE)
    cells = [one_line(row[column.key].text) for row in table.rows]
    longest = max([*map(len, cells), *map(len, column.head.split()), HEAD])
    # Hyphens stay: a break inside a path or a date would make it hard to copy.
    body = [tuple(wrap(cell, widest, break_on_hyphens=False)) or ("",) for cell in cells]
    head = tuple(wrap(column.head, min(longest, widest))) or ("",)
    return _Set((head, *body), column.numeric)


def _blocks(sets: Sequence[_Set], named: Sequence[_Set], width: int | None) -> list[list[_Set]]:
    """Group the columns so that each group fits; each begins with those that identify the rows."""
    blocks: list[list[_Set]] = [[]]
    for one in sets:
        used = sum(other.width + len(GAP) for other in blocks[-1])
        own = [other for other in blocks[-1] if other not in named]
        # A column that is too wide by itself still gets a group, or the loop would never place it.
        if width is not None and own and used + one.width > width:
            blocks.append(list(named))
        blocks[-1].append(one)
    return blocks


def _block_lines(block: Sequence[_Set]) -> list[str]:
    lines: list[str] = []
    for index, row in enumerate(zip(*(one.cells for one in block), strict=True)):
        lines += _row_lines(row, block, bottom=index == 0)
        if index == 0:
            lines.append(GAP.join("-" * one.width for one in block))
    return lines


def _row_lines(
    row: Sequence[Sequence[str]], block: Sequence[_Set], *, bottom: bool
) -> Iterator[str]:
    """Lines of a row; heads are aligned at the bottom, values at the top."""
    height = max(map(len, row))
    for number in range(height):
        parts = []
        for cell, one in zip(row, block, strict=True):
            place = number - (height - len(cell)) if bottom else number
            words = cell[place] if 0 <= place < len(cell) else ""
            parts.append(words.rjust(one.width) if one.numeric else words.ljust(one.width))
        yield GAP.join(parts).rstrip()


def _markdown(table: TextTable) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(map(_markdown_cell, cells)) + " |"

    lines = [f"### {_markdown_cell(table.title)}", "", line(c.head for c in table.columns)]
    lines.append("| " + " | ".join("---:" if c.numeric else "---" for c in table.columns) + " |")
    lines += [line(row[column.key].text for column in table.columns) for row in table.rows]
    notes = [f"- {_markdown_cell(note)}" for note in table.footnotes]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def _markdown_cell(text: str) -> str:
    """A cell as one line, in which nothing ends the cell or counts as HTML."""
    return escape(one_line(text), quote=False).replace("|", "\\|")


def _csv(table: TextTable) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([csv_cell(column.head) for column in table.columns])
    for row in table.rows:
        # Unrounded, and columns without a value stay: programs expect the same columns each time.
        values = [row[column.key].value for column in table.columns]
        writer.writerow([csv_cell(v) if isinstance(v, str) else v for v in values])
    return out.getvalue()
