"""A small Parquet writer: flat tables, plain pages, no compression, no third-party package.

Format: https://parquet.apache.org/docs/file-format/ and ``parquet.thrift`` (version 2.10), encoded
in Thrift's compact protocol. Strings come as a dictionary and runs, since a table names the same
partition many times in a row. The same columns give the same bytes: nothing depends on the clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError

MAGIC = b"PAR1"
CREATED_BY = "perseid"


class ParquetType(IntEnum):
    """Types of columns, by Parquet's numbers of physical types; see `physical`."""

    INT32 = 1
    INT64 = 2
    FLOAT32 = 4
    FLOAT64 = 5
    UTF8 = 6
    UINT64 = 102

    @property
    def physical(self) -> int:
        """``Type`` in parquet.thrift: an unsigned integer lies there as a signed one."""
        return self % 100


_DTYPES = {
    ParquetType.INT32: "<i4",
    ParquetType.INT64: "<i8",
    ParquetType.FLOAT32: "<f4",
    ParquetType.FLOAT64: "<f8",
}
_DTYPES |= {ParquetType.UINT64: "<u8"}
_UNSIGNED = 14
"""``ConvertedType`` UINT_64."""


class _Codec(IntEnum):
    """``Encoding`` in parquet.thrift."""

    PLAIN = 0
    RLE = 3
    RLE_DICTIONARY = 8


@dataclass(frozen=True)
class ParquetColumn:
    """One column of a table."""

    name: str
    kind: ParquetType
    optional: bool = False
    """Whether values may be missing."""


@dataclass(frozen=True, eq=False)
class Strings:
    """Values of a UTF8 column: ``names[codes]``."""

    codes: NDArray[np.integer[Any]]
    """(n,), indices into `names`."""
    names: Sequence[str]
    """The distinct values."""


Values = NDArray[Any] | Strings
"""Values of a column; a `numpy.ma.MaskedArray` where some are missing."""


