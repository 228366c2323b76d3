"""Encoding of the fields of frames (numbers, strings, addresses, rank ranges), and their limits."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

MAX_JOB_BYTES = 200
"""Longest job name in UTF-8: room for a run's name and its prefix."""
MAX_WORLD = 1 << 20
"""Most ranks of a job; it keeps a list of all ranks at a few MB."""
MAX_CANDIDATES = 8
"""Most addresses that a worker may claim; a host with more interfaces is misconfigured."""
MAX_RANGES = 4096
"""Most ranges of ranks in one request."""
MAX_CLIENT_FRAME = 64 * 1024
"""Longest frame that a server accepts. The largest request is ``MAX_RANGES`` ranges (32 KiB)."""
MAX_SERVER_FRAME = 96 * 1024 * 1024
"""Longest frame that a client accepts: ``Peers`` with ``MAX_WORLD`` ranks."""

NONCE_BYTES = 16
INSTANCE_BYTES = 8
MAC_BYTES = 32

_HEADER = struct.Struct("!BI")
U16 = struct.Struct("!H")
U32 = struct.Struct("!I")
RANGE = struct.Struct("!II")


class ProtocolError(ValueError):
    """The other side sent bytes that do not follow the protocol."""


class Address(NamedTuple):
    """An IP address and a TCP port."""

    host: str
    """Numeric address, IPv4 or IPv6."""
    port: int
    """TCP port, 0 to 65535."""

    @property
    def family(self) -> int:
        """IP version: 4 or 6."""
        return 6 if ":" in self.host else 4

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class BodyReader:
    """Cursor over the body of one frame. Every read checks the length first."""

    __slots__ = ("data", "label", "pos")

    def __init__(self, data: bytes, label: str) -> None:
        self.data, self.pos, self.label = data, 0, label

    def take(self, count: int, field: str) -> bytes:
        """Read ``count`` bytes; ``field`` names them in errors."""
        end = self.pos + count
        if end > len(self.data):
            raise ProtocolError(f"{self.label}: {field} ends after {len(self.data)} bytes")
        part = self.data[self.pos : end]
        self.pos = end
        return part

    def number(self, layout: struct.Struct, field: str) -> int:
        """Read one unsigned number."""
        value: int = layout.unpack(self.take(layout.size, field))[0]
        return value

    def byte(self, field: str) -> int:
        return self.take(1, field)[0]

    def text(self, field: str, limit: int) -> str:
        """Read a string: one byte of length, then UTF-8."""
        raw = self.take(self.byte(field), field)
        if len(raw) > limit:
            raise ProtocolError(f"{self.label}: {field} has {len(raw)} bytes, at most {limit}")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise ProtocolError(f"{self.label}: {field} is not UTF-8") from None

    def address(self, field: str) -> Address:
        """Read an address: one byte of IP version, the address, two bytes of port."""
        family = self.byte(field)
        if family not in (4, 6):
            raise ProtocolError(f"{self.label}: {field} has address family {family}, not 4 or 6")
        raw = self.take(6 if family == 4 else 18, field)
        return Address(_unpack_host(raw[:-2]), raw[-2] << 8 | raw[-1])

    def ranges(self, field: str) -> tuple[range, ...]:
        """Read rank ranges: two bytes of count, then (first, count) pairs."""
        count = self.number(U16, field)
        if not count:
            return ()
        if count > MAX_RANGES:
            raise ProtocolError(f"{self.label}: {count} ranges in {field}, at most {MAX_RANGES}")
        pairs = RANGE.iter_unpack(self.take(count * RANGE.size, field))
        found = tuple(range(first, first + number) for first, number in pairs)
        # A range is cheap to send and could be expensive to expand: refuse it while it is two
        # numbers.
        if any(part.stop > MAX_WORLD for part in found):
            raise ProtocolError(f"{self.label}: {field} goes beyond rank {MAX_WORLD}")
        return found

    def end(self) -> None:
        """Check that nothing is left."""
        if self.pos != len(self.data):
            extra = len(self.data) - self.pos
            raise ProtocolError(f"{self.label}: {extra} bytes too many")


