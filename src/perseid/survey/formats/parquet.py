"""Parquet (``.parquet``): images and magnitudes are fixed-size lists, one row an object.

The images' shape is in the file's metadata under ``perseid.image_shape`` (JSON); without it, the
number of magnitudes says how many bands there are and the images are taken to be square. Row
groups are small, so reading one needs little memory; pages carry checksums.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError, NotInstalledError, PerseidError
from perseid.survey.bytesource import LARGEST_READ, ByteSource, SourceFile, corrupt
from perseid.survey.cutouts import Cutouts
from perseid.survey.table import (
    NAMES,
    Columns,
    Table,
    Writer,
    as_cutouts,
    as_dict,
    canonical,
    check_columns,
    native,
)

SHAPE_KEY = b"perseid.image_shape"
_GROUP_BYTES = 8 << 20
"""Pixels of a row group that we write."""


def open_table(source: ByteSource) -> Table:
    """Read the footer; see `perseid.survey.formats`."""
    pa = _pyarrow()
    try:
        file = pa.parquet.ParquetFile(
            pa.PythonFile(SourceFile(source), mode="r"), page_checksum_verification=True
        )
        return _Groups(source, file)
    except PerseidError:
        raise
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise corrupt(source, "Parquet", error) from error


def create(path: Path, columns: Columns) -> Writer:
    """Begin a file on disk; see `perseid.survey.formats`."""
    return _Writer(path, columns)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise NotInstalledError("Parquet needs pyarrow: pip install 'perseid[formats]'") from error
    return pyarrow


class _Groups(Table):
    """Row groups, decoded one at a time."""

    def __init__(self, source: ByteSource, file: Any) -> None:
        pa = _pyarrow()
        schema, metadata = file.schema_arrow, file.metadata
        self._fields = {canonical(n): n for n in schema.names if canonical(n) in NAMES}
        found = {}
        for name, field in self._fields.items():
            kind = schema.field(field).type
            inner = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
            if pa.types.is_nested(inner) or not pa.types.is_primitive(inner):
                raise BadPartitionError(f"{source.name}: {name} is {kind}, not a fixed-size list")
            length = (kind.list_size,) if inner is not kind else ()
            found[name] = (np.dtype(inner.to_pandas_dtype()), (metadata.num_rows, *length))
        if "image" in found and "magnitude" in found:
            found["image"] = _shaped(found, (schema.metadata or {}).get(SHAPE_KEY), source.name)
        super().__init__(source, check_columns(source.name, found))
        self._file = file
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        if any(group.total_byte_size > LARGEST_READ for group in groups):
            raise BadPartitionError(f"{source.name}: a row group has over {LARGEST_READ} bytes")
        self._ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
        self._loaded: tuple[int, dict[str, NDArray[Any]]] = (-1, {})

    def read(self, start: int, stop: int) -> Cutouts:
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in self.columns.dtypes}
        at = start
        while at < stop:
            index = int(np.searchsorted(self._ends, at, side="right"))
            end = int(self._ends[index])
            first = int(self._ends[index - 1]) if index else 0
            rows = slice(at - first, min(stop, end) - first)
            for name, column in self._group(index, end - first).items():
                parts[name].append(column[rows])
            at = min(stop, end)
        empty = self.columns
        return as_cutouts(
            {
                name: arrays[0]
                if len(arrays) == 1
                else np.concatenate(
                    [np.empty((0, *empty.row_shape(name)), empty.dtypes[name]), *arrays]
                )
                for name, arrays in parts.items()
            }
        )

    def _group(self, index: int, rows: int) -> dict[str, NDArray[Any]]:
        if self._loaded[0] != index:
            self._loaded = (-1, {})
            try:
                table = self._file.read_row_group(
                    index, columns=list(self._fields.values()), use_threads=False
                )
                arrays = {n: self._array(table.column(f), n) for n, f in self._fields.items()}
            except PerseidError:
                raise
            except (OSError, ValueError, TypeError, NotImplementedError) as error:
                raise corrupt(self.source, "Parquet", error) from error
            if any(len(array) != rows for array in arrays.values()):
                raise BadPartitionError(f"{self.source.name} is corrupt: a row group lacks rows")
            self._loaded = (index, arrays)
        return self._loaded[1]

    def _array(self, column: Any, name: str) -> NDArray[Any]:
        values = column.combine_chunks()
        if hasattr(values, "chunks"):
            values = values.chunk(0)
        nulls = values.null_count
        if hasattr(values, "flatten"):
            nulls += values.values.null_count
            values = values.flatten()
        if nulls:
            raise BadPartitionError(f"{self.source.name}: {name} has {nulls} null values")
        array = values.to_numpy(zero_copy_only=True)
        array = native(array, self.columns.dtypes[name], self.source.name)
        return array.reshape(-1, *self.columns.row_shape(name))


def _shaped(
    found: dict[str, tuple[np.dtype[Any], tuple[int, ...]]], stated: bytes | None, where: str
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The images' dtype with their shape, as stated or as the magnitudes imply."""
    dtype, (rows, *length) = found["image"]
    pixels = length[0] if length else 1
    if stated is not None:
        shape = json.loads(stated)
    else:
        bands = found["magnitude"][1][-1] if len(found["magnitude"][1]) == 2 else 1
        side = math.isqrt(pixels // max(bands, 1))
        shape = [bands, side, side]
    whole = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if not whole or len(shape) != 3 or math.prod(shape) != pixels:
        raise BadPartitionError(f"{where}: {pixels} pixels an image do not have the shape {shape}")
    return dtype, (rows, *shape)


class _Writer(Writer):
    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(columns)
        self._pa = pa = _pyarrow()
        fields = [(name, self._type(name)) for name in columns.dtypes]
        metadata = {SHAPE_KEY: json.dumps(columns.shape)}
        self._schema = pa.schema(fields, metadata=metadata)
        self._file = pa.parquet.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
        self._group_rows = max(1, _GROUP_BYTES // columns.image_bytes)

    def _type(self, name: str) -> Any:
        kind = self._pa.from_numpy_dtype(self.columns.dtypes[name])
        shape = self.columns.row_shape(name)
        return self._pa.list_(kind, math.prod(shape)) if shape else kind

    def _block(self, block: Cutouts) -> None:
        arrays = []
        for name, array in as_dict(block).items():
            flat = self._pa.array(np.ascontiguousarray(array).reshape(-1))
            length = math.prod(self.columns.row_shape(name))
            listed = self.columns.row_shape(name)
            arrays.append(self._pa.FixedSizeListArray.from_arrays(flat, length) if listed else flat)
        table = self._pa.Table.from_arrays(arrays, schema=self._schema)
        self._file.write_table(table, row_group_size=self._group_rows)

    def _finish(self) -> None:
        self._file.close()

    def abort(self) -> None:
        self._file.close()
