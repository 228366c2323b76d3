"""A small Parquet writer: flat tables and fixed-length lists, plain pages, no compression.

It needs no third-party package but numpy. Strings are stored as a dictionary with run-length
encoded indices, because a table repeats the same partition key many times in a row. Each column
chunk has statistics, and the footer the columns' units and UCDs (`perseid.pipeline.voparquet`). The
same columns always give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, BinaryIO, Self

from perseid.errors import BadInputError
from perseid.pipeline import parquet_pages as pages
from perseid.pipeline.parquet_pages import ParquetColumn, ParquetType, Strings, Values
from perseid.pipeline.thrift import I64, struct
from perseid.pipeline.voparquet import votable_metadata

__all__ = ["ParquetColumn", "ParquetType", "ParquetWriter", "Strings", "Values"]

MAGIC = b"PAR1"
CREATED_BY = "perseid"
_UNSIGNED = 14
"""``ConvertedType`` UINT_64."""
_LIST = 3
"""``ConvertedType`` LIST, and the member of ``LogicalType`` of that name."""
_REQUIRED, _OPTIONAL, _REPEATED = range(3)


class _Codec(IntEnum):
    """``Encoding`` in parquet.thrift."""

    PLAIN = 0
    RLE = 3
    RLE_DICTIONARY = 8


class ParquetWriter:
    """Writes row groups to a binary file one at a time; a context manager.

    Parameters
    ----------
    file
        A file open for writing; the writer never reads it or seeks in it.
    columns
        The schema. Units, UCDs and descriptions of columns are put into the footer as VOParquet, a
        convention of the IVOA.
    metadata
        Key-value pairs for the footer.
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
        self._longest = {c.name: 0 for c in columns if c.kind is ParquetType.UTF8}
        """Number of characters of the longest text of each column."""
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
        lengths = {c.name: pages.rows_of(c, values) for c in self._columns}
        if len(set(lengths.values())) != 1:
            raise BadInputError(f"the columns of a table must be equally long, not {lengths}")
        rows = next(iter(lengths.values()))
        if not rows:
            return
        begin = self._offset
        chunks = [self._chunk(c, values[c.name]) for c in self._columns]
        size = I64(self._offset - begin)
        self._groups.append({1: chunks, 2: size, 3: I64(rows), 5: I64(begin), 6: size})
        self._rows += rows

    def close(self) -> None:
        """Write the footer; the file itself is left open."""
        metadata = votable_metadata(self._columns, self._longest) | self._metadata
        # Sorted, so that the same table always gives the same bytes.
        pairs = [{1: key, 2: value} for key, value in sorted(metadata.items())]
        fields = [field for column in self._columns for field in _schema(column)]
        footer: dict[int, Any] = {
            1: 2,
            2: [{4: "schema", 5: len(self._columns)}, *fields],
            3: I64(self._rows),
            4: self._groups,
            6: CREATED_BY,
            7: [{1: {}}] * len(self._columns),  # statistics use each type's order
        }
        if pairs:
            footer[5] = pairs
        data = struct(footer)
        # Readers begin at the end of a file: length of the footer, then the magic bytes.
        self._put(data + len(data).to_bytes(4, "little") + MAGIC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # After an exception the table gets no footer, so that no reader takes it for
        # whole.
        if kind is None:
            self.close()

    def _chunk(self, column: ParquetColumn, values: Values) -> dict[int, Any]:
        """Write one column of a row group and return its ``ColumnChunk``."""
        begin, dictionary = self._offset, None
        if isinstance(values, Strings):
            dictionary = begin
            self._page_of_names(values.names)
            longest = max(map(len, values.names), default=0)
            self._longest[column.name] = max(self._longest[column.name], longest)
            # Few distinct texts, often repeated: each is stored once, and rows refer to it by
            # index.
            body, codec = pages.indices(values), _Codec.RLE_DICTIONARY
        else:
            body, codec = pages.plain(column, values), _Codec.PLAIN
        entries, levels = pages.levels(column, values)
        page = self._offset
        header = {1: entries, 2: codec, 3: _Codec.RLE, 4: _Codec.RLE}
        self._page(0, levels + body, {5: header})
        size = I64(self._offset - begin)
        meta: dict[int, Any] = {
            1: column.kind.physical,
            2: sorted({int(codec), int(_Codec.RLE), int(_Codec.PLAIN)}),
            3: [column.name] if column.width is None else [column.name, "list", "element"],
            4: 0,
            5: I64(entries),
            6: size,
            7: size,
            9: I64(page),
            12: pages.statistics(column, values),
        }
        if dictionary is not None:
            meta[11] = I64(dictionary)
        return {2: I64(0), 3: meta}

    def _page_of_names(self, names: Sequence[str]) -> None:
        texts = [name.encode() for name in names]
        body = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        self._page(2, body, {7: {1: len(texts), 2: _Codec.PLAIN}})

    def _page(self, kind: int, body: bytes, header: dict[int, Any]) -> None:
        self._put(struct({1: kind, 2: len(body), 3: len(body), **header}) + body)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._offset += len(data)


def _schema(column: ParquetColumn) -> list[dict[int, Any]]:
    """``SchemaElement`` objects of a column: one, or for lists the three nested ones that the
    format requires."""
    repetition = _OPTIONAL if column.optional else _REQUIRED
    if column.width is None:
        return [_leaf(column, column.name, repetition)]
    return [
        {3: repetition, 4: column.name, 5: 1, 6: _LIST, 10: {_LIST: {}}},
        {3: _REPEATED, 4: "list", 5: 1},
        _leaf(column, "element", _REQUIRED),
    ]


def _leaf(column: ParquetColumn, name: str, repetition: int) -> dict[int, Any]:
    element: dict[int, Any] = {1: column.kind.physical, 3: repetition, 4: name}
    if column.kind is ParquetType.UTF8:
        element |= {6: 0, 10: {1: {}}}  # ConvertedType UTF8 for old readers, LogicalType STRING
    if column.kind is ParquetType.UINT64:
        element[6] = _UNSIGNED
    return element
