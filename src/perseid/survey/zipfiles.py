"""Read zip archives by position: entries that are stored uncompressed can be mapped."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, cast

from perseid.errors import BadPartitionError, PerseidError
from perseid.survey.bytesource import ByteSource, SourceFile

STREAM_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError)
_LOCAL_HEADER = struct.Struct("<4s22xHH")


@dataclass(frozen=True)
class Entry:
    """One member of an archive."""

    source: ByteSource
    name: str
    size: int
    """Bytes, uncompressed."""
    stored_size: int
    """Bytes in the archive."""
    crc: int
    """CRC-32 of the content; torch writes 0 if it was told not to compute it."""
    method: int
    """Compression method; 0 means stored uncompressed."""
    header: int
    """Byte where its local header begins."""

    @cached_property
    def start(self) -> int:
        """Byte of the archive where its content begins.

        Raises `BadPartitionError` if the local header is missing or the content is incomplete.
        """
        magic, name, extra = _LOCAL_HEADER.unpack(self.source.read(self.header, 30))
        start = self.header + 30 + int(name) + int(extra)
        if magic != b"PK\x03\x04" or start + self.stored_size > self.source.size:
            raise BadPartitionError(
                f"{self.source.name} is corrupt: its entry {self.name} is not where the "
                "directory of the archive says"
            )
        return start


class ZipArchive:
    """A zip archive, of which only the directory is read at first.

    Raises `BadPartitionError` if it is not a zip archive, is truncated, or has encrypted entries.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source, self.name = source, source.name
        if source.size == 0:
            raise BadPartitionError(f"{source.name} is empty (0 bytes)")
        try:
            self._zip = zipfile.ZipFile(cast(Any, SourceFile(source)))
        except PerseidError:
            raise
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
            raise source.failure or BadPartitionError(
                f"{source.name} is truncated or corrupt: no zip archive can be read from its "
                f"{source.size} bytes ({error})"
            ) from error
        except (struct.error, OSError, EOFError) as error:
            raise BadPartitionError(f"{source.name} is corrupt: {error}") from error
        self.entries = {info.filename: self._entry(info) for info in self._zip.infolist()}

    def read(self, entry: Entry) -> memoryview:
        """The content of a stored entry, its checksum verified; raises `BadPartitionError`."""
        if entry.method:
            raise BadPartitionError(
                f"{self.name}: {entry.name} is compressed; store it uncompressed"
            )
        data = self.source.read(entry.start, entry.size)
        if entry.crc and zlib.crc32(data) != entry.crc:
            raise BadPartitionError(f"{self.name} is corrupt: the checksum of {entry.name} differs")
        return data

    def stream(self, entry: Entry) -> IO[bytes]:
        """Open an entry, compressed or not, as a file that is decompressed while it is read.

        Its `read` raises the `STREAM_ERRORS` of zipfile and zlib.
        """
        try:
            return self._zip.open(entry.name)
        except (zipfile.BadZipFile, NotImplementedError, struct.error, EOFError) as error:
            raise BadPartitionError(f"{self.name} is corrupt: {entry.name}: {error}") from error

    def _entry(self, info: zipfile.ZipInfo) -> Entry:
        if info.flag_bits & 0x1:
            raise BadPartitionError(f"{self.name}: {info.filename} is encrypted, which is not read")
        if info.compress_type == 0 and info.compress_size != info.file_size:
            raise BadPartitionError(f"{self.name} is corrupt: {info.filename} has two sizes")
        return Entry(
            self.source,
            info.filename,
            info.file_size,
            info.compress_size,
            info.CRC,
            info.compress_type,
            info.header_offset,
        )
