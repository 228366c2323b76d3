"""``.npz``: NumPy's archive, one ``.npy`` per column. Pickled arrays are never read.

Uncompressed archives (``np.savez``) are mapped or read by ranges; compressed ones
(``np.savez_compressed``) are decompressed block by block, in order.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError, PerseidError
from perseid.survey.bytesource import LARGEST_READ, ByteSource
from perseid.survey.column_spec import ColumnSpec, described
from perseid.survey.cutouts import Cutouts
from perseid.survey.file_columns import Columns, as_cutouts, check_columns
from perseid.survey.file_table import ColumnWriter, RawArray, RawTable, Table, Writer
from perseid.survey.picking import pick_columns, unused_names, without_strangers
from perseid.survey.read_options import PLAIN, ReadOptions
from perseid.survey.zipfiles import STREAM_ERRORS, Entry, ZipArchive
from perseid.survey.zipwrite import AlignedZip

_LONGEST_HEADER = 10_000
"""Longest ``.npy`` header, bytes: NumPy's own limit."""
_MOST_DEFLATE = 1032
"""Deflate's largest possible ratio. A larger one means that the stated size is false."""


def open_table(source: ByteSource, options: ReadOptions = PLAIN) -> Table:
    """Read the layout of the archive; see `perseid.survey.formats`."""
    archive = ZipArchive(source)
    there = [name.removesuffix(".npy") for name in archive.entries if name.endswith(".npy")]
    sources = without_strangers(
        pick_columns(source.name, there, options), lambda name: _is_array(archive, f"{name}.npy")
    )
    members = {n: _member(archive, archive.entries[f"{name}.npy"]) for n, name in sources.items()}
    if any(member.entry.method for member in members.values()):
        table: Table = _Compressed(archive, members, sources, options)
    else:
        arrays = {name: member.raw() for name, member in members.items()}
        table = RawTable(source, arrays, sources=sources, options=options)
    table.unused = unused_names(there, sources.values())
    if options.describe:
        table.described = tuple(_described(archive, there))
    return table


def create(path: Path, columns: Columns) -> Writer:
    """Begin an uncompressed archive on disk; see `perseid.survey.formats`."""
    return _Writer(path, columns)


def _described(archive: ZipArchive, names: Iterable[str]) -> Iterator[ColumnSpec]:
    for name in names:
        if _is_array(archive, f"{name}.npy"):
            member = _member(archive, archive.entries[f"{name}.npy"])
            yield described(name, member.dtype, member.shape)


def _is_array(archive: ZipArchive, name: str) -> bool:
    try:
        _member(archive, archive.entries[name])
    except BadPartitionError:
        return False
    return True


