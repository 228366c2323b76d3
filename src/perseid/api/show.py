"""Objects that display as text in a terminal and as HTML in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from perseid.errors import BadInputError
from perseid.measure.present.text import TextTable
from perseid.plaintext import markup

PAGE_HEIGHT = 600
"""Height, in pixels, of a page inside a notebook."""


class TextView:
    """Text and the same content as HTML, which a notebook displays for the last line of a cell."""

    def __init__(self, text: str, html: str) -> None:
        self._text, self._html = text, html

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return self._html


class TableView(TextView):
    """A table of runs; `columns` and `rows` hold the unrounded numbers.

    Examples
    --------
    >>> view = run.table()  # doctest: +SKIP
    >>> view.rows[0]["cost"]  # doctest: +SKIP
    0.00042
    """

    def __init__(self, tables: Sequence[TextTable]) -> None:
        super().__init__(
            "\n".join(table.render("text") for table in tables),
            "".join(_table_html(table) for table in tables),
        )
        self.columns = [column.key for column in tables[0].columns]
        """Keys of the first table's columns."""
        self.rows = [{key: cell.value for key, cell in row.items()} for row in tables[0].rows]
        """The first table's rows: unrounded numbers, or None."""


class PageFrame(TextView):
    """A complete HTML page, with a few lines of text that summarize it."""

    def __init__(self, text: str, html: str) -> None:
        frame = (
            f'<iframe srcdoc="{markup(html)}" width="100%" height="{PAGE_HEIGHT}" '
            'style="border: 1px solid #ccc"></iframe>'
        )
        super().__init__(text, frame)
        self.html = html
        """The complete page."""

    def save(self, path: str | Path) -> Path:
        """Write the page to a file; raises `BadInputError` if that fails."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.html, encoding="utf-8")
        except OSError as error:
            raise BadInputError(
                f"the report cannot be written to {path}: {error.strerror}"
            ) from error
        return path


def html_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table with these column heads and rows; all text is escaped."""
    top = "".join(f"<th>{markup(word)}</th>" for word in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{markup(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _table_html(table: TextTable) -> str:
    rows = [[row[column.key].text for column in table.columns] for row in table.rows]
    notes = "".join(f"<p><small>{markup(note)}</small></p>" for note in table.footnotes)
    title = f"<p><b>{markup(table.title)}</b></p>" if table.title else ""
    return title + html_table([column.head for column in table.columns], rows) + notes
