"""``.safetensors``: a JSON header, then the raw columns.

The layout is the public one (https://huggingface.co/docs/safetensors): eight bytes of header
length, the header, the buffer without gaps. We write the small columns first, so that a single
request for the head of an object fetches everything but the images.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError, PerseidError
from perseid.jsontext import parse_json
from perseid.plaintext import counted
from perseid.survey.bytesource import ByteSource
from perseid.survey.column_spec import described
from perseid.survey.file_columns import Columns
from perseid.survey.file_table import ColumnWriter, RawArray, RawTable, Table, Writer
from perseid.survey.picking import pick_columns, unused_names
from perseid.survey.read_options import PLAIN, ReadOptions

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}
_LONGEST_HEADER = 1 << 20


def open_table(source: ByteSource, options: ReadOptions = PLAIN) -> Table:
    """Read the header; see `perseid.survey.formats`."""
    where = source.name
    if source.size < 8:
        raise BadPartitionError(f"{where} is truncated: {counted(source.size, 'byte')}")
    (length,) = struct.unpack("<Q", source.read(0, 8))
    if length > min(_LONGEST_HEADER, source.size - 8):
        raise BadPartitionError(f"{where} is corrupt: a header of {length} bytes")
    try:
        header = parse_json(bytes(source.read(8, length)))
        sources = pick_columns(where, header, options)
        arrays = {
            name: _raw(header[key], 8 + length, f"{where}: {name}") for name, key in sources.items()
        }
    except PerseidError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadPartitionError(
            f"{where} is corrupt: its header cannot be read ({error})"
        ) from error
    table = RawTable(source, arrays, sources=sources, options=options)
    names = unused_names(header, ["__metadata__"])
    table.unused = unused_names(names, sources.values())
    if options.describe:
        every = {name: _raw(header[name], 8 + length, f"{where}: {name}") for name in names}
        table.described = tuple(described(n, a.dtype, a.shape) for n, a in every.items())
    return table


def create(path: Path, columns: Columns) -> Writer:
    """Begin a file on disk; see `perseid.survey.formats`."""
    return _Writer(path, columns)


def _raw(spec: dict[str, Any], base: int, where: str) -> RawArray:
    if spec["dtype"] not in _DTYPES:
        raise BadPartitionError(
            f"{where} has dtype {spec['dtype']}, which is not read: save it as F32 (`x.float()`)"
        )
    begin, end = spec["data_offsets"]
    numbers = [*spec["shape"], begin, end]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"sizes {numbers}")
    array = RawArray(base + begin, np.dtype(_DTYPES[spec["dtype"]]), tuple(spec["shape"]))
    if array.num_bytes != end - begin:
        raise BadPartitionError(f"{where} has {end - begin} bytes for {array.dtype} {array.shape}")
    return array


class _Writer(ColumnWriter):
    format = ".safetensors"

    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(columns)
        order = sorted(columns.small, key=lambda name: -columns.dtypes[name].itemsize)
        header: dict[str, Any] = {"__metadata__": {"format": "perseid cutouts 1"}}
        self._starts, end = {}, 0
        for name in (*order, "image"):
            shape = (columns.rows, *columns.row_shape(name))
            dtype = columns.dtypes[name]
            array = RawArray(end, dtype, shape)
            self._starts[name], end = end, end + array.num_bytes
            offsets = [array.start, end]
            header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._base = 8 + len(text)
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close or abort
        self._file.write(struct.pack("<Q", len(text)) + text)
        self._file.seek(self._base + self._starts["image"])

    def _image(self, data: memoryview) -> None:
        self._file.write(data)

    def _small(self, arrays: dict[str, NDArray[Any]]) -> None:
        for name, array in arrays.items():
            self._file.seek(self._base + self._starts[name])
            self._file.write(array.tobytes())
        self._file.close()

    def abort(self) -> None:
        self._file.close()
