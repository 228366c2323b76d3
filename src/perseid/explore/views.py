"""Values for the page's templates: plain text, numbers and pictures, but no markup."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from perseid.explore.conditions import Query
from perseid.explore.explored_run import ExploredRun
from perseid.explore.object_table import ColumnKind, ObjectTable
from perseid.explore.plots import Plot

MISSING = "–"
ID = "object_id"
HEADS = {
    "object_id": "Object", "z_pred": "z predicted", "z_spec": "z spectroscopic",
    "anomaly_score": "Score", "anomaly_rank": "Rank", "label": "Label", "flag": "State",
    "partition": "Partition", "row": "Row", "learned_score": "Learned score",
    "learned_rank": "Learned rank", "rating": "Rating",
}  # fmt: skip
"""Titles of our own columns; other columns are titled by their names."""


@dataclass(frozen=True)
class Chip:
    """An active condition, with the address of the page without it."""

    words: str
    address: str
    selects: bool
    """Whether it selects rows rather than filters them."""


@dataclass(frozen=True)
class HeadCell:
    """The head of a column, which is a link that sorts by it."""

    text: str
    address: str
    sorted: str
    """Value of ``aria-sort``: ``ascending``, ``descending`` or empty."""
    number: bool


@dataclass(frozen=True)
class BodyCell:
    """One cell of the table."""

    text: str
    number: bool
    title: str = ""
    """The value with all digits, if the text is rounded."""


@dataclass(frozen=True)
class BodyRow:
    """One row of the table."""

    index: int
    """Row number in the catalogue."""
    name: str
    cells: tuple[BodyCell, ...]


@dataclass(frozen=True)
class ColumnChoice:
    """A column that can be filtered."""

    name: str
    text: str
    kind: str


@dataclass(frozen=True)
class ObjectsView:
    """Content of the page of objects for one query."""

    words: str
    """Number of objects, and how many of them are selected."""
    chips: tuple[Chip, ...]
    plots: tuple[Plot, ...]
    heads: tuple[HeadCell, ...]
    rows: tuple[BodyRow, ...]
    page: int
    pages: int
    total: int
    """Number of rows on all pages of the table."""
    previous: str
    """Address of the previous page; empty on the first."""
    next: str
    address: str
    """The query string in its canonical form."""
    columns: tuple[ColumnChoice, ...]
    colors: tuple[tuple[str, str], ...]
    color: str
    pending: bool
    """Whether the map is still being made."""
    map_note: str
    """Reason why there is no map; empty if there is one."""
    selecting: bool
    cleared: str
    """Address of the page without any condition."""


def objects_view(explored: ExploredRun, query: Query) -> ObjectsView:
    """Content of the page of objects for a query."""
    table, page = explored.needed_table(), explored.page(query)
    # The page that is shown, which may be the last one instead of the one in the address.
    query = replace(query, page=page.number)
    shown, plots = explored.shown(query), explored.plots()
    chips = [Chip(c.words(table), query.without(c).address(), False) for c in query.filters]
    chips += [Chip(c.words(table), query.without(c).address(), True) for c in query.selection]
    # The id is the head of each row, not a cell.
    names = [name for name in explored.columns() if name != ID]
    return ObjectsView(
        words=shown.words(len(table)),
        chips=tuple(chips),
        plots=tuple(plots.draw(name, shown, query.color) for name in plots.names()),
        heads=(_head(ID, query, table), *(_head(name, query, table) for name in names)),
        rows=_rows(table, names, page.rows),
        page=page.number,
        pages=page.pages,
        total=page.total,
        previous=replace(query, page=page.number - 1).address() if page.number > 1 else "",
        next=replace(query, page=page.number + 1).address() if page.number < page.pages else "",
        address=query.address(),
        columns=tuple(
            ColumnChoice(name, head_of(name), table.kind(name).value)
            for name in dict.fromkeys((*explored.columns(), *table.added)) if table.has(name)
        ),
        colors=tuple(plots.colors()) if "map" in plots.names() else (),
        color=query.color,
        pending="map" not in plots.names() and not explored.prepared.is_set(),
        map_note=explored.map_note,
        selecting=bool(query.selection),
        cleared=replace(query, filters=(), selection=(), page=1).address(),
    )  # fmt: skip


def head_of(name: str) -> str:
    """Title of a column on the page."""
    return HEADS.get(name, name)


def _head(name: str, query: Query, table: ObjectTable) -> HeadCell:
    way = ""
    if name == ID and ID not in table.names:  # without ids, by partition and row
        return HeadCell(head_of(name), replace(query, sort="", page=1).address(), "", False)
    if name == query.sort:
        way = "descending" if query.descending else "ascending"
    number = table.kind(name) is ColumnKind.NUMBER
    return HeadCell(head_of(name), query.sorted_by(name).address(), way, number)


def _rows(table: ObjectTable, names: list[str], rows: np.ndarray) -> tuple[BodyRow, ...]:
    columns = [
        [cell_of(table, name, value) for value in table.values(name, rows)] for name in names
    ]
    ids = names_of(table, rows)
    return tuple(
        BodyRow(int(index), ids[i], tuple(column[i] for column in columns))
        for i, index in enumerate(rows)
    )


def names_of(table: ObjectTable, rows: np.ndarray) -> list[str]:
    """Names of objects: their ids, or partition and row for objects without one."""
    places = zip(table.values("partition", rows), table.values("row", rows), strict=True)
    fallback = [f"{partition} row {row}" for partition, row in places]
    if "object_id" not in table.names:
        return fallback
    # Only the rows of one page are read, so this is fast for any catalogue.
    ids = table.values("object_id", rows)
    return [
        other if given is None else str(given) for given, other in zip(ids, fallback, strict=True)
    ]


def cell_of(table: ObjectTable, name: str, value: object) -> BodyCell:
    """The cell that shows a value."""
    kind = table.kind(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return BodyCell(MISSING, kind is ColumnKind.NUMBER)
    if kind is ColumnKind.CATEGORY and isinstance(value, int) and not isinstance(value, bool):
        return BodyCell(table.category_name(name, value), False)
    if isinstance(value, float):
        # Rounded for reading; all digits are in the title.
        return BodyCell(f"{value:.5g}", True, repr(value))
    return BodyCell(str(value), kind is ColumnKind.NUMBER)
