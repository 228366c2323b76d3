"""Encode columns for a Parquet file: value types, levels, page bodies and statistics.

Format: https://parquet.apache.org/docs/file-format/ and ``parquet.thrift`` (version 2.10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError
from perseid.masked import has_missing, is_masked_array, values_of
from perseid.pipeline.thrift import I64, varint

LONGEST_BOUND = 64
"""Longest text, in bytes, that statistics quote; a column with a longer one gets no bounds."""


class ParquetType(IntEnum):
    """Column types; the values are Parquet's numbers of physical types, see `physical`."""

    BOOL = 0
    INT32 = 1
    INT64 = 2
    FLOAT32 = 4
    FLOAT64 = 5
    UTF8 = 6
    UINT64 = 102

    @property
    def physical(self) -> int:
        """Number of the ``Type`` in parquet.thrift; unsigned integers are stored as signed ones."""
        return self % 100


DTYPES = {
    ParquetType.BOOL: "?",
    ParquetType.INT32: "<i4",
    ParquetType.INT64: "<i8",
    ParquetType.FLOAT32: "<f4",
    ParquetType.FLOAT64: "<f8",
    ParquetType.UINT64: "<u8",
}
"""NumPy dtypes of the types whose values are numbers or booleans."""


@dataclass(frozen=True)
class ParquetColumn:
    """Name, type and description of one table column."""

    name: str
    kind: ParquetType
    """Type of the values, or of their elements if each value is a list."""
    optional: bool = False
    """Whether values may be missing."""
    width: int | None = None
    """Number of elements in each value, the same for all rows; None for single values. Only numbers
    can be lists."""
    unit: str = ""
    """Unit in VOUnits, e.g. ``mag``; empty if there is none."""
    ucd: str = ""
    """IVOA Unified Content Descriptor (UCD1+), e.g. ``src.redshift``; empty if there is none."""
    description: str = ""
    """One sentence that describes the column to people."""


@dataclass(frozen=True, eq=False)
class Strings:
    """Values of a UTF8 column, stored as ``names[codes]``."""

    codes: NDArray[np.integer[Any]]
    """Indices (n,) into `names`; masked where a value is missing."""
    names: Sequence[str]
    """The distinct texts."""


Values = NDArray[Any] | Strings
"""Values of a column, (n,) or (n, width); a `numpy.ma.MaskedArray` if some are missing."""


def rows_of(column: ParquetColumn, values: Mapping[str, Values]) -> int:
    """Number of values of a column; raises `BadInputError` if the values do not fit it."""
    if column.name not in values:
        raise BadInputError(f"the table has no column {column.name!r}")
    given = values[column.name]
    if isinstance(given, Strings) != (column.kind is ParquetType.UTF8):
        raise BadInputError(f"the values of column {column.name!r} are not {column.kind.name}")
    if not column.optional and has_missing(_array(given)):
        raise BadInputError(f"column {column.name!r} is not optional, but values are missing")
    shape = _array(given).shape
    wanted = () if column.width is None else (column.width,)
    if shape[1:] != wanted or column.width == 0:
        raise BadInputError(f"the values of column {column.name!r} have shapes {shape[1:]}, "
                            f"not {wanted}")  # fmt: skip
    return int(shape[0])


def levels(column: ParquetColumn, values: Values) -> tuple[int, bytes]:
    """Number of entries of a page, and its encoded repetition and definition levels."""
    valid, rows = _valid(values), len(_array(values))
    if column.width is None:
        defined = valid if valid is not None else np.ones(rows, bool)
        return rows, _runs(defined.astype(np.uint8), 1) if column.optional else b""
    lengths = np.where(valid, column.width, 1) if valid is not None else np.full(rows, column.width)
    entries = int(lengths.sum())
    repeated = np.ones(entries, np.uint8)
    repeated[np.cumsum(lengths) - lengths] = 0
    top = 1 + column.optional
    each = np.where(valid, top, 0) if valid is not None else np.full(rows, top)
    return entries, _runs(repeated, 1) + _runs(np.repeat(each, lengths).astype(np.uint8), top)


