"""Convert Arrow columns to NumPy arrays: nested lists, tensors, text, nulls."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError, NotInstalledError
from perseid.survey.content import LONGEST_TEXT, TEXT

PIXELS = ("flux", "array")
"""Names of the field of an image struct that holds the pixels: in the Multimodal Universe, and in
data sets made with its tools."""


def pyarrow_module() -> Any:
    """Import pyarrow; raises `NotInstalledError` with the command that installs it."""
    if "pyarrow" not in sys.modules:
        # Arrow's default allocator keeps freed memory, which adds some 10 MB to a worker's peak.
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise NotInstalledError("Parquet needs pyarrow: pip install pyarrow") from error
    return pyarrow


def compute_module() -> Any:
    """Import pyarrow's compute functions, which are not needed for just reading columns."""
    pyarrow_module()
    import pyarrow.compute

    return pyarrow.compute


def item_bytes(kind: Any) -> int:
    """Bytes of a single value of a column of this Arrow type, in memory."""
    leaf, _ = unwrapped(kind)
    try:
        return max(1, int(leaf.bit_width) // 8)
    except ValueError:  # of text
        return 8


def unwrapped(kind: Any) -> tuple[Any, tuple[int | None, ...]]:
    """The type of single values, and the lengths of the lists around them (None: any length)."""
    pa = pyarrow_module()
    sizes: list[int | None] = []
    while True:
        if isinstance(kind, pa.FixedShapeTensorType):
            order = kind.permutation or range(len(kind.shape))
            if list(order) != list(range(len(kind.shape))):
                raise BadPartitionError("a tensor column with permuted axes is not read")
            return kind.value_type, (*sizes, *kind.shape)
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif pa.types.is_fixed_size_list(kind):
            sizes.append(kind.list_size)
            kind = kind.value_type
        elif is_any_list(kind):
            sizes.append(None)
            kind = kind.value_type
        else:
            return kind, tuple(sizes)


@dataclass(frozen=True)
class Field:
    """What is read of a Parquet column: the whole column, or one field of a struct."""

    column: str
    """Name of the column."""
    part: str = ""
    """Name of the field that is read, if the column is a struct; otherwise empty."""
    path: str = ""
    """Parquet's path of the values in the file, down to the field."""

    def kind(self, schema: Any) -> Any:
        """The Arrow type of its values."""
        whole = schema.field(self.column).type
        if not self.part:
            return whole
        pa = pyarrow_module()
        if pa.types.is_struct(whole):
            return whole.field(self.part).type
        return pa.list_(whole.value_type.field(self.part).type)

    def values(self, batch: Any) -> Any:
        """Its values in a batch, as an Arrow array."""
        pa = pyarrow_module()
        whole = batch.column(batch.schema.get_field_index(self.column))
        if not self.part:
            return whole
        if pa.types.is_struct(whole.type):
            (values,) = (v for v, f in zip(whole.flatten(), whole.type, strict=True)
                         if f.name == self.part)  # fmt: skip
            return values
        part = whole.values.field(self.part)
        return type(whole).from_arrays(whole.offsets, part, mask=whole.is_null())


def image_field(schema: Any, column: str, paths: Sequence[str]) -> Field:
    """Find the pixels in a column: in a struct, its ``flux``, as in the Multimodal Universe.

    `paths` are Parquet's names of all leaf columns.
    """
    pa, kind = pyarrow_module(), schema.field(column).type
    if is_any_list(kind):
        kind = kind.value_type
    if not pa.types.is_struct(kind):
        return Field(column, path=column)
    names = [kind.field(number).name for number in range(kind.num_fields)]
    part = next((name for name in names if name.lower() in PIXELS), "")
    if not part:
        return Field(column, path=column)
    inner = next(
        path for path in paths if path.startswith(f"{column}.") and part in path.split(".")
    )
    parts = inner.split(".")
    return Field(column, part, ".".join(parts[: parts.index(part, 1) + 1]))


def sibling_field(field: Field, part: str, paths: Sequence[str]) -> Field | None:
    """Another field of the same struct; None if there is none."""
    of_column = (path.split(".") for path in paths if path.startswith(f"{field.column}."))
    parts = next((parts for parts in of_column if part in parts[1:]), None)
    if parts is None or not field.part:
        return None
    return Field(field.column, part, ".".join(parts[: parts.index(part, 1) + 1]))


def bands_of_all(values: Any) -> tuple[str, ...] | None:
    """The names that every row of a column of lists has; None if rows differ; otherwise empty."""
    rows = values.drop_null()
    if not len(rows):
        return ()
    names = rows.flatten().dictionary_encode()
    count, rest = divmod(len(names), len(rows))
    # By number: a million rows of text would take seconds to compare.
    table = np.asarray(names.indices).reshape(len(rows), count) if not rest else None
    if table is None or (table != table[0]).any():
        return None
    return tuple(str(one) for one in names[:count].to_pylist())


def is_any_list(kind: Any) -> bool:
    """Whether an Arrow type is a list of any length."""
    types = pyarrow_module().types
    return bool(types.is_list(kind) or types.is_large_list(kind))


def is_read(kind: Any) -> bool:
    """Whether values of an Arrow type can be read."""
    try:
        numpy_type(unwrapped(kind)[0], "")
    except BadPartitionError:
        return False
    return True


def numpy_type(leaf: Any, place: str) -> np.dtype[Any]:
    """The NumPy dtype of an Arrow type; raises `BadPartitionError`, naming `place`."""
    types = pyarrow_module().types
    if types.is_string(leaf) or types.is_large_string(leaf) or types.is_string_view(leaf):
        return TEXT
    if _is_binary(leaf):
        return TEXT
    if types.is_boolean(leaf) or types.is_integer(leaf) or types.is_floating(leaf):
        dtype: np.dtype[Any] = np.dtype(leaf.to_pandas_dtype())
        return dtype
    raise BadPartitionError(
        f"{place} is of the Parquet type {leaf}, which is not read: write numbers, text, or lists "
        "of numbers"
    )


def _is_binary(kind: Any) -> bool:
    """Whether values are bytes, which is what pandas writes for NumPy's text of bytes."""
    types = pyarrow_module().types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def to_array(column: Any, place: str) -> NDArray[Any]:
    """Convert a column to an array, rows first; a masked array if some values are null."""
    pa = pyarrow_module()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if not hasattr(column, "flatten") or pa.types.is_struct(column.type):
        return _leaf(column, place)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(column.type):
        # `flatten` would skip the values below null lists, although they are stored
        size = column.type.list_size
        inner = column.values.slice(column.offset * size, len(column) * size)
        return _rows_of(to_array(inner, place), len(column), valid, valid_only=False)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)[valid]
    if len(lengths) and (lengths != lengths[0]).any():
        raise BadPartitionError(
            f"{place} has lists of {int(lengths.min())} to {int(lengths.max())} values: all must "
            "be equally long"
        )
    return _rows_of(to_array(column.flatten(), place), len(column), valid, valid_only=True)


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
    missing = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    if pa.types.is_dictionary(column.type):
        _check_texts(column.dictionary, place)
        column = column.dictionary_decode()
    if _is_binary(column.type):
        column = _decoded(column, place)
    if pa.types.is_string_view(column.type):  # pyarrow computes little on these
        column = column.cast(pa.large_string())
    if numpy_type(column.type, place) == TEXT:
        _check_texts(column, place)
        values = np.array([text or "" for text in column.to_pylist()], TEXT)
    elif pa.types.is_boolean(column.type):
        values = column.fill_null(False).to_numpy(zero_copy_only=False)
    else:
        dtype = np.dtype(column.type.to_pandas_dtype())
        buffer = column.buffers()[1]
        values = np.frombuffer(buffer, dtype) if buffer else np.empty(0, dtype)
        values = values[column.offset : column.offset + len(column)]
    return values if missing is None else np.ma.masked_array(values, mask=missing)


def _decoded(column: Any, place: str) -> Any:
    """Convert a column of bytes to text; raises `BadPartitionError`, which names `place`, for bytes
    that are not UTF-8."""
    pa = pyarrow_module()
    try:
        return column.cast(pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise BadPartitionError(
            f"{place} has bytes that are not UTF-8 text: write the column as text or numbers"
        ) from error


def _check_texts(column: Any, place: str) -> None:
    import pyarrow.compute as compute

    if numpy_type(column.type, place) != TEXT:
        return
    longest = compute.max(compute.utf8_length(column)).as_py() or 0
    if longest > LONGEST_TEXT:
        raise BadPartitionError(
            f"{place} has a text of {longest:,} characters; {LONGEST_TEXT} are read at most"
        )
