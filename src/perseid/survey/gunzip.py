"""Decompress a gzip file into a mapped temporary file.

Compressed bytes cannot be read by position, so they are decompressed once, as a stream, into an
unlinked file in the temporary folder (``TMPDIR``). That file is mapped, so memory does not grow
with its size.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from perseid.errors import BadPartitionError, StorageError
from perseid.survey.bytesource import ByteSource, MapSource

_STEP = 8 << 20
"""Compressed bytes to read at once, and most bytes to decompress at once."""
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
                # Unlink right away: the map keeps the data alive, and nothing is left behind if we
                # are killed.
                # Unlink right away: the map keeps the data alive, and nothing is left behind if we
                # are killed.
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
    """Decompress the file part by part; like gzip, several members are concatenated."""
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
