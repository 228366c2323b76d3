"""Downloads: the selected rows in several formats, and a report about them."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

from perseid.catalogues.export import FORMATS
from perseid.catalogues.selection import Selection
from perseid.errors import NotFoundError, PerseidError
from perseid.explore.conditions import Query
from perseid.explore.cutout_images import PictureOptions, draw
from perseid.explore.explored_run import ExploredRun
from perseid.explore.plots import Plot
from perseid.explore.views import cell_of, head_of, names_of
from perseid.measure.present import pages
from perseid.measure.present.view import (
    DataTable,
    Figure,
    Gallery,
    GalleryObject,
    Head,
    PageView,
    Section,
    StatusView,
    TableEntry,
    Tile,
)
from perseid.pipeline.catalogue_reader import StoredCatalogue
from perseid.pipeline.rankfiles import temporary_folder

FILES = {"fits": "application/fits", "vot": "application/x-votable+xml", "csv": "text/csv",
         "parquet": "application/vnd.apache.parquet"}  # fmt: skip
"""Media type of each format, by suffix."""
_FORMS = {"fits": "fits", "vot": "votable", "csv": "csv", "parquet": "parquet"}
UNDER_PICTURES = ("anomaly_score", "z_pred", "class", "label")
PICTURES, ROWS = 48, 200
"""Maximum number of pictures and of table rows in a report."""


@dataclass(frozen=True)
class TakenFile:
    """A file for download."""

    name: str
    media_type: str
    content: bytes


def selected_file(explored: ExploredRun, query: Query, suffix: str) -> TakenFile:
    """The rows that a query selects, in the order of the catalogue.

    Raises
    ------
    NotFoundError
        There is no such format.
    BadInputError
        The format cannot hold a column.
    """
    if suffix not in FILES:
        raise NotFoundError(f"there is no {suffix!r} to download: choose {', '.join(FILES)}")
    shown = explored.shown(query)
    # What the table shows: the selection if there is one, else what the filters leave.
    rows = shown.base if shown.selected is None else shown.selected
    selection = Selection(StoredCatalogue(explored.store), rows=rows)
    with temporary_folder("the selection") as folder:
        path = folder / f"selection.{suffix}"
        # Through a file, since the writers of all formats take a path.
        FORMATS[_FORMS[suffix]](selection, path)
        return TakenFile(f"{_stem(explored)}.{suffix}", FILES[suffix], path.read_bytes())


def selected_report(explored: ExploredRun, query: Query) -> TakenFile:
    """A self-contained HTML page about the rows that a query selects."""
    table, rows = explored.needed_table(), explored.ordered(query)
    shown, plots = explored.shown(query), explored.plots()
    conditions = [one.words(table) for one in (*query.filters, *query.selection)]
    drawn = [plots.draw(name, shown, query.color) for name in plots.names()]
    words = shown.words(len(table))
    order = f"by {head_of(query.sort)}" if query.sort else "in the order of the catalogue"
    page = PageView(
        title=f"{words}: perseid selection",
        eyebrow="perseid selection",
        heading=words[0].upper() + words[1:],
        sub=f"{explored.run.id} · {explored.store.where()}",
        status=StatusView(True, "Selected", "; ".join(conditions) or "every object of the run"),
        tiles=(
            Tile("Objects", f"{len(rows):,}", "that meet the conditions"),
            Tile("Catalogue", f"{len(table):,}", "objects in all"),
        ),
        wide_tiles=(),
        sections=(
            *(_plot_section(plot) for plot in drawn),
            _gallery(explored, rows[:PICTURES], len(rows), order),
            _table(explored, rows[:ROWS], len(rows), order),
        ),
        foot=f"Made by perseid {explored.run.manifest.version} from {explored.store.where()}",
    )
    text = pages.render(page)
    return TakenFile(f"{_stem(explored)}.html", "text/html", text.encode())


def _stem(explored: ExploredRun) -> str:
    return f"selection-{explored.run.id}"


def _plot_section(plot: Plot) -> Section:
    figure = Figure(plot.svg.render(plot.spoken, "wide"), plot.svg.render(plot.spoken, "narrow"),
                    plot.caption)  # fmt: skip
    return Section(plot.name, plot.title, parts=(figure,), half=True)


def _gallery(explored: ExploredRun, rows: np.ndarray, total: int, order: str) -> Section:
    table = explored.needed_table()
    items = []
    for index, name in zip(rows, names_of(table, rows), strict=True):
        partition, row = explored.place(int(index))
        image, what = None, f"Cutout of {name}"
        try:
            image = png_url_of(explored, partition, row)
        # The report is useful without the pictures of a survey that has moved.
        except PerseidError as error:
            what = str(error)
        lines = []
        for column in (one for one in UNDER_PICTURES if table.has(one)):
            (value,) = table.values(column, np.array([index]))
            lines.append(f"{head_of(column)} {cell_of(table, column, value).text}")
        items.append(GalleryObject(image, what, name, tuple(lines)))
    lead = f"The first {len(items)} of {total:,}, {order}." if items else "No object is selected."
    return Section("objects", "Objects", lead, (Gallery(tuple(items)),))


def png_url_of(explored: ExploredRun, partition: str, row: int) -> str:
    """A picture of one object as a ``data:`` URL."""
    # Inside the page, so that it is a single file.
    data = draw(explored.images.image(partition, row), PictureOptions())
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _table(explored: ExploredRun, rows: np.ndarray, total: int, order: str) -> Section:
    table, columns = explored.needed_table(), explored.columns()
    cells = [
        [cell_of(table, name, value) for value in table.values(name, rows)] for name in columns
    ]
    heads = tuple(Head(head_of(n), "number" if c and c[0].number else "word")
                  for n, c in zip(columns, cells, strict=True))  # fmt: skip
    lines = tuple(tuple(TableEntry(column[i].text) for column in cells) for i in range(len(rows)))
    lead = f"The first {len(rows)} of {total:,}, {order}."
    return Section("table", "Table", lead, (DataTable(heads, lines, stacks=True),))