def plain(column: ParquetColumn, values: Values) -> bytes:
    """The values that are not missing, in plain encoding."""
    if column.kind is ParquetType.BOOL:
        return np.packbits(present(values), bitorder="little").tobytes()
    return np.ascontiguousarray(present(values), dtype=DTYPES[column.kind]).tobytes()


def indices(values: Strings) -> bytes:
    """Dictionary indices as runs: the bit width, then (length, value) pairs."""
    codes = present(values)
    width = max(len(values.names) - 1, 0).bit_length()
    if not len(codes):
        return bytes([width])
    starts = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1])
    lengths = np.diff(np.append(starts, len(codes)))
    size = (width + 7) // 8
    runs = zip(lengths.tolist(), codes[starts].tolist(), strict=True)
    return bytes([width]) + b"".join(
        varint(length << 1) + value.to_bytes(size, "little") for length, value in runs
    )


def present(values: Values) -> NDArray[Any]:
    """The values that are not missing (for text, their codes)."""
    valid, bare = _valid(values), values_of(_array(values))
    return bare if valid is None else bare[valid]


def statistics(column: ParquetColumn, values: Values) -> dict[int, object]:
    """``Statistics`` of a column chunk: number of missing values, minimum and maximum.

    NaN is ignored because it cannot be ordered. As the format requires, a zero is written as -0 if
    it is the minimum and as +0 if it is the maximum.
    """
    valid = _valid(values)
    found: dict[int, object] = {3: I64(0 if valid is None else int((~valid).sum()))}
    bounds = _text_bounds(values) if isinstance(values, Strings) else _bounds(column, values)
    if bounds is not None:
        found |= {5: bounds[1], 6: bounds[0], 7: True, 8: True}
    return found


def _bounds(column: ParquetColumn, values: Values) -> tuple[bytes, bytes] | None:
    there = present(values)
    if there.dtype.kind == "f":
        # With NaN as a bound, readers would skip row groups that contain matching rows.
        there = there[~np.isnan(there)]
    if not there.size:
        return None
    least, most = there.min(), there.max()
    if there.dtype.kind == "f":
        least, most = (-0.0 if least == 0 else least), (0.0 if most == 0 else most)
    dtype = DTYPES[column.kind]
    return np.asarray(least, dtype).tobytes(), np.asarray(most, dtype).tobytes()


def _text_bounds(values: Strings) -> tuple[bytes, bytes] | None:
    texts = [values.names[code].encode() for code in np.unique(present(values))]
    # Long texts would make the footer, which every reader fetches, larger than the pages.
    if not texts or max(map(len, texts)) > LONGEST_BOUND:
        return None
    return min(texts), max(texts)


def _array(values: Values) -> NDArray[Any]:
    return values.codes if isinstance(values, Strings) else values


def _valid(values: Values) -> NDArray[np.bool_] | None:
    """Mask (n,) of the values that are not missing; None if none is missing."""
    array = _array(values)
    if not is_masked_array(array) or np.ma.getmask(array) is np.ma.nomask:
        return None
    valid = ~np.ma.getmaskarray(array)
    return valid if valid.ndim == 1 else np.asarray(valid.all(axis=1), bool)


def _runs(numbers: NDArray[np.uint8], most: int) -> bytes:
    """Encode levels from 0 to `most` (1 or 2), preceded by their length in bytes."""
    if numbers.size and (numbers == numbers[0]).all():
        data = varint(numbers.size << 1) + bytes([numbers[0]])
    else:  # one bit-packed run in groups of eight
        groups = -(-numbers.size // 8)
        bits = numbers if most == 1 else np.stack([numbers & 1, numbers >> 1], axis=1).ravel()
        packed = np.packbits(bits, bitorder="little").tobytes()
        data = varint(groups << 1 | 1) + packed.ljust(groups * most, b"\0")
    return len(data).to_bytes(4, "little") + data
