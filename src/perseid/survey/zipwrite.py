"""Write zip archives whose entries are stored and begin at multiples of 64 bytes."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import IO

ALIGNMENT = 64
"""Alignment in bytes: that of torch's storages, with which every dtype can be mapped."""
_PADDING_ID = 0x4246
"""Id of the extra field that torch pads with: ``FB``."""
_ZIP64_FIELD = 20
"""Bytes that zipfile adds to the local header of an entry of more than 2 GiB."""


class AlignedZip:
    """Writes an archive entry by entry. The same content always gives the same bytes."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._entry: IO[bytes] | None = None

    def open(self, name: str, size: int) -> IO[bytes]:
        """Begin an entry of `size` bytes; close it before the next one."""
        info = zipfile.ZipInfo(name)  # dated 1980, so that the bytes do not depend on the clock
        large = size > zipfile.ZIP64_LIMIT // 2
        assert self._zip.fp is not None
        header = self._zip.fp.tell() + 30 + len(name.encode()) + (_ZIP64_FIELD if large else 0)
        # The extra field that holds the padding has itself a header of 4 bytes.
        padding = -(header + 4) % ALIGNMENT
        info.extra = struct.pack("<HH", _PADDING_ID, padding) + bytes(padding)
        self._entry = self._zip.open(info, "w", force_zip64=large)
        return self._entry

    def add(self, name: str, data: bytes | memoryview) -> None:
        """Write a whole entry of the archive."""
        with self.open(name, len(data)) as entry:
            entry.write(data)

    def close(self) -> None:
        """Write the archive's directory and close the file."""
        self._zip.close()

    def abort(self) -> None:
        """Close the file without a directory."""
        if self._entry is not None:
            self._entry.close()
        if self._zip.fp is not None:
            self._zip.fp.close()
            self._zip.fp = None
