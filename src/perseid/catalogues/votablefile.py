"""Export to VOTable, written as a stream in two passes with one batch in memory.

Rows are in BINARY2: each begins with one bit per column that says whether its value is missing.
VOTable has no unsigned 64-bit integers; they are written as text, which is exact.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from perseid.catalogues.measures import Measure, is_text, measured
from perseid.catalogues.selection import Selection
from perseid.errors import BadInputError
from perseid.pipeline.voparquet import TEXT, VOField, field_xml
from perseid.plaintext import one_line, option
from perseid.survey.formats.arrow import pyarrow_module, unwrapped

_TYPES = {
    "bool": ("boolean", "u1"), "uint8": ("unsignedByte", "u1"), "int8": ("short", ">i2"),
    "int16": ("short", ">i2"), "uint16": ("int", ">i4"), "int32": ("int", ">i4"),
    "uint32": ("long", ">i8"), "int64": ("long", ">i8"), "halffloat": ("float", ">f4"),
    "float": ("float", ">f4"), "double": ("double", ">f8"),
}  # fmt: skip
"""By the name of an Arrow type, VOTable's datatype and the NumPy type that is stored."""
_LINE = 57
"""Number of bytes in a line of base64, as `base64.encodebytes` writes them."""
_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">
 <RESOURCE>
  <TABLE nrows="{rows}">
{fields}   <DATA>
    <BINARY2>
     <STREAM encoding="base64">
"""
_TAIL = """     </STREAM>
    </BINARY2>
   </DATA>
  </TABLE>
 </RESOURCE>
</VOTABLE>
"""


@dataclass(frozen=True)
class _VOColumn:
    """Layout of one column in the file."""

    datatype: str
    stored: str
    """NumPy's name of the stored type; empty for text."""
    size: int | None
    """Bytes of a text, or number of elements of a list; None for single numbers."""

    @property
    def arraysize(self) -> str:
        """VOTable's ``arraysize``: characters of a text, or elements of a list."""
        if self.size is None:
            return ""
        return str(self.size // 2 if self.datatype == TEXT else self.size)

    @property
    def dtype(self) -> Any:
        """NumPy type of the stored values."""
        if not self.stored:
            return np.dtype((np.bytes_, self.size or 2))
        return np.dtype((self.stored, self.size) if self.size is not None else self.stored)


def write_votable(selection: Selection, path: Path) -> int:
    """Write the file and return the number of rows.

    Raises
    ------
    BadInputError
        A column has values that cannot be written, such as lists of different lengths.
    """
    rows, found = measured(selection, _utf16, "VOTable")
    columns = {
        name: _column(name, selection.schema.field(name).type, found[name])
        for name in selection.columns
    }
    # One bit per column, in whole bytes.
    flags = -(-len(columns) // 8)
    dtype = np.dtype([("flags", "u1", (flags,)), *((f"c{place}", column.dtype)
                     for place, column in enumerate(columns.values()))])  # fmt: skip
    with open(path, "wb") as file:
        file.write(_HEAD.format(rows=rows, fields=_fields(selection, columns)).encode())
        stream = _Base64(file)
        for table in selection.batches():
            stored = np.zeros(table.num_rows, dtype)
            # Padded to whole bytes, as packbits needs it for rows.
            missing = np.zeros((table.num_rows, flags * 8), bool)
            for place, (name, column) in enumerate(columns.items()):
                values = table[name].combine_chunks()
                missing[:, place] = np.asarray(values.is_null())
                stored[f"c{place}"] = _stored(values, column)
            stored["flags"] = np.packbits(missing, axis=1)
            stream.write(stored.tobytes())
        stream.close()
        file.write(_TAIL.encode())
    return rows


class _Base64:
    """Writes full lines of base64 from data of any size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._rest = file, b""

    def write(self, data: bytes) -> None:
        data = self._rest + data
        # Only whole lines: a group of three bytes must not be split by padding.
        whole = len(data) // _LINE * _LINE
        self._file.write(base64.encodebytes(data[:whole]))
        self._rest = data[whole:]

    def close(self) -> None:
        self._file.write(base64.encodebytes(self._rest))


def _fields(selection: Selection, columns: dict[str, _VOColumn]) -> str:
    return "".join(
        field_xml(
            VOField(
                name,
                column.datatype,
                column.arraysize,
                selection.meanings[name].unit,
                selection.meanings[name].ucd,
                selection.meanings[name].description,
            )
        )
        for name, column in columns.items()
    )


def _column(name: str, kind: Any, found: Measure) -> _VOColumn:
    leaf, lists = unwrapped(kind)
    if is_text(leaf):
        return _VOColumn(TEXT, "", max(2, found.size or 2))
    if str(leaf) == "uint64" and not lists:
        return _VOColumn("char", "", 20)  # 20 digits hold any 64-bit integer
    if str(leaf) not in _TYPES:
        raise BadInputError(
            f"the column {one_line(name)} is of type {kind}, which VOTable does not have: leave it "
            f"out by {option('columns')}"
        )
    datatype, stored = _TYPES[str(leaf)]
    return _VOColumn(datatype, stored, (found.size or 1) if lists else None)


def _stored(column: Any, to: _VOColumn) -> NDArray[Any]:
    """Values as they are stored in the file; missing values are arbitrary."""
    pa = pyarrow_module()
    leaf, lists = unwrapped(column.type)
    if to.datatype == "char":
        return np.asarray(column.cast(pa.string()).fill_null("").to_pylist(), np.bytes_)
    if not to.stored:
        texts = [_utf16(text or "") for text in column.to_pylist()]
        return np.asarray(texts, np.dtype((np.bytes_, to.size or 2)))
    if lists:
        flat = column.fill_null([0] * (to.size or 1)) if column.null_count else column
        return np.asarray(flat.flatten().to_numpy(zero_copy_only=False)).reshape(-1, to.size or 1)
    if column.null_count:
        column = column.fill_null(False if str(leaf) == "bool" else 0)
    values = column.to_numpy(zero_copy_only=False)
    return np.where(values, ord("T"), ord("F")) if str(leaf) == "bool" else np.asarray(values)


def _utf16(text: str) -> bytes:
    # VOTable's unicodeChar is big-endian UTF-16 (UCS-2).
    return text.encode("utf-16-be", "backslashreplace")
