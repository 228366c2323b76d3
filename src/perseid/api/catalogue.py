"""The catalogue of a run: one row an object, for astropy, pandas or Arrow."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from perseid.api.show import html_table
from perseid.errors import BadInputError, NotFoundError, NotInstalledError
from perseid.pipeline import layout
from perseid.storage import Storage
from perseid.survey import natural_key

SHOWN_ROWS = 10
"""Rows that a notebook shows."""
PLACE = ("partition", "row")
"""Columns that say which object of the survey a row is."""


class Catalogue:
    """What a run says of each object: its redshift, its anomaly score, and where it lies.

    Parameters
    ----------
    store
        Of the run's own prefix.

    Raises
    ------
    NotFoundError
        The run has published no catalogue.

    Examples
    --------
    >>> catalogue = run.catalogue()  # doctest: +SKIP
    >>> len(catalogue), catalogue.column_names[:3]  # doctest: +SKIP
    (4000, ['partition', 'row', 'object_id'])
    >>> bright = catalogue.to_astropy()  # doctest: +SKIP
    """

    def __init__(self, store: Storage) -> None:
        if not store.exists(layout.CATALOGUE):
            raise NotFoundError(
                f"{store.where()} has no {layout.CATALOGUE}: the run was not published, or is one "
                "of script mode"
            )
        self._store = store

    @cached_property
    def _table(self) -> Any:
        arrow = _pyarrow()
        where = self._store.where(layout.CATALOGUE)
        try:
            data = arrow.BufferReader(self._store.get(layout.CATALOGUE))
            return arrow.parquet.read_table(data)
        except arrow.ArrowException as error:
            raise BadInputError(f"{where} is not a Parquet file: {error}") from error

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in order."""
        return list(self._table.column_names)

    def equals(self, other: Catalogue) -> bool:
        """Whether both say the same: the same rows and columns, every value equal to the bit.

        The order of the rows in the file does not count, nor does how the file is laid out.
        """
        return self.difference(other) is None

    def difference(self, other: Catalogue) -> str | None:
        """The first thing in which both differ, in words; None where they are equal."""
        mine, theirs = self._ordered, other._ordered
        if mine.column_names != theirs.column_names:
            return f"columns {mine.column_names} and {theirs.column_names}"
        if mine.num_rows != theirs.num_rows:
            return f"{mine.num_rows} rows and {theirs.num_rows} rows"
        for name in mine.column_names:
            row = _first_difference(mine[name], theirs[name])
            if row is not None:
                place = ", ".join(f"{key} {mine[key][row].as_py()}" for key in PLACE)
                values = mine[name][row].as_py(), theirs[name][row].as_py()
                return f"{name} of {place} is {values[0]!r} and {values[1]!r}"
        return None

    def to_arrow(self) -> Any:
        """A ``pyarrow.Table``, in the order of the file."""
        return self._table

    def to_astropy(self) -> Any:
        """An ``astropy.table.Table``; a missing value is masked."""
        try:
            from astropy.table import MaskedColumn, Table
        except ImportError as error:
            raise NotInstalledError("this needs astropy: pip install astropy") from error
        columns = {}
        for name in self.column_names:
            column = self._table[name].combine_chunks()
            mask = np.asarray(column.is_null())
            values = column.to_numpy(zero_copy_only=False)
            if mask.any() and values.dtype.kind in "fO":
                values = np.where(mask, values.dtype.type(0), values)
            columns[name] = MaskedColumn(values, mask=mask) if mask.any() else values
        return Table(columns)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``; raises `NotInstalledError` where there is no pandas."""
        try:
            return self._table.to_pandas()
        except ImportError as error:
            raise NotInstalledError("this needs pandas: pip install pandas") from error

    @cached_property
    def _ordered(self) -> Any:
        """By partition in natural order, then by row; columns by name."""
        partitions = self._table["partition"].to_pylist()
        rows = self._table["row"].to_pylist()
        order = sorted(range(len(rows)), key=lambda i: (natural_key(partitions[i]), rows[i]))
        return self._table.select(sorted(self.column_names)).take(order)

    def __repr__(self) -> str:
        return f"<Catalogue of {len(self)} objects at {self._store.where(layout.CATALOGUE)}>"

    def _repr_html_(self) -> str:
        head = self._table.slice(0, SHOWN_ROWS)
        rows = [list(row.values()) for row in head.to_pylist()]
        text = f"<p>{len(self)} objects, the first {len(rows)}:</p>"
        return text + html_table(self.column_names, rows)


def _first_difference(mine: Any, theirs: Any) -> int | None:
    """The first row where two columns differ in a bit; a missing value is equal to itself."""
    if mine.type != theirs.type:
        return 0
    left, right = mine.combine_chunks(), theirs.combine_chunks()
    nulls = np.asarray(left.is_null()) != np.asarray(right.is_null())
    values = [array.to_numpy(zero_copy_only=False) for array in (left, right)]
    if values[0].dtype.kind == "f":  # bits, so that NaN is equal to itself and -0 is not 0
        values = [array.view(f"u{array.dtype.itemsize}") for array in map(np.asarray, values)]
    either = np.asarray(left.is_null()) | np.asarray(right.is_null())
    differ = np.flatnonzero(nulls | ((values[0] != values[1]) & ~either))
    return int(differ[0]) if len(differ) else None


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise NotInstalledError("reading a catalogue needs pyarrow: pip install pyarrow") from error
    return pyarrow
