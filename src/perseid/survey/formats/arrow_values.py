"""Convert Arrow columns to NumPy arrays: nested lists, tensors, text, nulls.

Reads the buffers themselves: the first call of any of pyarrow's compute functions takes 40 MB of a
worker's memory, and many methods of its arrays are such (``is_null``, ``value_lengths``, ``cast``)
or import pandas (``to_numpy``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError
from perseid.survey.content import LONGEST_TEXT, TEXT
from perseid.survey.formats.arrow import bits, is_binary, numpy_type, pyarrow_module, validity

_MOST_UTF8 = 4
"""Bytes of a character of UTF-8 text at most."""


def to_array(column: Any, place: str) -> NDArray[Any]:
    """Convert a column to an array, rows first; a masked array if some values are null."""
    pa = pyarrow_module()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if not hasattr(column, "flatten") or pa.types.is_struct(column.type):
        return _leaf(column, place)
    valid = validity(column)
    if pa.types.is_fixed_size_list(column.type):
        # `flatten` would skip the values below null lists, although they are stored
        size = column.type.list_size
        inner = column.values.slice(column.offset * size, len(column) * size)
        return _rows_of(to_array(inner, place), len(column), valid, valid_only=False)
    offsets = _numbers(column.offsets)
    lengths = np.diff(offsets)
    given = lengths[valid]
    if len(given) and (given != given[0]).any():
        raise BadPartitionError(
            f"{place} has lists of {int(given.min())} to {int(given.max())} values: all must be "
            "equally long"
        )
    inner = to_array(_stored(column), place)
    if lengths[~valid].any():  # values below null lists, which no row has
        inner = inner[np.repeat(valid, lengths)]
    return _rows_of(inner, len(column), valid, valid_only=True)


def bands_of_all(values: Any) -> tuple[str, ...] | None:
    """The names that every row of a column of lists has; None if rows differ; otherwise empty."""
    rows = [row for row in values.to_pylist() if row is not None]
    if any(row != rows[0] for row in rows):
        return None
    return tuple(map(str, rows[0])) if rows else ()


def _stored(column: Any) -> Any:
    """The values of all lists (of any length) of a column, one after the other."""
    first, last = _numbers(column.offsets)[[0, -1]].tolist()
    return column.values.slice(first, last - first)


def _rows_of(
    inner: NDArray[Any], rows: int, valid: NDArray[np.bool_], *, valid_only: bool
) -> NDArray[Any]:
    """Reshape the values of lists to rows; rows of null lists are masked."""
    given = int(valid.sum()) if valid_only else rows
    shaped = inner.reshape(given, -1 if inner.size else 0, *inner.shape[1:])
    if valid.all():
        return shaped
    values = np.zeros((rows, *shaped.shape[1:]), inner.dtype)
    mask = np.ones(values.shape, np.bool_)
    kept = valid if valid_only else slice(None)
    values[kept] = np.ma.getdata(shaped)
    mask[kept] = np.ma.getmaskarray(shaped)
    mask[~valid] = True
    return np.ma.masked_array(values, mask=mask)


def _leaf(column: Any, place: str) -> NDArray[Any]:
    pa = pyarrow_module()
    if pa.types.is_dictionary(column.type):
        return _of_dictionary(column, place)
    if numpy_type(column.type, place) == TEXT:
        values: NDArray[Any] = np.array(_texts(column, place), TEXT)
    else:
        values = _numbers(column)
    return np.ma.masked_array(values, mask=~validity(column)) if column.null_count else values


def _numbers(column: Any) -> NDArray[Any]:
    """Numbers or booleans (n,); the values at the places of nulls are arbitrary."""
    buffer = column.buffers()[1]
    if pyarrow_module().types.is_boolean(column.type):
        return bits(buffer, column.offset, len(column)) if buffer else np.empty(0, np.bool_)
    dtype = numpy_type(column.type, "")
    values = np.frombuffer(buffer, dtype) if buffer else np.empty(0, dtype)
    return values[column.offset : column.offset + len(column)]


def _of_dictionary(column: Any, place: str) -> NDArray[Any]:
    """The values (n,) of an array that stores each distinct one once."""
    values, indices = _leaf(column.dictionary, place), _leaf(column.indices, place)
    absent = np.ma.getmaskarray(indices)
    if absent.all():
        return np.ma.masked_array(np.zeros(len(indices), values.dtype), mask=True)
    taken: NDArray[Any] = values[np.where(absent, 0, np.ma.getdata(indices))]
    absent |= np.ma.getmaskarray(taken)
    return np.ma.masked_array(np.ma.getdata(taken), mask=absent) if absent.any() else taken


def _texts(column: Any, place: str) -> list[str]:
    """Text, or bytes that are UTF-8 text; nulls are empty."""
    _check_bytes(column, place)
    values = column.to_pylist()
    if is_binary(column.type):
        try:
            values = [value.decode() if value else "" for value in values]
        except UnicodeDecodeError as error:
            raise BadPartitionError(
                f"{place} has bytes that are not UTF-8 text: write the column as text or numbers"
            ) from error
    texts = [value or "" for value in values]
    _raise_if_long(max(map(len, texts), default=0), place)
    return texts


def _check_bytes(column: Any, place: str) -> None:
    """Refuse text that is too long whatever its characters, before all of it is copied."""
    types, kind = pyarrow_module().types, column.type
    first, buffers = column.offset, column.buffers()
    if types.is_fixed_size_binary(kind):
        lengths = np.array([kind.byte_width])
    elif types.is_string_view(kind) or types.is_binary_view(kind):
        # Views of 16 bytes, which begin with the length.
        lengths = np.frombuffer(buffers[1] or b"", np.int32)[::4][first : first + len(column)]
    else:
        wide = types.is_large_string(kind) or types.is_large_binary(kind)
        offsets = np.frombuffer(buffers[1] or b"", np.int64 if wide else np.int32)
        lengths = np.diff(offsets[first : first + len(column) + 1])
    lengths = np.where(validity(column), lengths, 0)
    if lengths.max(initial=0) > LONGEST_TEXT * _MOST_UTF8:
        longest = column[int(lengths.argmax())].as_py()
        _raise_if_long(len(longest), place)


def _raise_if_long(longest: int, place: str) -> None:
    if longest > LONGEST_TEXT:
        raise BadPartitionError(
            f"{place} has a text of {longest:,} characters; {LONGEST_TEXT} are read at most"
        )
