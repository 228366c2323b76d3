"""What a visitor has asked for: filters, a selection, an order, a page; all of it in the address.

A condition is written as a short JSON list in the query string, so that an address can be kept,
shared and opened in two tabs, and the server holds no state of a visitor.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError
from perseid.explore.object_table import ColumnKind, ObjectTable
from perseid.jsontext import parse_json

Mask = NDArray[np.bool_]
PAGE_ROWS = 50
"""Rows of a page of the table."""
MOST_CORNERS = 2000
"""Corners of a lasso."""
MOST_CONDITIONS = 32
GRID = 128
"""Cells a side by which points far from a lasso's edges are told."""


class Condition(Protocol):
    """What some rows meet."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it is about: one brush replaces another on the same."""

    def rows(self, table: ObjectTable) -> Mask:
        """(n,): which rows meet it."""

    def text(self) -> str:
        """As the query string has it; the reverse of `parse`."""

    def words(self, table: ObjectTable) -> str:
        """As the page says it."""


@dataclass(frozen=True)
class InRange:
    """A number lies between two others; None leaves a side open."""

    column: str
    low: float | None
    high: float | None

    @property
    def columns(self) -> tuple[str, ...]:
        """Its column."""
        return (self.column,)

    def rows(self, table: ObjectTable) -> Mask:
        """Rows with a value in the range, limits included."""
        values = table.numbers(self.column)
        found = ~np.isnan(values)
        if self.low is not None:
            found &= values >= self.low
        if self.high is not None:
            found &= values <= self.high
        return np.asarray(found)

    def text(self) -> str:
        """``["range", column, low, high]``."""
        return json.dumps(["range", self.column, self.low, self.high])

    def words(self, table: ObjectTable) -> str:
        """E.g. ``z_pred from 0.1 to 0.2``."""
        if self.low is None and self.high is None:
            return f"{self.column} known"
        if self.low is None:
            return f"{self.column} up to {self.high:.6g}"
        if self.high is None:
            return f"{self.column} from {self.low:.6g}"
        return f"{self.column} from {self.low:.6g} to {self.high:.6g}"


