"""The query of a visitor, all of it in the address: filters, selection, order and page.

Each condition is a short JSON list in the query string. So an address can be bookmarked, shared and
opened in two tabs, and the server keeps no state per visitor.
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
"""Number of rows on a page of the table."""
MOST_CORNERS = 2000
"""Maximum number of corners of a lasso."""
MOST_CONDITIONS = 32
GRID = 128
"""Number of cells per side of the grid that classifies points far from the edges of a lasso."""


class Condition(Protocol):
    """A condition that each row meets or does not meet."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it applies to; a new brush replaces one on the same columns."""

    def rows(self, table: ObjectTable) -> Mask:
        """Mask of the rows that meet it, (n,)."""

    def text(self) -> str:
        """Its text in the query string; the inverse of `parse`."""

    def words(self, table: ObjectTable) -> str:
        """Its description on the page."""


@dataclass(frozen=True)
class InRange:
    """The value lies between two limits; None leaves a side open."""

    column: str
    low: float | None
    high: float | None

    @property
    def columns(self) -> tuple[str, ...]:
        """The one column of the condition."""
        return (self.column,)

    def rows(self, table: ObjectTable) -> Mask:
        """Rows with a value in the range, including the limits."""
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
    """The category is one of several."""

    column: str
    values: tuple[int, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The one column of the condition."""
        return (self.column,)

    def rows(self, table: ObjectTable) -> Mask:
        """Rows with one of these categories."""
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
    """The text contains another text."""

    column: str
    part: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The one column of the condition."""
        return (self.column,)

    def rows(self, table: ObjectTable) -> Mask:
        """Rows whose value contains the text, ignoring case."""
        return table.matching(self.column, self.part)

    def text(self) -> str:
        """``["holds", column, text]``."""
        return json.dumps(["holds", self.column, self.part])

    def words(self, table: ObjectTable) -> str:
        """E.g. ``partition contains “12”``."""
        return f"{self.column} contains “{self.part}”"


@dataclass(frozen=True)
class InLasso:
    """The point given by two columns lies inside a polygon."""

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
        # Rounded, so that a lasso of many corners still fits into an address.
        flat = [round(v, 6) for corner in self.corners for v in corner]
        return json.dumps(["lasso", self.x, self.y, flat])

    def words(self, table: ObjectTable) -> str:
        """E.g. ``lasso in map_1 and map_2``."""
        return f"lasso in {self.x} and {self.y}"


@dataclass(frozen=True)
class InBox:
    """The point given by two columns lies inside a rectangle."""

    x: InRange
    y: InRange

    @property
    def columns(self) -> tuple[str, ...]:
        """Both columns."""
        return (self.x.column, self.y.column)

    def rows(self, table: ObjectTable) -> Mask:
        """Rows inside, including the limits."""
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
    """Mask of the points inside a polygon, by the even-odd rule; NaN coordinates are outside.

    Only points near an edge are compared with all edges. Other points lie in a grid cell that no
    edge crosses, so they take the answer of the middle of that cell.

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
    """Mask of the cells that an edge may cross, (GRID, GRID); `corners` are in units of a cell."""
    marked = np.zeros((GRID + 2, GRID + 2), np.bool_)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        count = 2 + int(2 * np.abs(end - start).max())
        places = start + np.linspace(0, 1, count)[:, None] * (end - start)
        cells = np.clip(places.astype(np.int64), 0, GRID - 1)
        for dx in range(3):  # half-cell steps and all neighbors: no crossed cell is missed
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
    # The address may be typed by hand or made to harm: deep nesting and huge numbers included.
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadInputError(f"the condition {text[:200]!r} cannot be read: {error}") from error
    raise BadInputError(f"{text[:200]!r} is not a condition: use the address that the page made")


def _given(value: object) -> float:
    number = float(str(value))
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


def _code(value: object) -> int:
    # Columns are compared as float64, which is exact below 2**53.
    if not isinstance(value, int) or abs(value) >= 2**53:
        raise ValueError(f"{str(value)[:40]!r} is not a category")
    return value


def _number(value: object) -> float | None:
    return None if value is None else _given(value)


@dataclass(frozen=True)
class Query:
    """The content of an address."""

    filters: tuple[Condition, ...] = ()
    """Conditions that a row must all meet to be shown anywhere."""
    selection: tuple[Condition, ...] = ()
    """Conditions of the selected rows, which stand out in every plot and are the table's rows."""
    sort: str = ""
    """Column to sort by; empty for the order of the catalogue."""
    descending: bool = False
    page: int = 1
    color: str = ""
    """Column that colors the map; empty to color it by the number of objects."""

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]]) -> Query:
        """Parse the pairs of a query string; raises `BadInputError` that names an invalid one."""
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
        """The inverse of `parse`; defaults are left out."""
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
        """The query string, including the ``?``."""
        return "?" + urlencode(self.pairs())

    def without(self, condition: Condition) -> Query:
        """This query without one of its conditions, on the first page."""
        return replace(
            self,
            filters=tuple(one for one in self.filters if one != condition),
            selection=tuple(one for one in self.selection if one != condition),
            page=1,
        )

    def sorted_by(self, column: str) -> Query:
        """This query sorted by a column, or in reverse if it already is, on the first page."""
        turned = column == self.sort and not self.descending
        return replace(self, sort=column, descending=turned, page=1)

    def filtered(self, condition: Condition) -> Query:
        """This query with another filter, which replaces a filter on the same columns."""
        kept = tuple(one for one in self.filters if one.columns != condition.columns)
        return replace(self, filters=(*kept, condition), page=1)


def asked(items: Iterable[tuple[str, str]], table: ObjectTable) -> Condition | None:
    """The condition that the page's form describes; None if the form is empty.

    The form has ``column``, with ``low`` and ``high`` for a number, or with ``part`` for a category
    or a text. Raises `BadInputError` that names an invalid value.
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
    """Mask of the rows that meet all conditions; None if there is no condition."""
    found: Mask | None = None
    for one in conditions:
        rows = one.rows(table)
        found = rows if found is None else found & rows
    return found
