"""A gzip-compressed file as a source of its plain bytes.

Compressed bytes cannot be read by position, so they are unpacked once, in a stream, into a file
without a name in the temporary folder (``TMPDIR``), which is mapped: memory does not grow with it.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from perseid.errors import BadPartitionError, StorageError
from perseid.survey.bytesource import ByteSource, MapSource

_STEP = 8 << 20
"""Compressed bytes that are read at once, and the most that come out of them at once."""
_GZIP = 31
"""``wbits`` of zlib for a window of 32 kB with the header and the checksum of gzip."""


class UnpackedSource(MapSource):
    """The plain bytes of a gzip file.

    Raises
    ------
    BadPartitionError
        It is truncated, or corrupt by its own checksum.
    StorageError
        The temporary folder cannot hold it.
    """

    def __init__(self, packed: ByteSource) -> None:
        self._packed = packed
        try:
            number, name = tempfile.mkstemp(prefix="perseid-", suffix=".fits")
            try:
                with open(number, "wb") as file:
                    for part in _parts(packed):
                        file.write(part)
                super().__init__(Path(name), packed.name)
            finally:
                Path(name).unlink()
        except OSError as error:
            raise StorageError(
                f"{packed.name} cannot be unpacked into {tempfile.gettempdir()} "
                f"({error.strerror or error}): free some space there, or point TMPDIR elsewhere"
            ) from error

    def close(self) -> None:
        super().close()
        self._packed.close()


def _parts(packed: ByteSource) -> Iterator[bytes]:
    """What the file unpacks to; several gzip members follow each other, as gzip itself has it."""
    stream, fresh = zlib.decompressobj(_GZIP), True
    for start in range(0, packed.size, _STEP):
        data = bytes(packed.read(start, min(_STEP, packed.size - start)))
        packed.release(start, len(data))
        try:
            while data:
                yield stream.decompress(data, _STEP)
                fresh, data = False, stream.unconsumed_tail
                if stream.eof:
                    data, stream, fresh = stream.unused_data, zlib.decompressobj(_GZIP), True
        except zlib.error as error:
            raise BadPartitionError(f"{packed.name} is corrupt: gzip says: {error}") from error
    if not fresh:
        raise BadPartitionError(f"{packed.name} is truncated: its gzip stream does not end")
