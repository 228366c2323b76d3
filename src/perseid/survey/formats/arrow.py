"""Arrow columns: their types, and which field of a struct holds the pixels."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError
from perseid.libraries import library_error
from perseid.survey.content import TEXT

PIXELS = ("flux", "array")
"""Names of the field of an image struct that holds the pixels: in the Multimodal Universe, and in
data sets made with its tools."""

_NUMPY_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}
"""NumPy's names for Arrow types; all other types have the same name in both. (`to_pandas_dtype`,
like `to_numpy`, imports pandas if it is installed, which costs a worker memory.)"""


def pyarrow_module() -> Any:
    """Import pyarrow; raises `NotInstalledError` with the command that installs it."""
    if "pyarrow" not in sys.modules:
        # Arrow's default allocator keeps freed memory, which adds some 10 MB to a worker's peak.
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise library_error(error, "Parquet needs pyarrow: pip install pyarrow") from error
    return pyarrow


def compute_module() -> Any:
    """Import pyarrow's compute functions, which are not needed for just reading columns."""
    pyarrow_module()
    import pyarrow.compute

    return pyarrow.compute


def item_bytes(kind: Any) -> int:
    """Bytes of a single value of a column of this Arrow type, in memory."""
    try:
        return max(1, int(unwrapped(kind)[0].bit_width) // 8)
    except (ValueError, BadPartitionError):  # of text, or of what is refused later
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
        kind = pa.list_ if pa.types.is_list(whole.type) else pa.large_list
        nulls, offsets = whole.buffers()[:2]
        return pa.Array.from_buffers(
            kind(part.type), len(whole), [nulls, offsets], offset=whole.offset, children=[part]
        )


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
    if is_binary(leaf):
        return TEXT
    if types.is_boolean(leaf) or types.is_integer(leaf) or types.is_floating(leaf):
        return np.dtype(_NUMPY_NAMES.get(str(leaf), str(leaf)))
    raise BadPartitionError(
        f"{place} is of the Parquet type {leaf}, which is not read: write numbers, text, or lists "
        "of numbers"
    )


def is_binary(kind: Any) -> bool:
    """Whether values are bytes, which is what pandas writes for NumPy's text of bytes."""
    types = pyarrow_module().types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def validity(column: Any) -> NDArray[np.bool_]:
    """Which values (n,) of an Arrow array are not null."""
    bitmap = column.buffers()[0] if column.null_count else None
    if bitmap is None:
        return np.ones(len(column), np.bool_)
    return bits(bitmap, column.offset, len(column))


def bits(buffer: Any, offset: int, length: int) -> NDArray[np.bool_]:
    """The bits (length,) of an Arrow bitmap from number `offset`."""
    first = offset // 8
    packed = np.frombuffer(buffer, np.uint8)[first : (offset + length + 7) // 8]
    return np.unpackbits(packed, bitorder="little")[offset - 8 * first :][:length].view(np.bool_)
