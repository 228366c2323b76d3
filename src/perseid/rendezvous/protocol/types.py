"""What a frame is, and the small vocabularies that frames use: NAT kinds, refusals, departures."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple, Protocol, Self

from perseid.rendezvous.protocol.wire import expect_length, pack_frame


class NatMapping(enum.IntEnum):
    """What a NAT does to the local port."""

    UNKNOWN = 0
    NONE = 1
    """The server sees the address that the worker itself has: no NAT."""
    INDEPENDENT = 2
    """Two ports of the server see the same public port."""
    SYMMETRIC = 3
    """They see two: a hole made for one destination does not serve another."""


class NatFiltering(enum.IntEnum):
    """What happens to an unsolicited connection from outside."""

    UNKNOWN = 0
    OPEN = 1
    FILTERED = 2


class NatBehavior(NamedTuple):
    """The kind of NAT that a worker sits behind; one byte on the wire."""

    mapping: NatMapping = NatMapping.UNKNOWN
    filter: NatFiltering = NatFiltering.UNKNOWN

    def to_byte(self) -> int:
        """Mapping in the low four bits, filter in the high four."""
        return self.mapping | self.filter << 4

    @classmethod
    def from_byte(cls, value: int) -> NatBehavior:
        """Unknown values of a newer peer read as UNKNOWN."""
        mapping, filtering = value & 15, value >> 4
        return cls(
            NatMapping(mapping) if mapping <= 3 else NatMapping.UNKNOWN,
            NatFiltering(filtering) if filtering <= 2 else NatFiltering.UNKNOWN,
        )


class RefusalCode(enum.IntEnum):
    """Why a server said no."""

    MALFORMED = 1
    VERSION = 2
    KEY = 3
    WORLD = 4
    """The job has another world size."""
    STALE = 5
    """A newer generation of the job is registered."""
    LIMIT = 6
    DRAINING = 7
    RELAY = 8
    """No relay for this pair: switched off, or one of the two is not registered."""


class DepartureReason(enum.IntEnum):
    """Why a rank is no longer registered."""

    LEFT = 0
    """It said goodbye."""
    CLOSED = 1
    """Its connection ended without a goodbye: the process died."""
    SILENT = 2
    """No heartbeat came for its silence timeout: the process is stopped, or computes and lets no
    other thread run."""
    REPLACED = 3
    """Another process registered the same rank."""


class ControlFrame(Protocol):
    """What every frame can do."""

    KIND: ClassVar[int]

    def pack(self) -> bytes:
        """The frame as it travels."""
        ...

    @classmethod
    def unpack(cls, body: bytes) -> ControlFrame:
        """Read one body; ``ProtocolError`` if it does not fit."""
        ...


@dataclass(frozen=True, slots=True)
class FixedLayoutFrame:
    """Base of the frames whose body is one struct: their fields in order, or nothing."""

    KIND: ClassVar[int]
    LABEL: ClassVar[str]
    """What the frame is called in errors."""
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("")

    def pack(self) -> bytes:
        """The frame as it travels."""
        values = (getattr(self, one.name) for one in fields(self))
        return pack_frame(self.KIND, self.LAYOUT.pack(*values))

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Read one body; ``ProtocolError`` if its length does not fit."""
        return cls(*cls.LAYOUT.unpack(expect_length(body, cls.LAYOUT.size, cls.LABEL)))
