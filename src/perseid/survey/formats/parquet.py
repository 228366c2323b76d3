"""Parquet (``.parquet``): one row per object; images and magnitudes are fixed-size lists.

The images' shape is in the file's metadata under ``perseid.image_shape`` (JSON); without it, the
number of magnitudes says how many bands there are and the images are taken to be square. Row groups
are small, so that reading one needs little memory; pages have checksums.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError, PerseidError
from perseid.jsontext import parse_json
from perseid.plaintext import counted
from perseid.survey.bytesource import LARGEST_READ, ByteSource, SourceFile, corrupt
from perseid.survey.column_spec import ColumnSpec, described
from perseid.survey.content import TEXT, join
from perseid.survey.cutouts import Cutouts
from perseid.survey.file_columns import Columns, as_cutouts, as_dict, check_columns
from perseid.survey.file_table import Table, Writer
from perseid.survey.formats.arrow import (
    Field,
    image_field,
    is_read,
    item_bytes,
    numpy_type,
    pyarrow_module,
    sibling_field,
    unwrapped,
)
from perseid.survey.formats.arrow_values import bands_of_all, to_array
from perseid.survey.picking import pick_columns, unused_names, without_strangers
from perseid.survey.read_options import PLAIN, ReadOptions
from perseid.survey.votable_header import votable_fields, with_fields

SHAPE_KEY = b"perseid.image_shape"
_GROUP_BYTES = 8 << 20
"""Bytes of pixels per row group that we write."""
_FETCHED_BYTES, _MAPPED_BYTES = 8 << 20, 1 << 20
"""Bytes of a column chunk to read at once: by a request, or from a memory map."""
_BATCH_BYTES, _MOST_BATCH_ROWS = 2 << 20, 4096
"""Bytes of pixels, and most rows, to decode at once."""
ADVISED_GROUP = 64 << 20
"""Largest row group, bytes, for which a worker needs no more memory than for other formats. Most
writers make pages of 1 MB, which are read one by one, but a page may be as large as its row
group."""
_WORKER_MB = 250
_SMALL_CHUNK, _MOST_RATIO = 64 << 20, 1000
"""A column chunk above this size (bytes) and compression ratio is refused, because one of its pages
may be as large as the whole chunk."""
_ERRORS = (OSError, ValueError, TypeError, KeyError, NotImplementedError)
"""Exceptions that pyarrow raises for unreadable files."""


def open_table(source: ByteSource, options: ReadOptions = PLAIN) -> Table:
    """Read the footer; see `perseid.survey.formats`."""
    pa = pyarrow_module()
    try:
        file = pa.parquet.ParquetFile(
            pa.PythonFile(SourceFile(source), mode="r"),
            page_checksum_verification=True,
            buffer_size=_MAPPED_BYTES if source.mapped else _FETCHED_BYTES,
            pre_buffer=False,
        )
        return _Groups(source, file, options)
    except PerseidError:
        raise
    except _ERRORS as error:
        raise _sentence(source, error) from error


def create(path: Path, columns: Columns) -> Writer:
    """Begin a file on disk; see `perseid.survey.formats`."""
    return _Writer(path, columns)


class _Groups(Table):
    """The row groups of a file, decoded one batch of rows at a time."""

    def __init__(self, source: ByteSource, file: Any, options: ReadOptions) -> None:
        schema, metadata = file.schema_arrow, file.metadata
        paths = [file.schema.column(number).path for number in range(len(file.schema))]
        named = _named(source.name, schema, options, paths)
        self._fields = {
            name: image_field(schema, column, paths)
            if name == "image"
            else Field(column, path=column)
            for name, column in named.items()
        }
        self._file, self._rows, self._paths = file, metadata.num_rows, paths
        self.remark = _remark(_check_groups(source.name, metadata, schema, self._fields.values()))
        found = {
            name: self._layout(name, field.kind(schema), source.name)
            for name, field in self._fields.items()
        }
        for name, field in self._fields.items():
            _check_lengths(source.name, metadata, field.path, math.prod(found[name][1][1:]))
        if "image" in found and len(found["image"][1]) == 2:
            found["image"] = _shaped(found, (schema.metadata or {}).get(SHAPE_KEY), source.name)
        super().__init__(source, check_columns(source.name, found, named, options))
        self._fields = {name: self._fields[name] for name in self.read_names}
        self.unused = unused_names(schema.names, (f.column for f in self._fields.values()))
        if options.describe:
            fields = votable_fields(schema.metadata)
            self.described = with_fields(_described(schema, paths), fields)
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        self._ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
        self._at = -1
        """First row that has not been decoded yet."""
        self._batches: Iterator[Any] = iter(())
        self._batch: dict[str, NDArray[Any]] = {}
        self._first = 0
        """Row of the file where `_batch` begins."""

    def read(self, start: int, stop: int) -> Cutouts:
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in self._fields}
        at = start
        while at < stop:
            self._go_to(at)
            rows = slice(at - self._first, min(stop, self._at) - self._first)
            for name, column in self._batch.items():
                parts[name].append(column[rows])
            at = min(stop, self._at)
        return as_cutouts(
            {name: join(arrays, *self.columns.kept(name)) for name, arrays in parts.items()}
        )

    def _go_to(self, row: int) -> None:
        """Decode batches until one contains `row`, if necessary from the start of the row's
        group."""
        if self._first <= row < self._at:
            return
        group = int(np.searchsorted(self._ends, row, side="right"))
        begin = int(self._ends[group - 1]) if group else 0
        # Continuing would not lead to this row, or only through other groups: start at its own
        # group.
        if not max(begin, 0) <= self._at <= row:
            self._batches, self._at = self._decode(group), begin
        while self._at <= row:
            self._first = self._at
            try:
                batch = next(self._batches)
                self._batch = {n: self._column(batch, n, f) for n, f in self._fields.items()}
            except StopIteration:
                raise BadPartitionError(
                    f"{self.source.name} is corrupt: a row group lacks rows"
                ) from None
            except PerseidError:
                raise
            except _ERRORS as error:
                raise _sentence(self.source, error) from error
            self._at += batch.num_rows

    def _decode(self, group: int) -> Iterator[Any]:
        rows = max(1, min(_MOST_BATCH_ROWS, _BATCH_BYTES // self.columns.image_bytes))
        return iter(
            self._file.iter_batches(
                batch_size=rows,
                row_groups=list(range(group, len(self._ends))),
                columns=[field.path for field in self._fields.values()],
                # Each rank has one thread; pyarrow's own pool would take the cores of other ranks.
                use_threads=False,
            )
        )

    def _layout(self, name: str, kind: Any, where: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Dtype and shape of a column; variable-length lists are taken to be as long as the first
        one."""
        try:
            leaf, sizes = unwrapped(kind)
        except BadPartitionError as error:
            raise BadPartitionError(f"{where}: {name}: {error}") from error
        if None in sizes:
            sizes = self._lengths(name, len(sizes))
        return numpy_type(leaf, f"{where}: {name}"), (self._rows, *map(int, sizes))  # type: ignore[arg-type]

    def _lengths(self, name: str, depth: int) -> tuple[int, ...]:
        for batch in self._file.iter_batches(
            batch_size=1, columns=[self._fields[name].path], use_threads=False
        ):
            lengths: list[int] = []
            values = self._fields[name].values(batch)
            # Not as Python objects: one list of a gigabyte would take sixteen.
            while len(lengths) < depth:
                entry = next((entry for entry in values if entry.is_valid), None)
                values = getattr(getattr(entry, "value", entry), "values", None)
                if values is None:
                    break
                lengths.append(len(values))
            if len(lengths) == depth:
                return tuple(lengths)
        return (1,) * depth  # there are no rows, or none has a value

    @cached_property
    def bands(self) -> tuple[str, ...]:
        """Band names, if the image is a struct that has them."""
        image = self._fields.get("image")
        band = sibling_field(image, "band", self._paths) if image is not None else None
        if band is None:
            return ()
        found: tuple[str, ...] = ()
        for batch in self._file.iter_batches(
            batch_size=_MOST_BATCH_ROWS, columns=[band.path], use_threads=False
        ):
            here = bands_of_all(band.values(batch))
            found = found or here or ()
            if here is None or (here and here != found):
                raise BadPartitionError(
                    f"{self.source.name}: its rows have different bands, or in different orders: "
                    "write rows of the same bands into one file"
                )
        return found

    def _column(self, batch: Any, name: str, field: Field) -> NDArray[Any]:
        values = to_array(field.values(batch), f"{self.source.name}: {field.path}")
        return self.columns.column(name, values, self.source.name)