@dataclass(frozen=True)
class OneOf:
    """A category is one of some."""

    column: str
    values: tuple[int, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Its column."""
        return (self.column,)

    def rows(self, table: ObjectTable) -> Mask:
        """Rows of these categories."""
        return np.isin(table.numbers(self.column), self.values)

    def text(self) -> str:
        """``["in", column, values]``."""
        return json.dumps(["in", self.column, list(self.values)])

    def words(self, table: ObjectTable) -> str:
        """E.g. ``label: merger or ring``."""
        names = {one.value: one.name for one in table.categories(self.column)}
        return f"{self.column}: {' or '.join(names.get(v, str(v)) for v in self.values)}"


@dataclass(frozen=True)
class Holds:
    """A text holds another."""

    column: str
    part: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Its column."""
        return (self.column,)

    def rows(self, table: ObjectTable) -> Mask:
        """Rows whose value holds the text, whatever the case."""
        return table.matching(self.column, self.part)

    def text(self) -> str:
        """``["holds", column, text]``."""
        return json.dumps(["holds", self.column, self.part])

    def words(self, table: ObjectTable) -> str:
        """E.g. ``partition contains “12”``."""
        return f"{self.column} contains “{self.part}”"


@dataclass(frozen=True)
class InLasso:
    """A point of two columns lies inside a polygon."""

    x: str
    y: str
    corners: tuple[tuple[float, float], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Both columns."""
        return (self.x, self.y)

    def rows(self, table: ObjectTable) -> Mask:
        """Rows inside, by the even-odd rule."""
        return inside(table.numbers(self.x), table.numbers(self.y), self.corners)

    def text(self) -> str:
        """``["lasso", x, y, [x0, y0, x1, y1, …]]``."""
        flat = [round(v, 6) for corner in self.corners for v in corner]
        return json.dumps(["lasso", self.x, self.y, flat])

    def words(self, table: ObjectTable) -> str:
        """That it is a lasso, and in which plot."""
        return f"lasso in {self.x} and {self.y}"


@dataclass(frozen=True)
class InBox:
    """A point of two columns lies inside a rectangle."""

    x: InRange
    y: InRange

    @property
    def columns(self) -> tuple[str, ...]:
        """Both columns."""
        return (self.x.column, self.y.column)

    def rows(self, table: ObjectTable) -> Mask:
        """Rows inside, limits included."""
        return self.x.rows(table) & self.y.rows(table)

    def text(self) -> str:
        """``["box", x, low, high, y, low, high]``."""
        x, y = self.x, self.y
        return json.dumps(["box", x.column, x.low, x.high, y.column, y.low, y.high])

    def words(self, table: ObjectTable) -> str:
        """E.g. ``z_spec from 0.1 to 0.2, z_pred from 0.3 to 0.4``."""
        return f"{self.x.words(table)}, {self.y.words(table)}"


def inside(
    x: NDArray[np.float64], y: NDArray[np.float64], corners: Iterable[tuple[float, float]]
) -> Mask:
    """Which points lie inside a polygon, by the even-odd rule; points without a place do not.

    Only points near an edge are compared with all edges: the others take the answer of their cell
    of a grid, in which no edge runs.

    Examples
    --------
    >>> inside(np.array([0.5, 2.0]), np.array([0.5, 0.5]), [(0, 0), (1, 0), (1, 1), (0, 1)])
    array([ True, False])
    """
    points = np.asarray(list(corners), np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    found = np.zeros(len(x), np.bool_)
    near = np.flatnonzero((x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1]))
    if (high <= low).any() or not len(near):
        return found
    step = (high - low) / GRID
    column = np.minimum(((x[near] - low[0]) / step[0]).astype(np.int32), GRID - 1)
    row = np.minimum(((y[near] - low[1]) / step[1]).astype(np.int32), GRID - 1)
    middles = (np.arange(GRID) + 0.5)[:, None] * step + low
    answer = _even_odd(
        np.repeat(middles[:, 0], GRID), np.tile(middles[:, 1], GRID), points
    ).reshape(GRID, GRID)
    values = answer[column, row]
    close = np.flatnonzero(_crossed((points - low) / step)[column, row])
    values[close] = _even_odd(x[near[close]], y[near[close]], points)
    found[near] = values
    return found


def _even_odd(x: NDArray[np.float64], y: NDArray[np.float64], corners: NDArray[np.float64]) -> Mask:
    odd = np.zeros(len(x), np.bool_)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if ay != by:
            crosses = (ay > y) != (by > y)
            odd ^= crosses & (x < ax + (y - ay) * ((bx - ax) / (by - ay)))
    return odd


def _crossed(corners: NDArray[np.float64]) -> Mask:
    """(GRID, GRID): cells through which an edge may run; `corners` in units of a cell."""
    marked = np.zeros((GRID + 2, GRID + 2), np.bool_)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        count = 2 + int(2 * np.abs(end - start).max())
        places = start + np.linspace(0, 1, count)[:, None] * (end - start)
        cells = np.clip(places.astype(np.int64), 0, GRID - 1)
        for dx in range(3):  # steps of half a cell and a cell around: no edge slips through
            for dy in range(3):
                marked[cells[:, 0] + dx, cells[:, 1] + dy] = True
    return marked[1:-1, 1:-1]


def parse(text: str) -> Condition:
    """Parse a condition of the query string; raises `BadInputError` if it is invalid."""
    try:
        match parse_json(text):
            case ["range", str(column), low, high]:
                return InRange(column, _number(low), _number(high))
            case ["in", str(column), [*values]] if values:
                return OneOf(column, tuple(_code(value) for value in values))
            case ["holds", str(column), str(part)]:
                return Holds(column, part)
            case ["box", str(x), x_low, x_high, str(y), y_low, y_high]:
                return InBox(
                    InRange(x, _number(x_low), _number(x_high)),
                    InRange(y, _number(y_low), _number(y_high)),
                )
            case ["lasso", str(x), str(y), [*flat]] if 6 <= len(flat) <= 2 * MOST_CORNERS:
                numbers = [_given(value) for value in flat]
                return InLasso(x, y, tuple(zip(numbers[::2], numbers[1::2], strict=True)))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadInputError(f"the condition {text[:200]!r} cannot be read: {error}") from error
    raise BadInputError(f"{text[:200]!r} is not a condition: take the one that the page has made")


def _given(value: object) -> float:
    number = float(str(value))
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


def _code(value: object) -> int:
    if not isinstance(value, int) or abs(value) >= 2**53:
        raise ValueError(f"{str(value)[:40]!r} is not a category")
    return value


def _number(value: object) -> float | None:
    return None if value is None else _given(value)


@dataclass(frozen=True)
class Query:
    """All that an address says."""

    filters: tuple[Condition, ...] = ()
    """Rows that do not meet all of them are left out everywhere."""
    selection: tuple[Condition, ...] = ()
    """Rows that meet all of them stand out in every view, and are what the table shows."""
    sort: str = ""
    """A column; empty: the order of the catalogue."""
    descending: bool = False
    page: int = 1
    color: str = ""
    """What the map is colored by; empty: by how many objects there are."""

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]]) -> Query:
        """From the pairs of a query string; raises `BadInputError` naming what is wrong."""
        given = list(items)
        filters = [parse(text) for name, text in given if name == "f" and text]
        selection = [parse(text) for name, text in given if name == "s" and text]
        if len(filters) + len(selection) > MOST_CONDITIONS:
            raise BadInputError(f"at most {MOST_CONDITIONS} conditions at a time")
        last = dict(given)
        page = last.get("page") or "1"
        if not re.fullmatch("[1-9][0-9]{0,8}", page):
            raise BadInputError(f"page {page[:20]!r} is not a number from 1")
        sort = last.get("sort", "")
        return cls(
            tuple(filters), tuple(selection), sort.removeprefix("-"), sort.startswith("-"),
            int(page), last.get("color", ""),
        )  # fmt: skip

    def pairs(self) -> list[tuple[str, str]]:
        """The reverse of `parse`; what stands for the default is left out."""
        found = [("f", one.text()) for one in self.filters]
        found += [("s", one.text()) for one in self.selection]
        if self.sort:
            found.append(("sort", f"-{self.sort}" if self.descending else self.sort))
        if self.page > 1:
            found.append(("page", str(self.page)))
        if self.color:
            found.append(("color", self.color))
        return found

    def address(self) -> str:
        """The query string, ``?`` included."""
        return "?" + urlencode(self.pairs())

    def without(self, condition: Condition) -> Query:
        """The same without one of its conditions, from the first page."""
        return replace(
            self,
            filters=tuple(one for one in self.filters if one != condition),
            selection=tuple(one for one in self.selection if one != condition),
            page=1,
        )

    def sorted_by(self, column: str) -> Query:
        """By another column, or by the same the other way round, from the first page."""
        turned = column == self.sort and not self.descending
        return replace(self, sort=column, descending=turned, page=1)

    def filtered(self, condition: Condition) -> Query:
        """With one more filter; it replaces one about the same columns."""
        kept = tuple(one for one in self.filters if one.columns != condition.columns)
        return replace(self, filters=(*kept, condition), page=1)


def asked(items: Iterable[tuple[str, str]], table: ObjectTable) -> Condition | None:
    """The condition that the page's form asks for, in plain words; None if it is empty.

    ``column`` with ``low`` and ``high`` for a number, with ``part`` for a category or a text.
    Raises `BadInputError` naming what cannot be used.
    """
    given = list(items)
    last = dict(given)
    column = last.get("column", "")
    if not column:
        return None
    kind = table.kind(column)
    low, high = (_typed(last.get(side, ""), column) for side in ("low", "high"))
    part = last.get("part", "").strip()
    if kind is ColumnKind.NUMBER:
        if part and low is None and high is None:
            low = high = _typed(part, column)
        return None if low is None and high is None else InRange(column, low, high)
    if kind is ColumnKind.CATEGORY and part:
        names = [c for c in table.categories(column) if part.lower() in c.name.lower()]
        if not names:
            have = ", ".join(c.name for c in table.categories(column))
            raise BadInputError(f"{column} is never {part!r}: it is one of {have}")
        return OneOf(column, tuple(c.value for c in names))
    return Holds(column, part) if part else None


def _typed(text: str, column: str) -> float | None:
    try:
        return _given(text) if text.strip() else None
    except ValueError as error:
        raise BadInputError(f"{column} is a number, which {text!r} is not") from error


def all_of(conditions: Iterable[Condition], table: ObjectTable) -> Mask | None:
    """Rows that meet all conditions; None if there is no condition."""
    found: Mask | None = None
    for one in conditions:
        rows = one.rows(table)
        found = rows if found is None else found & rows
    return found
