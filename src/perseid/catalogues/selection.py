"""Rows and columns selected from a stored catalogue, as a stream, and their meanings."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.catalogues.where import Where
from perseid.errors import BadInputError
from perseid.pipeline.catalogue_reader import StoredCatalogue
from perseid.pipeline.tables import CATALOGUE
from perseid.pipeline.voparquet import CONTENT_KEY
from perseid.plaintext import one_line
from perseid.survey.formats.arrow import pyarrow_module

_FIELD = "{http://www.ivoa.net/xml/VOTable/v1.3}FIELD"
_DESCRIPTION = "{http://www.ivoa.net/xml/VOTable/v1.3}DESCRIPTION"


@dataclass(frozen=True)
class Meaning:
    """Unit, UCD and description of a column in IVOA vocabulary; empty if unknown."""

    unit: str = ""
    """Unit in VOUnits notation, such as ``mag``."""
    ucd: str = ""
    """Unified content descriptor, such as ``src.redshift``."""
    description: str = ""


class Selection:
    """Rows and columns of a stored catalogue.

    Parameters
    ----------
    stored
        The catalogue.
    columns
        Names of columns in the desired order; None for all.
    where
        Condition on rows (`perseid.catalogues.where`); None for all.
    rows
        Additional mask over all rows of the catalogue, (n,) bool; None for all.

    Raises
    ------
    BadInputError
        A column does not exist, or the condition cannot be parsed.
    """

    def __init__(
        self,
        stored: StoredCatalogue,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        rows: NDArray[np.bool_] | None = None,
    ) -> None:
        known = stored.schema.names
        # Without repetitions: most formats need unique names.
        self.columns = tuple(known if columns is None else dict.fromkeys(columns))
        """Names of the columns, in order."""
        unknown = [name for name in self.columns if name not in known]
        if unknown or not self.columns:
            raise BadInputError(
                f"the catalogue has no column {one_line(unknown[0] if unknown else '')!r}: it has "
                f"{', '.join(known)}"
            )
        self._stored, self._condition, self._rows = stored, where, rows
        self._where = Where.parse(where) if where else None
        # Here and not in `batches`, so that a wrong condition is an error before anything is
        # written.
        self._filter = self._where.expression(stored.schema) if self._where else None

    @property
    def source(self) -> str:
        """Path or URL of the catalogue."""
        return self._stored.where

    @cached_property
    def schema(self) -> Any:
        """The ``pyarrow.Schema`` of the columns, without metadata."""
        return pyarrow_module().schema([self._stored.schema.field(name) for name in self.columns])

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """Key-value pairs of the footer of the stored catalogue."""
        return self._stored.metadata

    @cached_property
    def meanings(self) -> Mapping[str, Meaning]:
        """Meaning of each column; for catalogues of earlier versions, those of our own columns."""
        found = {c.name: Meaning(c.unit, c.ucd, c.description) for c in CATALOGUE}
        found |= _described(self.metadata.get(CONTENT_KEY, ""))
        return {name: found.get(name, Meaning()) for name in self.columns}

    def only(self, columns: Sequence[str]) -> Selection:
        """A selection of the same rows with other columns."""
        return Selection(self._stored, columns, self._condition, self._rows)

    def batches(self) -> Iterator[Any]:
        """Yield non-empty ``pyarrow.Table`` objects with the rows in order."""
        pa = pyarrow_module()
        wanted = list(self.columns)
        if self._where is not None:
            # The condition may use columns that are not exported; `select` below drops them.
            wanted += [name for name in self._where.columns if name not in wanted]
        start = 0
        for batch in self._stored.batches(wanted):
            table = pa.Table.from_batches([batch])
            if self._rows is not None:
                kept = self._rows[start : start + table.num_rows]
                start += table.num_rows
                table = table.filter(pa.array(kept))
            if self._filter is not None:
                table = table.filter(self._filter)
            if table.num_rows:
                yield table.select(list(self.columns))

    def table(self) -> Any:
        """All rows as one ``pyarrow.Table``."""
        pa = pyarrow_module()
        # The empty table gives the schema if no row is selected.
        return pa.concat_tables([self.schema.empty_table(), *self.batches()])


def _described(content: str) -> dict[str, Meaning]:
    """Meanings by column name from VOParquet's VOTable; empty if there is none to parse."""
    if not content:
        return {}
    try:
        root = ElementTree.fromstring(content.encode())
    except ElementTree.ParseError:
        return {}
    return {
        field.get("name", ""): Meaning(
            field.get("unit", ""),
            field.get("ucd", ""),
            (field.findtext(_DESCRIPTION) or "").strip(),
        )
        for field in root.iter(_FIELD)
    }