class ParquetWriter:
    """Writes row groups to a binary file as they come; a context manager.

    Parameters
    ----------
    file
        Open for writing; only written to, never read or sought.
    columns
        The schema.
    metadata
        Key-value pairs of the footer.
    """

    def __init__(
        self,
        file: BinaryIO,
        columns: Sequence[ParquetColumn],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if not columns:
            raise BadInputError("a Parquet table needs at least one column")
        self._file = file
        self._columns = tuple(columns)
        self._metadata = dict(metadata or {})
        self._groups: list[dict[int, Any]] = []
        self._rows = 0
        self._offset = 0
        self._put(MAGIC)

    def write(self, values: Mapping[str, Values]) -> None:
        """Append one row group.

        Raises
        ------
        BadInputError
            A column is missing, or its length is not that of the others.
        """
        lengths = {c.name: _length(c, values) for c in self._columns}
        if len(set(lengths.values())) != 1:
            raise BadInputError(f"the columns of a table must be equally long, not {lengths}")
        rows = next(iter(lengths.values()))
        if not rows:
            return
        begin = self._offset
        chunks = [self._chunk(c, values[c.name], rows) for c in self._columns]
        size = _I64(self._offset - begin)
        self._groups.append({1: chunks, 2: size, 3: _I64(rows), 5: _I64(begin), 6: size})
        self._rows += rows

    def close(self) -> None:
        """Write the footer; the file itself stays open."""
        pairs = [{1: key, 2: value} for key, value in sorted(self._metadata.items())]
        footer: dict[int, Any] = {
            1: 2,
            2: [{4: "schema", 5: len(self._columns)}, *map(_schema, self._columns)],
            3: _I64(self._rows),
            4: self._groups,
            6: CREATED_BY,
        }
        if pairs:
            footer[5] = pairs
        data = _struct(footer)
        self._put(data + len(data).to_bytes(4, "little") + MAGIC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()

    def _chunk(self, column: ParquetColumn, values: Values, rows: int) -> dict[int, Any]:
        """Write one column of a row group; its ``ColumnChunk``."""
        begin, dictionary = self._offset, None
        levels, body = b"", b""
        if isinstance(values, Strings):
            dictionary = begin
            self._page_of_names(values.names)
            body = _indices(values)
            codec = _Codec.RLE_DICTIONARY
        else:
            body = _plain(column, values)
            codec = _Codec.PLAIN
        if column.optional:
            levels = _levels(values, rows)
        page = self._offset
        header = {1: rows, 2: codec, 3: _Codec.RLE, 4: _Codec.RLE}
        self._page(0, levels + body, {5: header})
        size = _I64(self._offset - begin)
        meta: dict[int, Any] = {
            1: column.kind.physical,
            2: sorted({int(codec), int(_Codec.RLE), int(_Codec.PLAIN)}),
            3: [column.name],
            4: 0,
            5: _I64(rows),
            6: size,
            7: size,
            9: _I64(page),
        }
        if dictionary is not None:
            meta[11] = _I64(dictionary)
        return {2: _I64(0), 3: meta}

    def _page_of_names(self, names: Sequence[str]) -> None:
        texts = [name.encode() for name in names]
        body = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        self._page(2, body, {7: {1: len(texts), 2: _Codec.PLAIN}})

    def _page(self, kind: int, body: bytes, header: dict[int, Any]) -> None:
        self._put(_struct({1: kind, 2: len(body), 3: len(body), **header}) + body)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._offset += len(data)


def _length(column: ParquetColumn, values: Mapping[str, Values]) -> int:
    if column.name not in values:
        raise BadInputError(f"the table has no column {column.name!r}")
    given = values[column.name]
    if isinstance(given, Strings) != (column.kind is ParquetType.UTF8):
        raise BadInputError(f"the values of column {column.name!r} are not {column.kind.name}")
    if not column.optional and np.ma.is_masked(given):
        raise BadInputError(f"column {column.name!r} is not optional, but values are missing")
    return len(given.codes if isinstance(given, Strings) else given)


def _schema(column: ParquetColumn) -> dict[int, Any]:
    element: dict[int, Any] = {1: column.kind.physical, 3: int(column.optional), 4: column.name}
    if column.kind is ParquetType.UTF8:
        element |= {6: 0, 10: {1: {}}}  # ConvertedType UTF8 for old readers, LogicalType STRING
    if column.kind is ParquetType.UINT64:
        element[6] = _UNSIGNED
    return element


def _valid(values: Values) -> NDArray[np.bool_] | None:
    """(n,), or None where all are there."""
    array = values.codes if isinstance(values, Strings) else values
    mask = np.ma.getmask(array)
    return None if mask is np.ma.nomask else ~np.asarray(mask)


def _present(values: Values) -> NDArray[Any]:
    array = values.codes if isinstance(values, Strings) else values
    valid = _valid(values)
    plain = np.ma.getdata(array)
    return plain if valid is None else plain[valid]


def _plain(column: ParquetColumn, values: Values) -> bytes:
    return np.ascontiguousarray(_present(values), dtype=_DTYPES[column.kind]).tobytes()


def _levels(values: Values, rows: int) -> bytes:
    """Definition levels 0 and 1, preceded by their length in bytes."""
    valid = _valid(values)
    if valid is None or valid.all():
        data = _varint(rows << 1) + b"\x01"
    else:  # one bit-packed run in groups of eight
        groups = -(-rows // 8)
        data = _varint(groups << 1 | 1) + np.packbits(valid, bitorder="little").tobytes()
    return len(data).to_bytes(4, "little") + data


def _indices(values: Strings) -> bytes:
    """Dictionary indices as runs: bit width, then (length, value) pairs."""
    codes = _present(values)
    width = max(len(values.names) - 1, 0).bit_length()
    if not len(codes):
        return bytes([width])
    starts = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1])
    lengths = np.diff(np.append(starts, len(codes)))
    size = (width + 7) // 8
    runs = zip(lengths.tolist(), codes[starts].tolist(), strict=True)
    return bytes([width]) + b"".join(
        _varint(length << 1) + value.to_bytes(size, "little") for length, value in runs
    )


# Thrift's compact protocol, as far as the footer and the page headers need it: a struct is a dict
# from field number to value; plain integers are i32.
# https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md


class _I64(int):
    """An integer that goes as i64."""


def _struct(fields: Mapping[int, Any]) -> bytes:
    out, last = bytearray(), 0
    for number, value in sorted(fields.items()):
        code, data = _value(value)
        out.append((number - last) << 4 | code)  # all our field numbers are less than 16 apart
        out += data
        last = number
    return bytes(out) + b"\0"


def _value(value: Any) -> tuple[int, bytes]:
    """Type code and encoding."""
    if isinstance(value, int):
        zigzag = value << 1 if value >= 0 else (-value << 1) - 1
        return (6 if isinstance(value, _I64) else 5), _varint(zigzag)
    if isinstance(value, str):
        text = value.encode()
        return 8, _varint(len(text)) + text
    if isinstance(value, dict):
        return 12, _struct(value)
    encoded = [_value(entry) for entry in value]
    code = encoded[0][0] if encoded else 12
    size = len(encoded)
    head = bytes([size << 4 | code]) if size < 15 else bytes([0xF0 | code]) + _varint(size)
    return 9, head + b"".join(data for _, data in encoded)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
