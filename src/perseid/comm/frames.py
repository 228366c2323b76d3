"""The frames that ranks send each other, as bytes; no socket is used here.

A frame is a header of 48 bytes and a payload. The first 32 bytes of the header, the *signature*,
say which call of which communicator the payload belongs to, and with which arguments it was made::

    offset  size
     0       2   magic ``Pc``
     2       1   kind of operation
     3       1   reduction (0: none)
     4       1   data type (0: pickled objects)
     5       1   version of this format
     6       2   zero
     8       4   communicator id
    12       4   generation of the job
    16       4   sequence number of the collective within its communicator
    20       4   root (signed; -1: none)
    24       8   number of elements that every rank must agree on (0: may differ)
    32       4   step of the algorithm, or the user's tag (signed)
    36       4   number of out-of-band buffers
    40       8   bytes of payload that follow

All numbers are little-endian. All ranks of a call build the same signature, so a receiver knows
that both sides are in the same call if these 32 bytes agree.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MAGIC = b"Pc"
VERSION = 1
SIGNATURE = struct.Struct("<2sBBBBHIIIiQ")
TAIL = struct.Struct("<iIQ")
SIGNATURE_BYTES = SIGNATURE.size
HEADER_BYTES = SIGNATURE.size + TAIL.size
MAX_PAYLOAD = 1 << 36
"""Longest payload, in bytes (64 GiB); a header with a longer one counts as malformed."""
MAX_PARTS = 1 << 20
"""Largest number of out-of-band buffers of one object."""
STAGING_BYTES = 64 * 1024
"""Size in bytes of the buffer that headers and small payloads are read into together."""


class FrameError(ValueError):
    """Bytes are not a frame of this protocol."""


class FrameKind(enum.IntEnum):
    """Kind of call that a frame belongs to, or kind of control frame."""

    POINT = 1
    BARRIER = 2
    BCAST = 3
    GATHER = 4
    ALLGATHER = 5
    SCATTER = 6
    REDUCE = 7
    ALLREDUCE = 8
    REDUCE_SCATTER = 9
    ALLTOALL = 10
    SCAN = 11
    EXSCAN = 12
    SPLIT = 13
    # Control frames begin at 64, so that one comparison tells them from all calls.
    ABORT = 64
    """The sender's communicator failed; the payload says why."""
    WAITING = 65
    """The sender has been waiting for a while; the payload is the signature of its call."""


_KINDS = {kind.value for kind in FrameKind}
# The place of a name is its code on the wire: new names may only be appended.
_NAMES = (
    "object", "bytes", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64", "float16", "float32", "float64", "complex64", "complex128",
)  # fmt: skip
OBJECT = 0
BYTES = 1
CODES = {np.dtype(name): code for code, name in enumerate(_NAMES) if code > BYTES}
"""Number of each NumPy type in a signature."""
# As above: the place is the code on the wire.
_REDUCTIONS = ("", "sum", "prod", "max", "min", "and", "or", "minloc", "maxloc")
CUSTOM = 255
"""Number of every reduction by a user-defined function."""


def dtype_code(dtype: np.dtype[np.generic]) -> int | None:
    """The number of a NumPy type in a signature, or None if only pickling can carry it."""
    return CODES.get(dtype)


def reduction_code(name: str) -> int:
    """The number of a reduction in a signature."""
    return _REDUCTIONS.index(name) if name in _REDUCTIONS else CUSTOM


