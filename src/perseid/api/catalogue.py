"""The catalogue of a run: one row per object, for astropy, pandas or Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from perseid.catalogues.astropytable import to_astropy
from perseid.catalogues.export import Written, export
from perseid.catalogues.selection import Selection
from perseid.errors import BadInputError
from perseid.jsontext import parse_json
from perseid.libraries import library_error
from perseid.model.outputs import Z_PRED, OutputColumn
from perseid.pipeline.catalogue_reader import StoredCatalogue
from perseid.pipeline.publish import OUTPUTS_KEY
from perseid.pipeline.tables import CATALOGUE
from perseid.plaintext import brief, counted, html_table
from perseid.storage import Storage
from perseid.survey import natural_key
from perseid.survey.formats.arrow import compute_module, pyarrow_module

SHOWN_ROWS = 10
"""How many rows a notebook shows."""
CORE = tuple(column.name for column in CATALOGUE)
"""Columns in which two catalogues are compared."""
PLACE = ("partition", "row")
"""Columns that identify a row's object in the survey."""

_BITS = {"float": "u4", "double": "u8"}
"""Unsigned integers of the same width as Arrow's float types."""


class Catalogue:
    """The results of a run, one row per object: redshift, anomaly score, and the object's place in
    the survey.

    Parameters
    ----------
    store
        Storage of the run's prefix.

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
        self._stored = StoredCatalogue(store)

    @cached_property
    def _table(self) -> Any:
        return self._stored.table()

    def __len__(self) -> int:
        return self._stored.num_rows

    @property
    def run_id(self) -> str | None:
        """Id of the run that wrote it, if the file says so."""
        return self._stored.metadata.get("run_id")

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in order."""
        return list(self._stored.schema.names)

    @property
    def outputs(self) -> tuple[OutputColumn, ...]:
        """Description of the model's columns: kind, unit, names of classes."""
        text = self._stored.metadata.get(OUTPUTS_KEY)
        if text is None:
            return (Z_PRED,)
        return tuple(map(OutputColumn.from_json, parse_json(text)))

    def equals(self, other: Catalogue) -> bool:
        """Whether both have the same rows with identical values, bit for bit.

        The order of the rows, the layout of the file, and columns carried over from the survey do
        not matter.
        """
        return self.difference(other) is None

    def difference(self, other: Catalogue) -> str | None:
        """Describe the first difference in words; None if both are equal."""
        if not isinstance(other, Catalogue):
            raise BadInputError(
                f"a catalogue is compared with another one, not with {brief(other)}"
            )
        mine, theirs = self._ordered, other._ordered
        if mine.column_names != theirs.column_names:
            return f"columns {mine.column_names} and {theirs.column_names}"
        if mine.num_rows != theirs.num_rows:
            return f"{counted(mine.num_rows, 'row')} and {counted(theirs.num_rows, 'row')}"
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
        """An ``astropy.table.Table`` with units; missing values are masked, UCDs in ``meta``."""
        return to_astropy(self._table, self._selection().meanings)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``; raises `NotInstalledError` if pandas is not installed."""
        try:
            return self._table.to_pandas()
        except ImportError as error:
            raise library_error(error, "this needs pandas: pip install pandas") from error

    def write(
        self,
        to: str | Path,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        format: str | None = None,
    ) -> Written:
        """Write the catalogue in the format of another tool.

        Parameters
        ----------
        to
            Path or URL of the file. Its suffix selects the format: ``.fits``, ``.vot``, ``.csv``,
            ``.parquet``, ``.hdf5`` (redshift PDFs for qp). A path ending in ``/`` is a folder for a
            HATS catalogue.
        columns
            Names of the columns to write, in this order; None: all.
        where
            Condition for the rows to write, such as ``"z_pred > 0.1 and flag == 0"``; None: all.
        format
            ``fits``, ``votable``, ``csv``, ``parquet``, ``qp`` or ``hats``; overrides the suffix.

        Returns
        -------
        Written
            Place, format, rows and bytes.

        Raises
        ------
        BadInputError
            A column does not exist, the condition cannot be parsed, or the suffix is unknown.
        StorageError
            The file cannot be written.

        Examples
        --------
        >>> run.catalogue().write("near.fits", where="z_pred < 0.05").rows  # doctest: +SKIP
        311
        """
        return export(self._selection(columns, where), to, format)

    def _selection(
        self, columns: Sequence[str] | None = None, where: str | None = None
    ) -> Selection:
        return Selection(self._stored, columns, where)

    @cached_property
    def _ordered(self) -> Any:
        """Our columns and the model's, sorted by partition in natural order, then by row number."""
        partitions = self._table["partition"].combine_chunks().dictionary_encode()
        names = partitions.dictionary.to_pylist()
        place = np.empty(len(names), np.int64)
        place[sorted(range(len(names)), key=lambda i: natural_key(names[i]))] = range(len(names))
        rows = self._table["row"].combine_chunks().to_numpy(zero_copy_only=False)
        order = np.lexsort((rows, place[partitions.indices.to_numpy(zero_copy_only=False)]))
        ours = {*CORE, *(column.name for column in self.outputs)}
        return self._table.select([n for n in self.column_names if n in ours]).take(order)

    def __repr__(self) -> str:
        return f"<Catalogue of {counted(len(self), 'object')} at {self._stored.where}>"

    def _repr_html_(self) -> str:
        head = next(iter(self._stored.batches()), None)  # avoids reading all of a large catalogue
        shown = [] if head is None else head.slice(0, SHOWN_ROWS).to_pylist()
        rows = [list(row.values()) for row in shown]
        text = f"<p>{counted(len(self), 'object')}, the first {len(rows)}:</p>"
        return text + html_table(self.column_names, rows)


def _first_difference(mine: Any, theirs: Any) -> int | None:
    """The first row in which two columns differ in any bit; missing values equal each other."""
    if mine.type != theirs.type:
        return 0
    left, right = mine.combine_chunks(), theirs.combine_chunks()
    if str(left.type).startswith(("list", "fixed_size_list")):
        return _first_list_difference(left, right)
    # What lies in memory behind a missing value is arbitrary, and must not be compared.
    absent = [np.asarray(array.is_null()) for array in (left, right)]
    if str(left.type) in _BITS:  # by bits, so that NaN equals itself and -0 differs from 0
        bits = [
            np.asarray(array.fill_null(0.0)).view(_BITS[str(left.type)]) for array in (left, right)
        ]
        other = bits[0] != bits[1]
    else:
        other = np.asarray(compute_module().not_equal(left, right).fill_null(False))
    differ = np.flatnonzero((absent[0] != absent[1]) | (other & ~absent[0]))
    return int(differ[0]) if len(differ) else None


def _first_list_difference(left: Any, right: Any) -> int | None:
    lengths = [
        np.asarray(compute_module().list_value_length(array).fill_null(-1))
        for array in (left, right)
    ]
    unlike = np.flatnonzero(lengths[0] != lengths[1])
    # Up to there both have the same number of values in each row, so their values can be compared
    # one after the other.
    end = int(unlike[0]) if len(unlike) else len(left)
    chunked = pyarrow_module().chunked_array
    values = [chunked([array.slice(0, end).flatten()]) for array in (left, right)]
    place = _first_difference(*values)
    if place is None:
        return end if len(unlike) else None
    ends = np.cumsum(np.maximum(lengths[0][:end], 0))
    return int(np.searchsorted(ends, place, side="right"))
