"""``.pt``: a pickled ``torch.utils.data.TensorDataset``, read and written without torch.

Its tensors are (image, magnitude, redshift), as published. Our other columns (`object_id`, `label`)
are attributes of the dataset next to ``tensors``, so existing scripts that unpack three tensors
keep working. A survey without redshifts gets NaN and the attribute ``redshift_known = False``, one
without magnitudes likewise ``magnitude_known = False``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError
from perseid.survey.bytesource import ByteSource
from perseid.survey.content import LONGEST_TEXT, convert
from perseid.survey.file_columns import Columns
from perseid.survey.file_table import ColumnWriter, RawArray, RawTable, Table, Writer
from perseid.survey.read_options import PLAIN, ReadOptions
from perseid.survey.safe_pickle import Placeholder
from perseid.survey.torchfile import TENSOR_DATASET, LazyTensor, load_torch
from perseid.survey.torchwrite import TorchZip

_TENSORS = ("image", "magnitude", "redshift")
_ATTRIBUTES = ("object_id", "label")


def open_table(source: ByteSource, options: ReadOptions = PLAIN) -> Table:
    """Read the layout of a dataset; see `perseid.survey.formats`."""
    if options.names:
        raise BadPartitionError(
            f"{source.name}: the tensors of a .pt file have no names, so columns cannot be named"
        )
    found = _tensors(load_torch(source), source.name)
    if not options.reads_image:
        del found["image"]
    tensors = {n: value for n, value in found.items() if isinstance(value, LazyTensor)}
    lists = {n: value for n, value in found.items() if not isinstance(value, LazyTensor)}
    arrays = {n: _raw(n, tensor, source.name) for n, tensor in tensors.items()}
    others = {n: _array(n, v, source.name) for n, v in lists.items()}
    return RawTable(source, arrays, others, options=options)


def create(path: Path, columns: Columns) -> Writer:
    """Begin a dataset on disk; see `perseid.survey.formats`."""
    return _Writer(path, columns)


def _tensors(dataset: Any, where: str) -> dict[str, LazyTensor | list[Any]]:
    if not isinstance(dataset, Placeholder) or dataset.kind != TENSOR_DATASET:
        raise BadPartitionError(f"{where} holds a {_called(dataset)}, not a TensorDataset")
    state = dataset.state if isinstance(dataset.state, dict) else {}
    tensors = state.get("tensors")
    if not isinstance(tensors, (tuple, list)) or len(tensors) not in (1, 2, 3):
        count = len(tensors) if isinstance(tensors, (tuple, list)) else "no"
        raise BadPartitionError(
            f"{where} has {count} tensors; a partition has image, magnitude and redshift"
        )
    found = dict(zip(_TENSORS, tensors, strict=False))
    found |= {name: state[name] for name in _ATTRIBUTES if name in state}
    for name in ("magnitude", "redshift"):
        if state.get(f"{name}_known") is False:
            found.pop(name, None)
    for name, tensor in found.items():
        plain = name in _ATTRIBUTES and isinstance(tensor, (list, tuple))
        if not isinstance(tensor, LazyTensor) and not plain:
            raise BadPartitionError(f"{where}: {name} is a {_called(tensor)}, not a tensor")
    return cast(dict[str, LazyTensor | list[Any]], found)


def _array(name: str, values: Sequence[Any], where: str) -> NDArray[Any]:
    """Convert a plain list of ids or labels, needed for text, for which torch has no tensor."""
    missing = np.array([value is None for value in values], np.bool_)
    known = [value for value in values if value is not None]
    kinds = {type(value) for value in known}
    if len(kinds) > 1 or not kinds <= {str, int}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise BadPartitionError(f"{where}: {name} is a list of {names}, not of text or of integers")
    if kinds == {str} and max(map(len, known)) > LONGEST_TEXT:
        raise BadPartitionError(f"{where}: {name} has a text of over {LONGEST_TEXT} characters")
    blank: Any = "" if kinds == {str} else 0
    try:
        array = np.array([blank if value is None else value for value in values])
    except OverflowError as error:
        raise BadPartitionError(f"{where}: {name} has an integer beyond 64 bits") from error
    return np.ma.masked_array(array, mask=missing) if missing.any() else array


def _raw(name: str, tensor: LazyTensor, where: str) -> RawArray:
    if not tensor.contiguous:
        raise BadPartitionError(
            f"{where}: {name} is not contiguous (strides {tensor.stride}); "
            "call .contiguous() before saving"
        )
    shape = tensor.shape
    if tensor.storage.kind == "BFloat16Storage":
        raise BadPartitionError(f"{where}: {name} is bfloat16: call .float() before saving")
    array = RawArray(tensor.start, tensor.storage.dtype, shape)
    entry = tensor.storage.entry
    if tensor.offset == 0 and array.num_bytes == entry.size:
        return replace(array, crc=entry.crc)
    return array  # a part of a larger storage has no checksum of its own


def _called(value: Any) -> str:
    return str(value.kind) if isinstance(value, Placeholder) else type(value).__name__


class _Writer(ColumnWriter):
    format = ".pt"

    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(columns)
        dtypes = dict(columns.dtypes)
        absent = [name for name in ("magnitude", "redshift") if name not in dtypes]
        dtypes |= dict.fromkeys(absent, np.dtype(np.float32))
        if dtypes.get("object_id") == np.uint64:
            dtypes["object_id"] = np.dtype(np.int64)  # torch has only limited support for uint64
        specs = {
            name: (dtypes[name], (columns.rows, *columns.row_shape(name)))
            for name in (*_TENSORS, *_ATTRIBUTES)
            if name in dtypes
        }
        more = {f"{name}_known": False for name in absent}
        self._zip = TorchZip(path, specs, _TENSORS, more)
        self._file = self._zip.begin("image")

    def _image(self, data: memoryview) -> None:
        self._file.write(data)

    def _small(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._file.close()
        for name in ("magnitude", "redshift"):
            shape = (self.columns.rows, *self.columns.row_shape(name))
            arrays.setdefault(name, np.full(shape, np.nan, np.float32))
        for name in self._zip.specs:
            if name != "image":
                array = convert(name, arrays[name], self._zip.specs[name][0], self.format)
                with self._zip.begin(name) as file:
                    file.write(array.tobytes())
        self._zip.close()

    def abort(self) -> None:
        self._zip.abort()