class Signature(NamedTuple):
    """The call that a frame belongs to, and the arguments that all ranks must agree on."""

    kind: int
    comm: int
    generation: int
    sequence: int = 0
    root: int = -1
    reduction: int = 0
    dtype: int = OBJECT
    elements: int = 0
    """Number of elements on each rank, if all must agree on it; 0 if it may differ."""

    def pack(self) -> bytes:
        """Encode as 32 bytes."""
        return SIGNATURE.pack(
            MAGIC, self.kind, self.reduction, self.dtype, VERSION, 0,
            self.comm, self.generation, self.sequence, self.root, self.elements,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> Signature:
        """Decode the first 32 bytes.

        Raises
        ------
        FrameError
            The bytes are not a signature.
        """
        if len(data) < SIGNATURE_BYTES:
            raise FrameError(f"signature: {len(data)} bytes instead of {SIGNATURE_BYTES}")
        magic, kind, reduction, dtype, version, zero, comm, generation, sequence, root, count = (
            SIGNATURE.unpack_from(data)
        )
        # The zero bytes are checked so that a later version can use them and be recognized.
        if magic != MAGIC or version != VERSION or zero:
            raise FrameError("signature: the magic bytes or the version are not ours")
        if kind not in _KINDS:
            raise FrameError(f"signature: kind {kind} is not known")
        return cls(kind, comm, generation, sequence, root, reduction, dtype, count)

    def __str__(self) -> str:
        name = FrameKind(self.kind).name.lower()
        if self.kind == FrameKind.POINT:
            name = "send"
        parts = []
        if self.reduction:
            custom = self.reduction >= len(_REDUCTIONS)
            parts.append("own function" if custom else _REDUCTIONS[self.reduction])
        if self.root >= 0:
            parts.append(f"root {self.root}")
        if self.kind not in (FrameKind.BARRIER, FrameKind.SPLIT):
            known = self.dtype < len(_NAMES)
            what = _NAMES[self.dtype] if known else f"type {self.dtype}"
            parts.append(f"{self.elements} {what}" if self.elements else what)
        inside = f"({', '.join(parts)})" if parts else ""
        where = f" on communicator {self.comm}" if self.comm else ""
        call = f", call {self.sequence}" if self.sequence else ""
        return f"{name}{inside}{where}{call}"


@dataclass(slots=True)
class Frame:
    """A frame that was received completely."""

    signature: bytes
    """The first 32 bytes of the header (see `Signature`)."""
    step: int
    """Step of the algorithm, or the user's tag."""
    parts: int
    """Number of out-of-band buffers."""
    body: memoryview
    """The payload."""


def header(signature: bytes, step: int, parts: int, nbytes: int) -> bytes:
    """The 48 bytes before a payload."""
    return signature + TAIL.pack(step, parts, nbytes)


def allocate(nbytes: int) -> memoryview:
    """Allocate writable memory without clearing it: pages that are never written take no memory.

    Raises
    ------
    FrameError
        There is not enough memory; most likely the length is corrupt or forged.
    """
    try:
        return np.empty(nbytes, np.uint8).data if nbytes else memoryview(bytearray())
    except MemoryError:
        raise FrameError(f"a payload of {nbytes} bytes, for which there is no memory") from None


class Receiver:
    """Splits a stream of bytes into frames: the caller reads into ``room()``, then calls `arrived`.

    A small frame arrives with one read into a staging buffer; the rest of a large payload is read
    directly into its place. The memory in use is the staging buffer and at most one payload, which
    is never longer than ``limit``.
    """

    __slots__ = ("_body", "_filled", "buffer", "end", "limit", "nbytes", "parts", "signature",
                 "start", "step", "view")  # fmt: skip

    def __init__(self, limit: int = MAX_PAYLOAD, staging: int = STAGING_BYTES) -> None:
        self.limit = limit
        self.buffer = bytearray(max(staging, HEADER_BYTES))
        self.view = memoryview(self.buffer)
        self.start = self.end = 0
        self.signature: bytes | None = None
        """Signature of the frame that is being received; None if no header has been parsed."""
        self.step = self.parts = self.nbytes = 0
        self._body: memoryview | None = None
        self._filled = 0

    @property
    def idle(self) -> bool:
        """Whether no byte of an unfinished frame is buffered."""
        return self.signature is None and self.start == self.end

    @property
    def direct(self) -> bool:
        """Whether the next bytes go directly into the place of a payload."""
        return self._body is not None

    def room(self) -> memoryview:
        """The memory that the next bytes are to be read into."""
        if self._body is not None:
            return self._body[self._filled :]
        if self.start:
            # Move the rest to the front, so that no frame is split at the end of the buffer.
            left = self.end - self.start
            self.view[:left] = self.view[self.start : self.end]
            self.start, self.end = 0, left
        return self.view[self.end :]

    def arrived(self, count: int) -> None:
        """Record that ``count`` bytes were read into ``room()``."""
        if self._body is not None:
            self._filled += count
        else:
            self.end += count

    def parse(self) -> bool:
        """Parse the next header into the attributes; False if it is incomplete.

        Raises
        ------
        FrameError
            The bytes are not a header, or the payload is too long.
        """
        if self.signature is not None:
            return True
        start = self.start
        if self.end - start < HEADER_BYTES:
            return False
        signature = bytes(self.view[start : start + SIGNATURE_BYTES])
        Signature.unpack(signature)
        step, parts, nbytes = TAIL.unpack_from(self.buffer, start + SIGNATURE_BYTES)
        # Checked before memory is allocated: a corrupt length must not be able to exhaust it.
        if nbytes > self.limit or parts > MAX_PARTS:
            raise FrameError(f"a payload of {nbytes} bytes in {parts} parts; at most {self.limit}")
        self.signature, self.step, self.parts, self.nbytes = signature, step, parts, nbytes
        self.start = start + HEADER_BYTES
        return True

    def put_back(self, data: memoryview) -> None:
        """Append bytes that were read into other memory to the staging buffer."""
        left = bytes(self.view[self.start : self.end])
        # The bytes were read into a large array, so there may be more than the buffer can hold.
        if len(left) + len(data) > len(self.buffer):
            self.buffer = bytearray(len(left) + len(data))
            self.view = memoryview(self.buffer)
        self.start, self.end = 0, len(left) + len(data)
        self.view[: self.end] = left + data

    def accept(self, into: memoryview | None = None, have: int = 0) -> bool:
        """Choose the place of the payload (new memory by default); returns whether it is complete.

        Parameters
        ----------
        into
            Writable bytes of exactly the payload's length.
        have
            Number of bytes of the payload that ``into`` holds already; the staging buffer must
            then be empty.
        """
        # The payload was read together with its header, directly into its place.
        if have:
            self._body, self._filled = into, have
        elif self._body is None:
            self._body = allocate(self.nbytes) if into is None else into
            # Copy what came together with the header; the rest is read directly into the body.
            take = min(self.nbytes, self.end - self.start)
            self._body[:take] = self.view[self.start : self.start + take]
            self.start += take
            self._filled = take
        return self._filled == self.nbytes

    def finish(self) -> Frame:
        """Return the complete frame, and get ready for the next one."""
        signature, body = self.signature, self._body
        if signature is None or body is None or self._filled != self.nbytes:
            raise FrameError("the payload is incomplete")
        # The frame owns its memory from here on; the next payload gets other memory.
        self.signature = self._body = None
        return Frame(signature, self.step, self.parts, body)
