"""Conversion of a catalogue to an astropy table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from perseid.catalogues.selection import Meaning
from perseid.libraries import library_error
from perseid.survey.formats.arrow import pyarrow_module, unwrapped

NO_MEANING = Meaning()


def to_astropy(table: Any, meanings: Mapping[str, Meaning]) -> Any:
    """Convert an Arrow table to an ``astropy.table.Table`` with masked missing values, units,
    and UCDs in the ``meta`` of each column."""
    try:
        from astropy.table import Table
    except ImportError as error:
        raise library_error(error, "this needs astropy: pip install astropy") from error
    found = Table(
        {name: column_values(table[name].combine_chunks()) for name in table.column_names}
    )
    for name in found.colnames:
        meaning = meanings.get(name, NO_MEANING)
        found[name].description = meaning.description or None
        if meaning.unit:
            found[name].unit = meaning.unit
        if meaning.ucd:
            # Astropy's own key for UCDs, which its VOTable writer uses.
            found[name].meta["ucd"] = meaning.ucd
    return found


def column_values(column: Any) -> Any:
    """Values of an Arrow column, (n, ...): an array, or a ``MaskedColumn`` if any are missing."""
    from astropy.table import MaskedColumn

    mask = np.asarray(column.is_null())
    values = _values(column)
    if not mask.any():
        return values
    # A value is missing as a whole: its mask covers all elements of a list.
    every = np.broadcast_to(mask.reshape(-1, *[1] * (values.ndim - 1)), values.shape)
    return MaskedColumn(values, mask=every)


def _values(column: Any) -> Any:
    """Values as a NumPy array, (n, ...); missing values are arbitrary."""
    pa = pyarrow_module()
    leaf, sizes = unwrapped(column.type)
    if sizes:
        return _lists(column)
    if pa.types.is_string(leaf) or pa.types.is_large_string(leaf):
        return np.asarray(column.fill_null("").to_pylist(), np.str_)
    # A placeholder keeps the type: with missing values, NumPy would turn integers into floats.
    if column.null_count:
        column = column.fill_null(False if pa.types.is_boolean(leaf) else 0)
    return column.to_numpy(zero_copy_only=False)


def _lists(column: Any) -> Any:
    """Lists as an array (n, width) if all have the same length, otherwise as (n,) of arrays."""
    values = column.to_pylist()
    widths = {len(value) for value in values if value is not None}
    if len(widths) == 1:
        empty = [0] * widths.pop()
        leaf = unwrapped(column.type)[0].to_pandas_dtype()
        return np.asarray([empty if v is None else v for v in values], leaf)
    # Filled afterwards, since np.array(lists) refuses lists of different lengths.
    out = np.empty(len(values), object)
    out[:] = [np.asarray(value or []) for value in values]
    return out
