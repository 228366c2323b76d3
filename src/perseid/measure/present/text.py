"""Numbers as people read them, and tables of them as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill, wrap

from perseid.errors import BadInputError

FORMATS = ("text", "markdown", "csv")
MISSING = "–"
NOTE = 44
"""Characters of a line of words in a text table."""
HEAD = 8
"""A head is not wrapped narrower than this."""
FOOTNOTE = 110


@dataclass(frozen=True)
class Cell:
    """One value of a table: what is shown, and what a program reads."""

    text: str
    value: str | float | int | None = None
    """For CSV: the unrounded number; None leaves the field empty."""


@dataclass(frozen=True)
class Column:
    """One column."""

    key: str
    head: str
    numeric: bool = True
    """Set flush right."""


@dataclass(frozen=True)
class Table:
    """A table with its definitions beneath it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Cell], ...]
    footnotes: tuple[str, ...] = field(default=())

    def render(self, form: str) -> str:
        """As ``text``, ``markdown`` or ``csv`` (without title and footnotes); ends in a newline.

        Raises `BadInputError` for another form.
        """
        renderers = {"text": _text, "markdown": _markdown, "csv": _csv}
        if form not in renderers:
            raise BadInputError(f"no table format {form!r}: use one of {', '.join(FORMATS)}")
        return renderers[form](self)


def number(value: float | None, digits: int = 4) -> Cell:
    """At most so many significant figures, without exponent where it stays readable."""
    if value is None or not math.isfinite(value):
        return Cell(MISSING)
    return Cell(significant(value, digits), value)


def significant(value: float, digits: int = 4) -> str:
    """``1234.5`` -> ``1234``; ``0.97167`` -> ``0.9717``; ``0.000054`` stays."""
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    if places > 8:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, places)}f}"


def dollars(value: float) -> str:
    """Three figures; what is less than a tenth of a millionth is said to be so."""
    return "< 0.0000001" if 0 < value < 1e-7 else significant(value, 3)


def quantity(value: float) -> str:
    """A count as it is, with thousands apart; anything else in four figures, or two if tiny."""
    if value == round(value):
        return f"{value:,.0f}"
    return significant(value, 4) if value >= 1e-3 else f"{value:.1e}"


def plural(count: int, noun: str) -> str:
    """``1 rank``, ``8 ranks``, ``2,056 rows``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def seconds(value: float | None) -> Cell:
    """Seconds: two places below 100, one below 1000, three places below one."""
    if value is None or not math.isfinite(value):
        return Cell(MISSING)
    places = 3 if value < 1 else 2 if value < 100 else 1 if value < 1000 else 0
    return Cell(f"{value:.{places}f}", value)


def whole(value: float | None) -> Cell:
    """A count."""
    if value is None or not math.isfinite(value):
        return Cell(MISSING)
    return Cell(f"{value:.0f}", round(value))


def word(value: str | None) -> Cell:
    """A label."""
    return Cell(value, value) if value else Cell(MISSING)


def _text(table: Table) -> str:
    columns = [_wrapped_column(table, column) for column in table.columns]
    widths = [max(len(line) for cell in cells for line in cell) for cells in columns]
    flush = [column.numeric for column in table.columns]
    lines = [table.title, ""]
    for index, row in enumerate(zip(*columns, strict=True)):
        lines += _lines(row, widths, flush, bottom=index == 0)
        if index == 0:
            lines.append("  ".join("-" * width for width in widths))
    notes = [
        fill(note, FOOTNOTE, initial_indent="  ", subsequent_indent="    ")
        for note in table.footnotes
    ]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def _wrapped_column(table: Table, column: Column) -> list[list[str]]:
    """Head and cells as lines: a head no wider than its cells need, a note no wider than NOTE."""
    cells = [row[column.key].text for row in table.rows]
    longest = max([*map(len, cells), *map(len, column.head.split()), HEAD])
    body = [wrap(cell, NOTE, break_on_hyphens=False) or [""] for cell in cells]
    return [wrap(column.head, min(longest, NOTE)) or [""], *body]


def _lines(
    row: Sequence[Sequence[str]], widths: Sequence[int], flush: Sequence[bool], *, bottom: bool
) -> list[str]:
    height = max(map(len, row))
    padded = [
        [""] * (height - len(cell)) + list(cell)
        if bottom
        else [*cell, *[""] * (height - len(cell))]
        for cell in row
    ]
    return [_aligned(line, widths, flush) for line in zip(*padded, strict=True)]


def _aligned(cells: Sequence[str], widths: Sequence[int], flush: Sequence[bool]) -> str:
    parts = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, flush, strict=True)
    ]
    return "  ".join(parts).rstrip()


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [f"### {table.title}", "", line([column.head for column in table.columns])]
    lines.append(line(["---:" if column.numeric else "---" for column in table.columns]))
    lines += [line([row[column.key].text for column in table.columns]) for row in table.rows]
    notes = [f"- {note}" for note in table.footnotes]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.head for column in table.columns])
    for row in table.rows:
        values = [row[column.key].value for column in table.columns]
        writer.writerow(["" if value is None else value for value in values])
    return out.getvalue()
