"""Column types: which dtypes a file may use, and how each is converted to the dtype in memory.

Many tools write these files, so any dtype is accepted as long as every value fits the dtype that
perseid keeps. Otherwise the file is refused with advice. Nothing is ever rounded or wrapped
silently.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError
from perseid.masked import is_masked_array, values_of
from perseid.survey.column_spec import TEXT_KIND, kind_of_dtype
from perseid.survey.names import FURTHER, is_further

TEXT: Final = np.dtype("U")
"""Dtype of text in `Columns.dtypes`; arrays of it have the width of their longest value."""
LONGEST_TEXT = 256
"""Longest text id, in characters. Longer texts are not ids, and a column of them could fill the
memory."""
_EXACT_FLOAT32, _EXACT_FLOAT64 = 1 << 24, 1 << 53
"""Largest integers up to which float32 and float64 are exact."""

_TAKEN = {
    "image": ("fiu", "numbers"),
    "magnitude": ("fiu", "numbers"),
    "redshift": ("fiu", "numbers"),
    "object_id": ("iufUS", "integers or text"),
    "label": ("iubfUS", "integers or text"),
}
"""The dtype kinds that each column accepts, and the same in words for messages."""
_WIDEST = 8
"""Most bytes per number: wider ones (float128) exist in no other format."""

Array = NDArray[Any]
"""Also a `numpy.ma.MaskedArray`, where values of an id or a label are missing."""


def kept_dtype(name: str, dtype: np.dtype[Any], where: str) -> np.dtype[Any]:
    """Choose the native dtype in which a column is kept.

    Parameters
    ----------
    name
        Of the column, as in `perseid.survey.names.NAMES`, or of a further one.
    dtype
        In the file.
    where
        The file, for messages.

    Returns
    -------
    float32 for images; float32 or float64 for magnitudes and redshifts; int64, uint64 or `TEXT`
    for ids; int32 or `TEXT` for labels; for further columns the smallest of `column_spec.KINDS`
    that holds every value.

    Raises
    ------
    BadPartitionError
        The column cannot be of that dtype.
    """
    if is_further(name):
        kind = kind_of_dtype(dtype)
        if not kind:
            raise BadPartitionError(
                f"{where}: {name.removeprefix(FURTHER)} must be numbers or text, not {dtype}: "
                "convert the column, or leave it out"
            )
        return TEXT if kind == TEXT_KIND else np.dtype(kind)
    kinds, words = _TAKEN[name]
    wide = dtype.itemsize > _WIDEST and dtype.kind not in "US"
    if dtype.kind not in kinds or wide:
        raise BadPartitionError(f"{where}: {name} must be {words}, not {dtype}: convert the column")
    if name == "image":
        return np.dtype(np.float32)
    if dtype.kind in "US":
        return TEXT
    if name == "label":
        return np.dtype(np.int32)
    if name == "object_id":
        return np.dtype(np.uint64 if (dtype.kind, dtype.itemsize) == ("u", 8) else np.int64)
    # Integers of up to 16 bits are exact in float32, longer ones are not.
    exact = dtype.itemsize <= (4 if dtype.kind == "f" else 2)
    return np.dtype(np.float32 if exact else np.float64)


def convert(name: str, array: Array, dtype: np.dtype[Any], where: str) -> Array:
    """Convert a column to the dtype in which it is kept; a view if nothing has to change.

    Missing values (of a masked array) become NaN in images, magnitudes and redshifts, and stay
    masked in ids and labels.

    Parameters
    ----------
    name
        Of the column.
    array
        As read: any byte order.
    dtype
        What `kept_dtype` said.
    where
        The file, for messages.

    Raises
    ------
    BadPartitionError
        A value does not fit into the dtype.
    """
    place = f"{where}: {name.removeprefix(FURTHER)}"
    if not array.dtype.isnative:
        # FITS is big-endian. Swap once here; otherwise every later operation would swap again.
        array = array.byteswap().view(array.dtype.newbyteorder("="))
    if dtype == TEXT:
        return _text(array, place)
    if dtype.kind == "b":
        return array.astype(dtype)
    if name in ("image", "magnitude", "redshift") or dtype.kind == "f":
        array = _floats(array, dtype, place)
    elif array.dtype.kind == "f":
        array = _whole_numbers(array, dtype, place)
    else:
        array = _integers(array, dtype, place)
    return array if is_masked_array(array) else np.require(array, requirements=["A"])


def join(parts: list[Array], dtype: np.dtype[Any], row: tuple[int, ...] = ()) -> Array:
    """Concatenate parts of a column; without any part, an empty array of `dtype` and row shape
    `row`."""
    if len(parts) == 1:
        return parts[0]
    empty = np.empty((0, *row), dtype)
    if any(map(is_masked_array, parts)):
        joined: Array = np.ma.concatenate([empty, *parts])  # type: ignore[no-untyped-call]
        return joined
    return np.concatenate([empty, *parts])


def _floats(array: Array, dtype: np.dtype[Any], place: str) -> Array:
    mask = np.ma.getmaskarray(array) if is_masked_array(array) else None
    values = values_of(array)
    if values.dtype != dtype:
        values = _as_float(values, mask, dtype, place)
    if mask is not None and mask.any():
        values = np.where(mask, dtype.type(np.nan), values)
    return values


def _as_float(
    values: Array, mask: NDArray[np.bool_] | None, dtype: np.dtype[Any], place: str
) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype)
    if values.dtype.kind in "iu":
        limit = _EXACT_FLOAT32 if dtype.itemsize == 4 else _EXACT_FLOAT64
        wrong = (np.abs(cast) > limit) if values.dtype.itemsize >= dtype.itemsize else None
        remedy = f"{dtype} holds whole numbers exactly only up to {limit:,}: scale the column"
    else:
        wrong = np.isinf(cast) & np.isfinite(values)
        remedy = f"it is beyond the range of {dtype}: divide the column by a constant"
    if wrong is not None and mask is not None:
        wrong &= ~mask
    if wrong is not None and wrong.any():
        raise BadPartitionError(f"{place} has the value {values[wrong].flat[0]}; {remedy}")
    return cast


def _integers(array: Array, dtype: np.dtype[Any], place: str) -> Array:
    if array.dtype == dtype:
        return array
    limits = np.iinfo(dtype)
    if array.dtype.kind != "b":
        known = np.ma.compressed(array) if is_masked_array(array) else array
        # Compared as Python integers: the array's own type could not represent all limits.
        if known.size and (int(known.min()) < limits.min or int(known.max()) > limits.max):
            raise BadPartitionError(
                f"{place} has values from {known.min()} to {known.max()}, which do not fit into "
                f"{dtype}: number it again"
            )
    return array.astype(dtype)


def _whole_numbers(array: Array, dtype: np.dtype[Any], place: str) -> Array:
    """Read integers that a tool wrote as floats because it had no missing integer: NaN means
    missing."""
    missing = np.ma.getmaskarray(array) | np.isnan(np.ma.getdata(array))
    values = np.where(missing, 0, np.ma.getdata(array))
    limit = _EXACT_FLOAT32 if array.dtype.itemsize <= 4 else _EXACT_FLOAT64
    # From 2^53 on neighboring integers share one float, so ids may already have been confused.
    wrong = (np.abs(values) >= limit) | (values != np.trunc(values))
    if wrong.any():
        raise BadPartitionError(
            f"{place} is {array.dtype} and has the value {values[wrong].flat[0]}: floating-point "
            f"numbers are exact only up to {limit:,}; write the column as integers or text"
        )
    whole = _integers(values.astype(np.int64), dtype, place)
    return np.ma.masked_array(whole, mask=missing) if missing.any() else whole


def _text(array: Array, place: str) -> Array:
    mask = np.ma.getmask(array)
    values = np.ma.getdata(array)
    if values.dtype.kind == "S":
        try:
            values = np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise BadPartitionError(
                f"{place} has text that is not UTF-8: write it again"
            ) from error
    if values.dtype.itemsize > LONGEST_TEXT * np.dtype("U1").itemsize:
        # A dtype can be wider than all its values, as in FITS, so the values are measured.
        longest = int(np.char.str_len(values).max(initial=0))
        if longest > LONGEST_TEXT:
            raise BadPartitionError(
                f"{place} has a text of {longest:,} characters; {LONGEST_TEXT} are read at most"
            )
        values = values.astype(f"U{max(longest, 1)}")
    return np.ma.masked_array(values, mask=mask) if mask is not np.ma.nomask else values