def _named(where: str, schema: Any, options: ReadOptions, paths: Sequence[str]) -> dict[str, str]:
    """The columns that are read, by the names that `pick_columns` gives them."""
    found = without_strangers(
        pick_columns(where, schema.names, options),
        lambda column: is_read(image_field(schema, column, paths).kind(schema)),
    )
    is_null = pyarrow_module().types.is_null  # a column of type null has no values
    return {
        name: column for name, column in found.items() if not is_null(schema.field(column).type)
    }


def _remark(largest: int) -> str:
    """The `Table.remark` of a file whose largest row group has this many bytes."""
    if largest <= ADVISED_GROUP:
        return ""
    return (
        f"row groups of up to {largest >> 20:,} MB, of which a worker may need as much memory on "
        f"top of {_WORKER_MB} MB: write row groups of at most {ADVISED_GROUP >> 20} MB "
        "(`row_group_size`)"
    )


def _described(schema: Any, paths: Sequence[str]) -> Iterator[ColumnSpec]:
    """Describe every column of the file, using the metadata of its field."""
    for field in schema:
        kind = image_field(schema, field.name, paths).kind(schema)
        if not is_read(kind) or pyarrow_module().types.is_null(kind):
            yield ColumnSpec(field.name, field.name, kind="")
            continue
        leaf, sizes = unwrapped(kind)
        about = {key.decode(): text.decode() for key, text in (field.metadata or {}).items()}
        yield described(
            field.name,
            numpy_type(leaf, field.name),
            (0, *(size or 0 for size in sizes)),
            unit=about.get("unit"),
            ucd=about.get("ucd"),
            description=about.get("description"),
        )


