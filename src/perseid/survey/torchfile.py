"""Read what ``torch.save`` wrote, without torch and without running any of its code.

The file is a zip archive of stored (uncompressed) entries: ``data.pkl``, the pickle of the object,
and ``data/<key>``, the bytes of each tensor storage, aligned to 64 bytes so that they can be mapped
(https://docs.pytorch.org/docs/stable/notes/serialization.html). The pickle is interpreted by
`perseid.survey.safe_pickle`, which cannot call anything; tensors stay on the disk, or in the object
store, until they are read.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError, UnsafePickleError
from perseid.storage import Storage
from perseid.survey.bytesource import ByteSource, BytesSource, MapSource, open_source
from perseid.survey.safe_pickle import Global, InertDict, Placeholder, read_pickle
from perseid.survey.zipfiles import Entry, ZipArchive

TENSOR_DATASET = Global("torch.utils.data.dataset", "TensorDataset")
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
"""First bytes of files written by torch before 1.6: a pickled magic number instead of a zip
archive."""
LARGEST_PICKLE = {"refuse": 1 << 20, "placeholder": 64 << 20}
"""Largest accepted pickle, bytes. That of a TensorDataset has under 1 KB, that of a large model
some MB."""
MOST_DIMENSIONS = 32

_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "ComplexFloatStorage": "<c8",
    "ComplexDoubleStorage": "<c16",
}
_UNTYPED = Global("torch.storage", "UntypedStorage")
_ALLOWED = {
    str(TENSOR_DATASET),
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch.storage.UntypedStorage",
    "torch.uint16",
    "torch.uint32",
    "torch.uint64",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    *(f"torch.{name}" for name in _STORAGES),
}


@dataclass(frozen=True, eq=False)
class LazyStorage:
    """The bytes behind one or more tensors, which are read on demand."""

    source: ByteSource = field(repr=False)
    entry: Entry = field(repr=False)
    kind: str
    """``FloatStorage`` and so on."""
    dtype: np.dtype[Any]
    """On disk; bfloat16 is shown as uint16."""
    count: int
    """Elements."""

    @property
    def start(self) -> int:
        """Byte of the file where it begins."""
        return self.entry.start

    def read(self) -> memoryview:
        """All bytes, their checksum verified."""
        data = self.source.read(self.entry.start, self.count * self.dtype.itemsize)
        if len(data) == self.entry.size and self.entry.crc and zlib.crc32(data) != self.entry.crc:
            raise BadPartitionError(
                f"{self.source.name} is corrupt: the checksum of {self.entry.name} differs"
            )
        return data


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A strided view of a storage; `numpy` reads it."""

    storage: LazyStorage
    offset: int
    """First element, in elements of the storage."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """Step per dimension, in elements."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the array that `numpy` returns; bfloat16 is widened to float32."""
        return np.dtype("<f4") if self.storage.kind == "BFloat16Storage" else self.storage.dtype

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie in row-major order without gaps."""
        if 0 in self.shape:
            return True
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size > 1 and step != expected:
                return False
            expected *= size
        return True

    @property
    def start(self) -> int:
        """Byte of the file where its first element lies."""
        return self.storage.start + self.offset * self.storage.dtype.itemsize

    def numpy(self) -> NDArray[Any]:
        """Read the whole tensor as a read-only view of the memory map or of the fetched bytes.

        Raises `BadPartitionError` if its checksum differs.
        """
        dtype = self.storage.dtype
        count = math.prod(self.shape)
        if self.contiguous and count < self.storage.count:
            data = self.storage.source.read(self.start, count * dtype.itemsize)
            array = np.frombuffer(data, dtype).reshape(self.shape)
        else:
            flat = np.frombuffer(self.storage.read(), dtype)[self.offset :]
            steps = tuple(step * dtype.itemsize for step in self.stride)
            array = np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)
        if self.storage.kind == "BFloat16Storage":
            return (array.astype("<u4") << np.uint32(16)).view("<f4")
        return array


def load_torch(
    source: ByteSource | Path | str | bytes,
    *,
    unknown: Literal["refuse", "placeholder"] = "refuse",
) -> Any:
    """Load the object graph of a ``torch.save`` file without running any of its code.

    Tensors and parameters become `LazyTensor`, ordered dicts become `InertDict`. Every other
    instance of a class becomes a `Placeholder` that records module, name, arguments and state;
    nothing is imported, looked up or called.

    Parameters
    ----------
    source
        A `ByteSource`, a path or URL, or the bytes of the file.
    unknown
        ``refuse``: names that a TensorDataset does not need raise `UnsafePickleError`.
        ``placeholder``: they become placeholders, so that weights can be extracted from a pickled
        module.

    Raises
    ------
    UnsafePickleError
        A name is not on the allow-list; the message has the name and the file.
    BadPartitionError
        It is not such a file, or it is corrupt, truncated, legacy, big-endian, encrypted or
        compressed.
    """
    source = _source(source)
    archive = _archive(source)
    root = _root(archive)
    byteorder = archive.entries.get(root + "byteorder")
    if byteorder is not None and bytes(archive.read(byteorder)) != b"little":
        raise BadPartitionError(
            f"{source.name} is big-endian; save it again on a little-endian machine"
        )
    names = _TorchNames(archive, root, permissive=unknown == "placeholder")
    pickle = archive.entries[root + "data.pkl"]
    if pickle.size > LARGEST_PICKLE[unknown]:
        raise BadPartitionError(
            f"{source.name}: data.pkl has {pickle.size} bytes; "
            f"at most {LARGEST_PICKLE[unknown]} are read"
        )
    data = bytes(archive.read(pickle))
    return read_pickle(data, names, source.name, largest=LARGEST_PICKLE[unknown])


def _source(source: ByteSource | Path | str | bytes) -> ByteSource:
    if isinstance(source, ByteSource):
        return source
    if isinstance(source, bytes):
        return BytesSource(source)
    if isinstance(source, Path):
        return MapSource(source)
    return open_source(*Storage.holding(source))


def _archive(source: ByteSource) -> ZipArchive:
    start = bytes(source.read(0, min(source.size, len(LEGACY_MAGIC))))
    if start == LEGACY_MAGIC:
        raise BadPartitionError(
            f"{source.name} is in the format of torch before 1.6; "
            "load it with torch and save it again"
        )
    return ZipArchive(source)


def _root(archive: ZipArchive) -> str:
    """The top folder in the archive: ``archive/`` or the file's stem."""
    pickles = [name for name in archive.entries if name.count("/") <= 1]
    roots = [name.removesuffix("data.pkl") for name in pickles if name.endswith("data.pkl")]
    if len(roots) != 1 or roots[0] not in ("", roots[0].rstrip("/") + "/"):
        raise BadPartitionError(
            f"{archive.name} is a zip archive but not one that torch.save wrote"
        )
    return roots[0]


