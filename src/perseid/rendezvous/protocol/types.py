"""What every frame can do, and the enumerations in frames: NAT behavior, refusals, departures."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, fields
from functools import cache
from typing import ClassVar, NamedTuple, Protocol, Self

from perseid.rendezvous.protocol.wire import expect_length, pack_frame


class NatMapping(enum.IntEnum):
    """How a NAT chooses the public port of a local port (RFC 4787, section 4.1)."""

    UNKNOWN = 0
    NONE = 1
    """No NAT: the server sees the worker's own address."""
    INDEPENDENT = 2
    """Two ports of the server see the same public address."""
    SYMMETRIC = 3
    """They see two different ones: a hole for one destination does not serve another."""


class NatFiltering(enum.IntEnum):
    """What happens to an unsolicited connection from outside (RFC 4787, section 5)."""

    UNKNOWN = 0
    OPEN = 1
    FILTERED = 2


class NatBehavior(NamedTuple):
    """The NAT in front of a worker, as far as it is known; one byte on the wire."""

    mapping: NatMapping = NatMapping.UNKNOWN
    filter: NatFiltering = NatFiltering.UNKNOWN

    def to_byte(self) -> int:
        """Encode: the mapping in the low four bits, the filter in the high four."""
        return self.mapping | self.filter << 4

    @classmethod
    @cache  # one of 256, and a large job's list of addresses has thousands
    def from_byte(cls, value: int) -> NatBehavior:
        """Decode; values that only a newer peer knows become UNKNOWN."""
        mapping, filtering = value & 15, value >> 4
        return cls(
            NatMapping(mapping) if mapping <= 3 else NatMapping.UNKNOWN,
            NatFiltering(filtering) if filtering <= 2 else NatFiltering.UNKNOWN,
        )


class RefusalCode(enum.IntEnum):
    """Why a server refuses a request."""

    MALFORMED = 1
    VERSION = 2
    KEY = 3
    WORLD = 4
    """The job is registered with another world size."""
    STALE = 5
    """A newer generation of the job is registered."""
    LIMIT = 6
    DRAINING = 7
    RELAY = 8
    """The pair is not relayed: the relay is off, or one of the two ranks is not registered."""


class DepartureReason(enum.IntEnum):
    """Why a rank is no longer registered."""

    LEFT = 0
    """It deregistered: its work is done."""
    CLOSED = 1
    """Its connection ended without deregistration: the process died."""
    SILENT = 2
    """It sent no heartbeat for its silence timeout: the process is stopped, or computes without
    letting its other threads run."""
    REPLACED = 3
    """Another process registered the same rank."""


class ControlFrame(Protocol):
    """A frame of the connection between a worker and the server."""

    KIND: ClassVar[int]

    def pack(self) -> bytes: ...

    @classmethod
    def unpack(cls, body: bytes) -> ControlFrame:
        """Decode a body; ``ProtocolError`` if it is invalid."""
        ...


@dataclass(frozen=True, slots=True)
class FixedLayoutFrame:
    """Base of the frames whose body is empty, or one struct of the fields in their order."""

    KIND: ClassVar[int]
    LABEL: ClassVar[str]
    """Name of the frame in error messages."""
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("")

    def pack(self) -> bytes:
        values = (getattr(self, one.name) for one in fields(self))
        return pack_frame(self.KIND, self.LAYOUT.pack(*values))

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Decode a body; ``ProtocolError`` if its length is wrong."""
        return cls(*cls.LAYOUT.unpack(expect_length(body, cls.LAYOUT.size, cls.LABEL)))
