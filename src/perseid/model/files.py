"""The files of an ONNX model: the graph, and the external data files that it names.

``torch.onnx.export`` keeps the weights of a larger model in ``NAME.onnx.data``. The graph names
such files by paths relative to its own folder (https://onnx.ai/onnx/repo-docs/ExternalData.html);
this module reads the paths from the graph itself, so the onnx package is not needed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

from perseid.errors import BadModelError, NotFoundError
from perseid.storage import Storage
from perseid.textfile import is_file

DEFAULT = "default"
"""Name of the model that is shipped in the package."""
BUILT_IN = (DEFAULT, "default.int8")
_DIGITS = 19
"""Most digits that are read of an offset or a length: as many as 64 bits may have."""
_CHUNK = 8 << 20
"""Number of bytes that are hashed or copied at once."""

_MODEL, _FUNCTION, _GRAPH, _NODE, _ATTRIBUTE, _SPARSE, _TENSOR, _ENTRY = range(8)
_NESTED: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},
}
"""For each message type, the numbers of the fields that can lead to a tensor (onnx.proto3, IR
version 10)."""


@dataclass(frozen=True)
class ModelFiles:
    """A model on the local disk."""

    path: Path
    """Path of the graph."""
    name: str
    """Name for messages: its URL, or ``default``."""
    external: tuple[Path, ...] = ()
    """Files with its weights that lie beside it."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Paths of all of its files, the graph first."""
        return (self.path, *self.external)

    def digest(self) -> str:
        """``sha256:`` and the digest of the file, or of all files and their names if there are
        several."""
        if not self.external:
            return f"sha256:{sha256_of(self.path)}"
        names = [path.relative_to(self.path.parent).as_posix() for path in self.external]
        lines = [f"{sha256_of(self.path)}\n"]
        lines += [f"{sha256_of(p)} {n}\n" for n, p in zip(names, self.external, strict=True)]
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"

    def versions(self) -> tuple[tuple[int, ...], ...]:
        """A value that changes if one of the files is written or replaced."""
        found = [path.stat() for path in self.paths]
        return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found)


@contextlib.contextmanager
def on_disk(url: str | Path) -> Iterator[ModelFiles]:
    """Provide a model's files on disk for the duration of the block. Loading a file needs less
    memory than loading its bytes.

    Files in a store are fetched into a folder that no other user may enter, so another user cannot
    plant a file there.

    Raises
    ------
    BadModelError
        The model does not exist on this disk or is not an ONNX file, or its external data is
        missing or lies outside the model's folder.
    NotFoundError, StorageError
        The store has no such model, or failed.
    """
    if str(url) in BUILT_IN:
        file = resources.files("perseid.model") / "data" / f"{url}.onnx"
        with resources.as_file(file) as path:
            if not is_file(path):
                raise BadModelError(f"this installation has no {url} model: give the path of one")
            yield local_files(path, str(url))
        return
    store, key = Storage.holding(url)
    local = store.local_path(key)
    if local is not None:
        yield local_files(local)
        return
    with tempfile.TemporaryDirectory(prefix="perseid-model-") as folder:
        yield _fetched(store, key, Path(folder))


def local_files(path: Path, name: str = "") -> ModelFiles:
    """The files of a model on the local disk; `name` names it in messages. See `on_disk`."""
    name = name or str(path)
    if not is_file(path):
        raise BadModelError(f"there is no model at {path}")
    # Links to models are common: the data may lie beside the link or beside its target.
    allowed = (path.parent.resolve(), path.resolve().parent)
    external = []
    for location, size in external_data(path, name).items():
        beside = path.parent / location
        if not is_file(beside):
            raise _without(name, location)
        if not any(beside.resolve().is_relative_to(folder) for folder in allowed):
            raise _outside(name, location)
        _check_size(name, location, beside, size)
        external.append(beside)
    return ModelFiles(path, name, tuple(external))


def _fetched(store: Storage, key: str, folder: Path) -> ModelFiles:
    name = store.where(key)
    path = folder / "model.onnx"
    _copy(store, key, path)
    external = []
    for location, size in external_data(path, name).items():
        beside = folder / location
        # A graph that names itself as its data file would be overwritten.
        if beside == path:
            raise _outside(name, location)
        try:
            beside.parent.mkdir(parents=True, exist_ok=True)
            _copy(store, location, beside)
        except NotFoundError as error:
            raise _without(name, location) from error
        except OSError as error:  # a name that is too long, or a file where a folder is needed
            raise BadModelError(
                f"the model {name} keeps its weights in {location!r}, which cannot be kept on this "
                f"disk: {error.strerror}"
            ) from error
        _check_size(name, location, beside, size)
        external.append(beside)
    return ModelFiles(path, name, tuple(external))