@dataclass(frozen=True)
class _Member:
    """One ``.npy`` in the archive, with its header parsed."""

    entry: Entry
    header: int
    """Bytes before the data."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize

    def raw(self) -> RawArray:
        """Its position in the file, and the CRC of the data alone: the archive's CRC includes the
        header."""
        crc = self.entry.crc
        if crc:
            head = zlib.crc32(self.entry.source.read(self.entry.start, self.header))
            crc = _without_prefix(crc, head, self.num_bytes)
        return RawArray(self.entry.start + self.header, self.dtype, self.shape, crc)


def _member(archive: ZipArchive, entry: Entry) -> _Member:
    where = f"{archive.name}: {entry.name}"
    if entry.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadPartitionError(f"{where} is compressed by method {entry.method}, not deflate")
    # Detects a zip bomb before anything is decompressed.
    if entry.method and entry.size > entry.stored_size * _MOST_DEFLATE + 1024:
        raise BadPartitionError(f"{where} claims {entry.size} bytes out of {entry.stored_size}")
    try:
        with archive.stream(entry) as file:
            head = io.BytesIO(file.read(_LONGEST_HEADER + 12))
        version = np.lib.format.read_magic(head)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(head, max_header_size=_LONGEST_HEADER)
    except PerseidError:
        raise
    except (
        ValueError,
        TypeError,
        SyntaxError,
        RecursionError,
        TokenError,
        *STREAM_ERRORS,
    ) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadPartitionError(f"{where} is not an array: {first}") from error
    if dtype.hasobject or dtype.names is not None:
        raise BadPartitionError(
            f"{where} has dtype {dtype}; pickled arrays are not read: save numbers as such, and "
            "text as an array of a U dtype"
        )
    if fortran and len(shape) > 1 and 0 not in shape:
        raise BadPartitionError(f"{where} is in Fortran order; save it in C order")
    member = _Member(entry, head.tell(), dtype, tuple(int(n) for n in shape))
    if member.header + member.num_bytes != entry.size:
        raise BadPartitionError(
            f"{where} is truncated or corrupt: {entry.size - member.header} bytes "
            f"for {dtype} {member.shape}"
        )
    return member


class _Compressed(Table):
    """Columns that are decompressed while they are read; going back means starting over."""

    def __init__(
        self,
        archive: ZipArchive,
        members: Mapping[str, _Member],
        sources: Mapping[str, str],
        options: ReadOptions,
    ) -> None:
        found = {n: (m.dtype, m.shape) for n, m in members.items()}
        columns = check_columns(archive.name, found, sources, options)
        super().__init__(archive.source, columns)
        self._archive, self._members = archive, members
        self._small = {name: self._whole(name) for name in columns.stored}
        self._images: IO[bytes] | None = None
        self._row = 0

    def read(self, start: int, stop: int) -> Cutouts:
        arrays = {name: column[start:stop] for name, column in self._small.items()}
        if "image" not in self._members:
            return as_cutouts(arrays)
        # A deflate stream cannot be rewound.
        if self._images is None or start < self._row:
            self._images, self._row = self._begin("image"), 0
        size = math.prod(self.columns.shape) * self._members["image"].dtype.itemsize
        self._skip((start - self._row) * size)
        data = self._take(self._images, (stop - start) * size, "image")
        self._row = stop
        if stop == self.columns.rows:
            # zipfile verifies the checksum only on a read at the end of the entry.
            self._take(self._images, 0, "image")
        images = np.frombuffer(data, self._members["image"].dtype)
        arrays["image"] = self.columns.column("image", images, self.source.name)
        return as_cutouts(arrays)

    def _begin(self, name: str) -> IO[bytes]:
        member = self._members[name]
        file = self._archive.stream(member.entry)
        self._take(file, member.header, name)
        return file

    def _whole(self, name: str) -> NDArray[Any]:
        member = self._members[name]
        if member.num_bytes > LARGEST_READ:
            raise BadPartitionError(f"{self.source.name}: {name} has {member.num_bytes} bytes")
        with self._begin(name) as file:
            array = np.frombuffer(self._take(file, member.num_bytes, name), member.dtype)
        return self.columns.column(name, array, self.source.name)

    def _skip(self, length: int) -> None:
        assert self._images is not None
        while length > 0:
            length -= len(self._take(self._images, min(length, 1 << 20), "image"))

    def _take(self, file: IO[bytes], length: int, name: str) -> bytes:
        """Read `length` bytes; with 0, read at the end of the entry, which verifies the
        checksum."""
        try:
            data = file.read(length or 1)
        except STREAM_ERRORS as error:
            raise BadPartitionError(f"{self.source.name} is corrupt: {name}: {error}") from error
        if len(data) != length:
            raise BadPartitionError(f"{self.source.name} is truncated: {name} ends early")
        return data


class _Writer(ColumnWriter):
    format = ".npz"
    takes_text = True

    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(columns)
        self._zip = AlignedZip(path)
        self._file = self._begin("image", columns.dtypes["image"])

    def _begin(self, name: str, dtype: np.dtype[Any]) -> IO[bytes]:
        shape = (self.columns.rows, *self.columns.row_shape(name))
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": dtype.str, "fortran_order": False, "shape": shape}
        )
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        file = self._zip.open(f"{name}.npy", len(header.getvalue()) + size)
        file.write(header.getvalue())
        return file

    def _image(self, data: memoryview) -> None:
        self._file.write(data)

    def _small(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._file.close()
        for name, array in arrays.items():
            with self._begin(name, array.dtype) as file:
                file.write(array.tobytes())
        self._zip.close()

    def abort(self) -> None:
        self._zip.abort()


def _without_prefix(crc: int, prefix_crc: int, length: int) -> int:
    """CRC-32 of the last `length` bytes, given that of the whole and that of the part before.

    crc(AB) = shift(crc(A), len(B)) ^ crc(B), where shift appends zero bytes to the register:
    a linear map over GF(2), applied by repeated squaring (as in zlib's ``crc32_combine``).
    """
    step = [0xEDB88320, *(1 << bit for bit in range(31))]  # one zero bit
    for _ in range(3):
        step = _square(step)  # one zero byte
    shifted = prefix_crc
    while length:
        if length & 1:
            shifted = _times(step, shifted)
        step = _square(step)
        length >>= 1
    return crc ^ shifted


def _times(matrix: list[int], vector: int) -> int:
    total = 0
    for bit, row in enumerate(matrix):
        if vector >> bit & 1:
            total ^= row
    return total


def _square(matrix: list[int]) -> list[int]:
    return [_times(matrix, row) for row in matrix]