def _check_groups(where: str, metadata: Any, schema: Any, fields: Iterable[Field]) -> int:
    """Bytes of the largest row group, stored or decoded; refuse one that needs too much memory.

    Both sizes matter: a constant column of a gigabyte takes only a few bytes in the file.
    """
    wanted = {field.path: item_bytes(field.kind(schema)) for field in fields}
    largest = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        stored = decoded = 0
        for number in range(group.num_columns):
            chunk = group.column(number)
            size = next((n for path, n in wanted.items() if _lies_in(chunk, path)), 0)
            if size:
                decoded += chunk.num_values * size
                stored = max(stored, chunk.total_uncompressed_size)
                blown = stored > _SMALL_CHUNK and stored > _MOST_RATIO * chunk.total_compressed_size
                stored = LARGEST_READ + 1 if blown else stored
        largest = max(largest, stored, decoded)
        if largest > LARGEST_READ:
            raise BadPartitionError(
                f"{where}: its row group {index + 1} of {counted(group.num_rows, 'row')} takes "
                f"{max(stored, decoded) >> 20:,} MB of memory, and at most {LARGEST_READ >> 20:,} "
                "MB are read: write row groups of at most 64 MB (`row_group_size`)"
            )
    return largest


def _check_lengths(where: str, metadata: Any, path: str, size: int) -> None:
    """Refuse a column whose rows do not all have `size` values, as far as the footer tells."""
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        for chunk in map(group.column, range(group.num_columns)):
            more = chunk.num_values - group.num_rows * size if _lies_in(chunk, path) else 0
            about = chunk.statistics if more < 0 else None
            # A null list counts as one value, so fewer values are no proof if there are nulls.
            if more > 0 or (about and about.has_null_count and not about.null_count):
                raise BadPartitionError(
                    f"{where}: {path} has lists of other lengths than the first, of {size:,} "
                    f"values, in row group {index + 1}: all must be equally long"
                )


def _lies_in(chunk: Any, path: str) -> bool:
    return bool(chunk.path_in_schema == path or chunk.path_in_schema.startswith(f"{path}."))


def _sentence(source: ByteSource, error: Exception) -> PerseidError:
    """The error for a pyarrow exception; a file with an unsupported feature is not called
    corrupt."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, NotImplementedError) or "encrypt" in first.lower():
        return BadPartitionError(
            f"{source.name} uses a feature of Parquet that is not read ({first}): write it again, "
            "compressed by zstd or snappy"
        )
    return corrupt(source, "Parquet", error)


def _shaped(
    found: dict[str, tuple[np.dtype[Any], tuple[int, ...]]], stated: bytes | None, where: str
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The images' dtype and shape, from the metadata or else from the number of magnitudes."""
    dtype, (rows, pixels) = found["image"]
    if stated is not None:
        shape = parse_json(stated)
    elif "magnitude" not in found:
        raise BadPartitionError(
            f"{where} does not say what shape its images of {counted(pixels, 'pixel')} have: "
            "write them as "
            f"nested lists or tensors, or [bands, height, width] as JSON into the metadata "
            f"{SHAPE_KEY.decode()}"
        )
    else:
        bands = found["magnitude"][1][-1] if len(found["magnitude"][1]) == 2 else 1
        side = math.isqrt(pixels // max(bands, 1))
        shape = [bands, side, side]
    whole = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if not whole or len(shape) != 3 or math.prod(shape) != pixels:
        raise BadPartitionError(
            f"{where}: {counted(pixels, 'pixel')} an image do not have the shape {shape}"
        )
    return dtype, (rows, *shape)


class _Writer(Writer):
    format = ".parquet"
    takes_text = takes_missing = True

    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(columns)
        self._pa = pa = pyarrow_module()
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
        dtype = self.columns.dtypes[name]
        kind = self._pa.string() if dtype == TEXT else self._pa.from_numpy_dtype(dtype)
        shape = self.columns.row_shape(name)
        return self._pa.list_(kind, math.prod(shape)) if shape else kind

    def _block(self, block: Cutouts) -> None:
        arrays = []
        for name, array in as_dict(block).items():
            values, mask = np.ma.getdata(array), np.ma.getmask(array)
            flat = self._pa.array(
                np.ascontiguousarray(values).reshape(-1),
                type=self._schema.field(name).type if values.dtype.kind == "U" else None,
                mask=None if mask is np.ma.nomask else mask,
            )
            length = math.prod(self.columns.row_shape(name))
            listed = self.columns.row_shape(name)
            arrays.append(self._pa.FixedSizeListArray.from_arrays(flat, length) if listed else flat)
        table = self._pa.Table.from_arrays(arrays, schema=self._schema)
        self._file.write_table(table, row_group_size=self._group_rows)

    def _finish(self) -> None:
        self._file.close()

    def abort(self) -> None:
        self._file.close()
