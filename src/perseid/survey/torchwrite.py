"""Write what ``torch.load`` reads as a ``TensorDataset``, without torch.

The pickle is protocol 2, its few opcodes written by hand: the class, its state, and for each
tensor the call of ``torch._utils._rebuild_tensor_v2`` on a storage of the archive, as
``torch.save`` writes them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from perseid.survey.zipwrite import AlignedZip

_STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
}

_ROOT = "archive"
"""Top folder in the archive. Torch accepts any name; a fixed one gives the same bytes
everywhere."""

Spec = tuple[np.dtype[Any], tuple[int, ...]]


class TorchZip:
    """Writes a ``.pt`` file: first the pickle, then each tensor's bytes as they arrive.

    Parameters
    ----------
    path
        The file.
    specs
        Dtype (float32, float64, int64 or int32) and shape of each tensor, in file order.
    tensors
        Which of them form the dataset's ``tensors``; the others become attributes of their own
        name.
    more
        Further attributes: None, True or False.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, Spec],
        tensors: Sequence[str],
        more: Mapping[str, bool | None],
    ) -> None:
        self.specs = dict(specs)
        self._zip = AlignedZip(path)
        self._zip.add(f"{_ROOT}/data.pkl", dataset_pickle(self.specs, tensors, more))
        self._zip.add(f"{_ROOT}/byteorder", b"little")

    def begin(self, name: str) -> IO[bytes]:
        """Open the storage of one tensor for writing; little-endian, row-major."""
        dtype, shape = self.specs[name]
        key = list(self.specs).index(name)
        return self._zip.open(f"{_ROOT}/data/{key}", math.prod(shape) * dtype.itemsize)

    def close(self) -> None:
        """Write the version entry and finish the archive."""
        self._zip.add(f"{_ROOT}/version", b"3\n")
        self._zip.close()

    def abort(self) -> None:
        """Abandon the half-written file."""
        self._zip.abort()


def dataset_pickle(
    specs: Mapping[str, Spec], tensors: Sequence[str], more: Mapping[str, bool | None]
) -> bytes:
    """The pickle of a ``TensorDataset`` whose storages are ``data/0``, ``data/1``, …"""
    keys = {name: str(key) for key, name in enumerate(specs)}
    state = b"(" + _text("tensors") + b"("
    state += b"".join(_tensor(keys[name], *specs[name]) for name in tensors) + b"t"
    for name in specs:
        if name not in tensors:
            state += _text(name) + _tensor(keys[name], *specs[name])
    for name, value in more.items():
        state += _text(name) + {None: b"N", True: b"\x88", False: b"\x89"}[value]
    dataset = _name("torch.utils.data.dataset", "TensorDataset") + b")\x81"
    return b"\x80\x02" + dataset + b"}" + state + b"u" + b"b."


def _tensor(key: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    storage = _text("storage") + _name("torch", _STORAGES[dtype.name]) + _text(key) + _text("cpu")
    storage = b"((" + storage + _int(math.prod(shape)) + b"tQ"
    hooks = _name("collections", "OrderedDict") + b")R"
    numbers = _int(0) + _ints(shape) + _ints(strides) + b"\x89"
    return _name("torch._utils", "_rebuild_tensor_v2") + storage + numbers + hooks + b"tR"


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _ints(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_int, values)) + b"t"


def _int(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)