def _copy(store: Storage, key: str, path: Path) -> None:
    """Copy an object of a store to a file, part by part, all from one version of the object."""
    info = store.info(key)
    with path.open("xb") as file:
        for start in range(0, info.size, _CHUNK):
            length = min(_CHUNK, info.size - start)
            # With the entity tag, replacing the object meanwhile causes an error, not a mixed file.
            file.write(store.view(key, start, length, etag=info.etag))


def external_data(path: Path, name: str) -> Mapping[str, int]:
    """Sorted paths of the files that hold a graph's tensors, relative to its folder, and the least
    size of each, in bytes.

    Raises `BadModelError` if the file is not an ONNX graph, or a path leads out of the folder.
    """
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise BadModelError(f"{name} is not a model that onnxruntime can load: it is empty")
        with _mapped(file.fileno(), name) as mapped:
            view = memoryview(mapped)
            try:
                found = [_External.of(entries, name) for entries in _tensors(view)]
            except BadModelError:
                raise
            except (ValueError, IndexError) as error:
                raise BadModelError(
                    f"{name} is not a model that onnxruntime can load: it is not an ONNX file"
                ) from error
            finally:
                view.release()
    needed: dict[str, int] = {}
    for location, end in sorted((entry.location, entry.end) for entry in found):
        pure = PurePosixPath(location)
        if not location or pure.is_absolute() or ".." in pure.parts or {"\\", "\0"} & {*location}:
            raise _outside(name, location)
        needed[str(pure)] = max(end, needed.get(str(pure), 0))
    return needed


def _check_size(name: str, location: str, beside: Path, needed: int) -> None:
    size = beside.stat().st_size
    # onnxruntime would say so in its own words, and print lines of its log as well.
    if size < needed:
        raise BadModelError(
            f"the model {name} keeps its weights in {location}, which has {size} bytes of "
            f"{needed}: copy it again, or export the model again"
        )


def _mapped(descriptor: int, name: str) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"there is not enough memory for the model {name}") from error
        raise


def _outside(name: str, location: str) -> BadModelError:
    return BadModelError(
        f"the model {name} keeps its weights in {location!r}, outside its own folder, where they "
        "are never read: export it again with its data file beside it"
    )


def _without(name: str, location: str) -> BadModelError:
    return BadModelError(
        f"the model {name} keeps its weights in {location}, which is not there: put that file "
        "beside it, too"
    )


@dataclass(frozen=True)
class _External:
    """Where one tensor's data lies."""

    location: str
    end: int
    """The first byte after it, as far as the tensor says."""

    @classmethod
    def of(cls, entries: Mapping[bytes, bytes], name: str) -> _External:
        end = 0
        for key in (b"offset", b"length"):
            given = entries.get(key, b"0")
            if not given.isdigit():
                raise BadModelError(
                    f"{name} is not a model that onnxruntime can load: the {key.decode()} of a "
                    f"tensor's data is {given.decode()!r}"
                )
            end += int(given[:_DIGITS])
        return cls(entries[b"location"].decode(), end)


def _tensors(model: memoryview) -> Iterator[Mapping[bytes, bytes]]:
    """What each tensor with external data says of it, by key. Iterative: nesting needs no stack."""
    # A list instead of recursion, because a hostile file may be nested to any depth.
    left = [(_MODEL, 0, len(model))]
    while left:
        kind, start, end = left.pop()
        entries: dict[bytes, bytes] = {}
        for number, first, last in _messages(model, start, end):
            inner = _NESTED[kind].get(number)
            if inner == _ENTRY:
                entry = {n: bytes(model[a:b]) for n, a, b in _messages(model, first, last)}
                entries[entry.get(1, b"")] = entry.get(2, b"")
            elif inner is not None:
                left.append((inner, first, last))
        if b"location" in entries:
            yield entries


def _messages(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each length-delimited field of a message.

    Raises `ValueError` if the bytes are not a protocol buffer
    (https://protobuf.dev/programming-guides/encoding/).
    """
    while start < end:
        tag, start = _varint(data, start)
        match tag & 7:
            case 0:
                _, start = _varint(data, start)
            case 1:
                start += 8
            case 5:
                start += 4
            case 2:
                length, start = _varint(data, start)
                yield tag >> 3, start, start + length
                start += length
            case _:
                raise ValueError("this wire type is not in use")
    if start != end:
        raise ValueError("a field ends outside of its message")


def _varint(data: memoryview, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[start]
        value |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            return value, start
        # Without a limit, a run of such bytes would build a number as long as the file.
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def producer_of(path: Path) -> str:
    """Name of the program that made an ONNX file; empty if the file does not begin with one."""
    with open(path, "rb") as file:
        head = memoryview(file.read(256))
    try:
        # Its second field, before the graph (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
        number, start, end = next(_messages(head, 0, len(head)))
        return bytes(head[start:end]).decode() if number == 2 else ""
    except (StopIteration, ValueError, IndexError):
        return ""


def sha256_of(path: Path) -> str:
    """The SHA-256 digest of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