@lru_cache(maxsize=4096)
def _packed_host(host: str) -> bytes:
    return ipaddress.ip_address(host).packed


def pack_address(address: Address) -> bytes:
    """Encode an address: IP version, address, port."""
    raw = _packed_host(address.host)
    return bytes((4 if len(raw) == 4 else 6,)) + raw + U16.pack(address.port)


@lru_cache(maxsize=4096)
def _unpack_host(raw: bytes) -> str:
    return str(ipaddress.ip_address(raw))


def pack_text(text: str) -> bytes:
    """Encode a string: one byte of length, then UTF-8."""
    raw = text.encode()
    return bytes((len(raw),)) + raw


def pack_ranges(ranges: Iterable[range]) -> bytes:
    """Encode rank ranges: two bytes of count, then (first, count) pairs of 4 bytes each."""
    parts = [RANGE.pack(part.start, len(part)) for part in ranges]
    return U16.pack(len(parts)) + b"".join(parts)


def to_ranges(ranks: Iterable[int]) -> tuple[range, ...]:
    """Combine ranks into the fewest ascending ranges."""
    found: list[range] = []
    for rank in sorted(set(ranks)):
        if found and found[-1].stop == rank:
            found[-1] = range(found[-1].start, rank + 1)
        else:
            found.append(range(rank, rank + 1))
    return tuple(found)


def merge_ranges(have: Iterable[range], more: Iterable[range], world: int) -> tuple[range, ...]:
    """The union of two sets of ranks as the fewest ranges, without ranks beyond the world size."""
    spans = sorted((part.start, min(part.stop, world)) for part in (*have, *more) if part)
    union: list[range] = []
    for start, stop in spans:
        if union and start <= union[-1].stop:
            # Ranges that touch are joined, too, so that the list stays as short as it can be.
            union[-1] = range(union[-1].start, max(stop, union[-1].stop))
        elif start < stop:
            union.append(range(start, stop))
    return tuple(union)


def pack_frame(kind: int, body: bytes = b"") -> bytes:
    """Encode a frame: type, length of the body, body."""
    return _HEADER.pack(kind, len(body)) + body


class FrameReader:
    """Splits a byte stream into (type, body) pairs. Buffers at most one unfinished frame.

    Parameters
    ----------
    limit
        Longest accepted body, in bytes. The header of a longer one raises at once, so that
        memory stays bounded whatever is sent.
    """

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int) -> None:
        self._buffer = b""
        self._limit = limit

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Append ``data``; return the frames that it completes.

        Raises
        ------
        ProtocolError
            A frame is longer than allowed.
        """
        if self._buffer:
            data = self._buffer + data
        pos, end = 0, len(data)
        frames: list[tuple[int, bytes]] = []
        while end - pos >= 5:
            kind, length = _HEADER.unpack_from(data, pos)
            # Before any of it is buffered: the length is the sender's word only.
            if length > self._limit:
                raise ProtocolError(f"a frame of {length} bytes, at most {self._limit}")
            stop = pos + 5 + length
            if stop > end:
                break
            frames.append((kind, data[pos + 5 : stop]))
            pos = stop
        self._buffer = data[pos:]
        return frames

    @property
    def needed(self) -> int:
        """Bytes missing from the current header or frame. Reading no more leaves what follows."""
        if len(self._buffer) < _HEADER.size:
            return _HEADER.size - len(self._buffer)
        length: int = _HEADER.unpack_from(self._buffer)[1]
        return _HEADER.size + length - len(self._buffer)

    @property
    def unfinished(self) -> bytes:
        """The buffered part of an unfinished frame."""
        return self._buffer


def expect_length(body: bytes, count: int, label: str) -> bytes:
    """Return ``body`` after checking that it has ``count`` bytes."""
    if len(body) != count:
        raise ProtocolError(f"{label}: {len(body)} bytes instead of {count}")
    return body
