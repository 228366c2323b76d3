"""Objects that display as text in a terminal and as HTML in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from perseid.errors import BadInputError
from perseid.measure.present.text import TextTable
from perseid.plaintext import html_table, markup
from perseid.storage import Location, Storage

PAGE_HEIGHT = 600
"""Height, in pixels, of a page inside a notebook."""


_FORMS = {".csv": "csv", ".md": "markdown"}
"""The form of a table in a file, by its suffix; text for any other."""


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
        self._tables = tuple(tables)
        self.columns = [column.key for column in tables[0].columns]
        """Keys of the first table's columns."""
        self.rows = [{key: cell.value for key, cell in row.items()} for row in tables[0].rows]
        """The first table's rows: unrounded numbers, or None."""

    def render(self, form: str = "text", width: int | None = None) -> str:
        """Format it as ``text``, ``markdown`` or ``csv``, at most `width` characters wide.

        Raises
        ------
        BadInputError
            The format does not exist.
        """
        return "\n".join(table.render(form, width) for table in self._tables)

    def to_json(self) -> list[dict[str, object]]:
        """Each table with unrounded numbers as JSON values."""
        return [_plain(table) for table in self._tables]

    def save(self, path: str | Path, form: str | None = None) -> list[Path]:
        """Write it to one file, but two CSV tables to two, since a CSV file is a single table.

        Without `form` the name decides: ``.csv`` is CSV, ``.md`` Markdown, any other name text.

        Raises
        ------
        BadInputError
            The format does not exist, or the path cannot be written to.
        """
        path = Path(path)
        form = form or _FORMS.get(path.suffix.lower(), "text")
        files = {path: self.render(form)}
        if form == "csv" and len(self._tables) > 1:
            second = path.with_stem(f"{path.stem}-partitions")
            files = {
                place: table.render(form)
                for place, table in zip((path, second), self._tables, strict=True)
            }
        for place, text in files.items():
            _write(place, text, "table")
        return list(files)


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

    def save(self, place: str | Path) -> str | Path:
        """Write the page to a path or URL, and return its place.

        Raises
        ------
        BadInputError, StorageError
            Writing fails.
        """
        if "://" not in str(place):
            return _write(Path(place), self.html, "report")
        store, name = Storage.holding(Location.parse(str(place)))
        store.put(name, self.html.encode())
        return store.where(name)


def _write(path: Path, text: str, what: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"the {what} cannot be written to {path}: {error.strerror}") from error
    return path


def _plain(table: TextTable) -> dict[str, object]:
    rows = [{key: cell.value for key, cell in row.items()} for row in table.rows]
    heads = {column.key: column.head for column in table.columns}
    return {"title": table.title, "columns": heads, "rows": rows}


def _table_html(table: TextTable) -> str:
    rows = [[row[column.key].text for column in table.columns] for row in table.rows]
    notes = "".join(f"<p><small>{markup(note)}</small></p>" for note in table.footnotes)
    title = f"<p><b>{markup(table.title)}</b></p>" if table.title else ""
    return title + html_table([column.head for column in table.columns], rows) + notes