class _TorchNames:
    """Gives the names in a torch pickle their meaning; see `perseid.survey.safe_pickle.Names`."""

    def __init__(self, archive: ZipArchive, root: str, *, permissive: bool) -> None:
        self._archive, self._root, self._permissive = archive, root, permissive
        self._storages: dict[tuple[str, str], LazyStorage] = {}
        self._calls: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": self._ordered_dict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._typed_tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
            "torch.Size": tuple,
        }

    def find(self, name: Global) -> Global:
        if self._permissive or str(name) in _ALLOWED:
            return name
        raise UnsafePickleError(
            f"{self._archive.name} refers to {name}, which is not allowed in a partition; none of "
            "its code was run"
        )

    def call(self, name: Global, args: tuple[Any, ...], kwargs: dict[Any, Any]) -> Any:
        meaning = self._calls.get(str(name))
        if meaning is not None:
            return meaning(*args, **kwargs)
        return Placeholder(name, args, kwargs)

    def persistent(self, pid: Any) -> LazyStorage:
        tag, kind, key, _device, count = pid
        if tag != "storage" or not isinstance(key, str) or not isinstance(kind, Global):
            raise ValueError("a persistent id is not that of a tensor storage")
        dtype = "u1" if kind == _UNTYPED else _STORAGES.get(kind.name)
        if (kind.module != "torch" and kind != _UNTYPED) or dtype is None:
            raise BadPartitionError(
                f"{self._archive.name} has tensors of {kind}, which are not read"
            )
        # By kind, too, because tensors may view the same bytes as different types.
        known = self._storages.get((key, kind.name))
        if known is None:
            known = self._storage(kind.name, key, np.dtype(dtype), int(count))
            self._storages[key, kind.name] = known
        return known

    def _storage(self, kind: str, key: str, dtype: np.dtype[Any], count: int) -> LazyStorage:
        entry = self._archive.entries.get(f"{self._root}data/{key}")
        if entry is None:
            raise BadPartitionError(f"{self._archive.name} lacks the tensor data data/{key}")
        if entry.method or count < 0 or count * dtype.itemsize > entry.size:
            raise BadPartitionError(
                f"{self._archive.name}: data/{key} has {entry.size} bytes, "
                f"not {count} elements of {dtype}" + (" (it is compressed)" if entry.method else "")
            )
        return LazyStorage(self._archive.source, entry, kind, dtype, count)

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any = None,
        _hooks: Any = None, views: Any = None,
    ) -> LazyTensor:  # fmt: skip
        numbers = (offset, *shape, *stride)
        if not isinstance(storage, LazyStorage) or len(shape) != len(stride):
            raise ValueError("a tensor has no storage, or not one stride per dimension")
        if len(shape) > MOST_DIMENSIONS or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"a tensor has the shape {shape}, strides {stride}")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if isinstance(views, dict) and any(views.values()):
            # The storage holds other numbers than the tensor: its negative, or its conjugate.
            raise BadPartitionError(
                f"{self._archive.name} has a negative or conjugate view of a tensor: call "
                ".resolve_neg() or .resolve_conj() before saving"
            )
        # The first condition refuses strides of 0, with which a few bytes could claim terabytes.
        if math.prod(shape) > storage.count or (math.prod(shape) and last >= storage.count):
            if any(n > 1 and not step for n, step in zip(shape, stride, strict=True)):
                raise BadPartitionError(
                    f"{self._archive.name}: a tensor of shape {tuple(shape)} repeats its elements "
                    f"(strides {tuple(stride)}); call .contiguous() before saving"
                )
            raise BadPartitionError(
                f"{self._archive.name}: a tensor of shape {tuple(shape)} reaches beyond the "
                f"{storage.count} elements of {storage.entry.name}"
            )
        return LazyTensor(storage, offset, tuple(shape), tuple(stride))

    def _typed_tensor(
        self, storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any,
        dtype: Any, views: Any = None,
    ) -> LazyTensor:  # fmt: skip
        """Rebuild a tensor whose dtype has no storage class of its own: unsigned integers."""
        name = str(dtype).removeprefix("torch.")
        if not isinstance(storage, LazyStorage) or name not in ("uint16", "uint32", "uint64"):
            raise BadPartitionError(
                f"{self._archive.name} has tensors of {dtype}, which are not read"
            )
        kind = np.dtype(name).newbyteorder("<")
        count = storage.count // kind.itemsize
        typed = LazyStorage(storage.source, storage.entry, name, kind, count)
        return self._tensor(typed, offset, shape, stride, views=views)

    def _parameter(self, data: Any, *_rest: Any) -> Any:
        return data

    def _ordered_dict(self, pairs: Any = ()) -> InertDict:
        return InertDict((key, value) for key, value in pairs if isinstance(key, (str, int)))
