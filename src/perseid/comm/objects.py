"""Objects as bytes: pickle protocol 5 with out-of-band buffers (PEP 574).

A payload without large buffers is the pickle alone. Otherwise it is a table of ``parts + 1``
lengths (8 bytes each), the pickle, and the buffers. The pickle and each buffer begin at a multiple
of 64 bytes, so that arrays are aligned and can use the memory that they were received into.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from typing import Any

from perseid.comm.frames import MAX_PARTS, FrameError

Buffer = bytes | bytearray | memoryview

ALIGNMENT = 64
"""Alignment of buffers, in bytes: a cache line, which suits vector instructions, too."""
_ZEROS = bytes(ALIGNMENT)
_ENTRY = struct.Struct("<IQ")


class Blob:
    """A payload to send: pieces of memory that need not be joined before."""

    __slots__ = ("nbytes", "parts", "pieces")

    def __init__(self, parts: int, pieces: list[Buffer], nbytes: int) -> None:
        self.parts = parts
        """Number of out-of-band buffers; 0 for a pickle without buffers, or for raw bytes."""
        self.pieces = pieces
        """Pieces of memory, in their order."""
        self.nbytes = nbytes
        """Bytes of all pieces together."""

    def flat(self) -> Buffer:
        """All pieces as one buffer; copied only if there are several."""
        if len(self.pieces) == 1:
            return self.pieces[0]
        return b"".join(self.pieces)


def dumps(value: Any) -> Blob:
    """Pickle an object as a payload; its large buffers are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    if not buffers:
        return Blob(0, [data], len(data))
    raws = [memoryview(buffer.raw()) for buffer in buffers]
    lengths = [len(data), *(raw.nbytes for raw in raws)]
    table = struct.pack(f"<{len(lengths)}Q", *lengths)
    pieces: list[Buffer] = [table]
    at = len(table)
    for piece in [memoryview(data), *raws]:
        if gap := -at % ALIGNMENT:
            pieces.append(_ZEROS[:gap])
        pieces.append(piece)
        at += gap + len(piece)
    return Blob(len(raws), pieces, at)


def loads(parts: int, payload: Buffer) -> Any:
    """Unpickle the object of a payload; its arrays share the payload's memory.

    Use it only for payloads from an authenticated peer of the job: a pickle can run code.

    Raises
    ------
    FrameError
        The table of lengths does not fit the payload.
    """
    if not parts:
        return pickle.loads(payload)
    view = memoryview(payload)
    pieces = slices(view, parts)
    return pickle.loads(pieces[0], buffers=pieces[1:])


def slices(view: memoryview, parts: int) -> list[memoryview]:
    """Cut a payload into its pickle and buffers, by its table; nothing is unpickled.

    Raises
    ------
    FrameError
        The table of lengths does not fit the payload.
    """
    at = 8 * (parts + 1)
    # The table comes from the network: each length is checked before it is used.
    if parts > MAX_PARTS or at > len(view):
        raise FrameError(f"object: a table of {parts} parts in {len(view)} bytes")
    found = []
    for length in struct.unpack_from(f"<{parts + 1}Q", view):
        at += -at % ALIGNMENT
        if at + length > len(view):
            raise FrameError(f"object: a part ends at byte {at + length} of {len(view)}")
        found.append(view[at : at + length])
        at += length
    return found


def bundle(blobs: Sequence[Blob]) -> Blob:
    """Join payloads into one: a table of (parts, bytes), then the payloads, 64-byte aligned."""
    table = struct.pack("<Q", len(blobs))
    table += b"".join(_ENTRY.pack(blob.parts, blob.nbytes) for blob in blobs)
    pieces: list[Buffer] = [table]
    at = len(table)
    for blob in blobs:
        if gap := -at % ALIGNMENT:
            pieces.append(_ZEROS[:gap])
        pieces.extend(blob.pieces)
        at += gap + blob.nbytes
    return Blob(0, pieces, at)


def unbundle(payload: Buffer) -> list[Blob]:
    """Split a bundle into its payloads, which are views of it.

    Raises
    ------
    FrameError
        The table does not fit the payload.
    """
    view = memoryview(payload)
    count = struct.unpack_from("<Q", view)[0] if len(view) >= 8 else -1
    at = 8 + count * _ENTRY.size
    if count < 0 or at > len(view):
        raise FrameError(f"bundle: a table of {count} entries in {len(view)} bytes")
    blobs = []
    for parts, nbytes in _ENTRY.iter_unpack(view[8:at]):
        at += -at % ALIGNMENT
        if at + nbytes > len(view):
            raise FrameError(f"bundle: an entry ends at byte {at + nbytes} of {len(view)}")
        blobs.append(Blob(parts, [view[at : at + nbytes]], nbytes))
        at += nbytes
    return blobs
