"""Frames after the welcome: peers, departures, heartbeats, and requests between ranks."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from perseid.rendezvous.protocol.types import (
    DepartureReason,
    FixedLayoutFrame,
    NatBehavior,
    NatFiltering,
)
from perseid.rendezvous.protocol.wire import (
    MAX_CANDIDATES,
    MAX_RANGES,
    MAX_WORLD,
    RANGE,
    U32,
    Address,
    BodyReader,
    ProtocolError,
    expect_length,
    pack_address,
    pack_frame,
    pack_ranges,
)

MAX_REPORT_BYTES = 2048
"""Longest report of a failure."""


_PEER = struct.Struct("!I8sBB")


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """One registered rank as described by the server; a record of ``Peers``."""

    rank: int
    instance: bytes
    nat: NatBehavior
    public: Address
    """The address that the server sees."""
    private: tuple[Address, ...] = ()
    """Further addresses that the worker claims to have."""

    def pack(self) -> bytes:
        """Encode the record, without a header."""
        fixed = _PEER.pack(self.rank, self.instance, self.nat.to_byte(), len(self.private))
        return fixed + pack_address(self.public) + b"".join(map(pack_address, self.private))

    @classmethod
    def read(cls, reader: BodyReader) -> PeerRecord:
        """Decode the record at the reader's position."""
        rank, instance, nat, count = _PEER.unpack(reader.take(_PEER.size, "record"))
        if count > MAX_CANDIDATES:
            raise ProtocolError(f"peers: {count} private addresses, at most {MAX_CANDIDATES}")
        public = reader.address("public address")
        private = tuple(reader.address("private address") for _ in range(count))
        return cls(rank, instance, NatBehavior.from_byte(nat), public, private)


@dataclass(frozen=True, slots=True)
class Peers:
    """Registered ranks of the job."""

    KIND: ClassVar[int] = 0x14
    peers: tuple[PeerRecord, ...]

    def pack(self) -> bytes:
        return pack_peers([peer.pack() for peer in self.peers])

    @classmethod
    def unpack(cls, body: bytes) -> Peers:
        """Decode a body: four bytes of count, then the records."""
        reader = BodyReader(body, "peers")
        count = reader.number(U32, "count")
        if count > MAX_WORLD:
            raise ProtocolError(f"peers: {count} records, at most {MAX_WORLD}")
        peers = tuple(PeerRecord.read(reader) for _ in range(count))
        reader.end()
        return cls(peers)


def pack_peers(records: list[bytes]) -> bytes:
    """Encode ``Peers`` from encoded records, which the server keeps."""
    return pack_frame(Peers.KIND, U32.pack(len(records)) + b"".join(records))


_GONE = struct.Struct("!I8sB")


class Departure(NamedTuple):
    """A rank that is no longer registered."""

    rank: int
    instance: bytes
    reason: DepartureReason


@dataclass(frozen=True, slots=True)
class Departures:
    """Ranks that are no longer registered; sent to all others of the job."""

    KIND: ClassVar[int] = 0x15
    departures: tuple[Departure, ...]

    def pack(self) -> bytes:
        return pack_frame(self.KIND, b"".join(_GONE.pack(*one) for one in self.departures))

    @classmethod
    def unpack(cls, body: bytes) -> Departures:
        """Decode a body: records of 13 bytes."""
        if len(body) % _GONE.size:
            raise ProtocolError(f"lost ranks: {len(body)} bytes are not a multiple of {_GONE.size}")
        known = {member.value for member in DepartureReason}
        return cls(
            tuple(
                Departure(
                    rank, instance, DepartureReason(why) if why in known else DepartureReason.CLOSED
                )
                for rank, instance, why in _GONE.iter_unpack(body)
            )
        )


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Request for the addresses of ranks: now if they are registered, else once they are."""

    KIND: ClassVar[int] = 0x16
    ranges: tuple[range, ...]

    def pack(self) -> bytes:
        return pack_frame(self.KIND, pack_ranges(self.ranges))

    @classmethod
    def unpack(cls, body: bytes) -> Subscribe:
        reader = BodyReader(body, "subscription")
        ranges = reader.ranges("ranges")
        reader.end()
        return cls(ranges)


@dataclass(frozen=True, slots=True)
class MissingRequest(FixedLayoutFrame):
    """Question which ranks are not registered; answered by ``MissingRanks``."""

    KIND: ClassVar[int] = 0x17
    LABEL: ClassVar[str] = "request for missing ranks"


@dataclass(frozen=True, slots=True)
class MissingRanks:
    """Ranks that are not registered at this moment."""

    KIND: ClassVar[int] = 0x18
    ranges: tuple[range, ...]

    def pack(self) -> bytes:
        parts = [RANGE.pack(part.start, len(part)) for part in self.ranges]
        return pack_frame(self.KIND, b"".join(parts))

    @classmethod
    def unpack(cls, body: bytes) -> MissingRanks:
        """Decode a body: (first, count) pairs up to its end."""
        if len(body) % RANGE.size:
            raise ProtocolError(f"missing ranks: {len(body)} bytes are not a multiple of 8")
        pairs = RANGE.iter_unpack(body)
        return cls(tuple(range(first, first + count) for first, count in pairs))


@dataclass(frozen=True, slots=True)
class Complete(FixedLayoutFrame):
    """All ranks of the job are registered."""

    KIND: ClassVar[int] = 0x19
    LABEL: ClassVar[str] = "complete notice"
    LAYOUT: ClassVar[struct.Struct] = U32
    world: int


@dataclass(frozen=True, slots=True)
class Superseded(FixedLayoutFrame):
    """A newer registration of the rank, or a newer generation, replaced this one."""

    KIND: ClassVar[int] = 0x1A
    LABEL: ClassVar[str] = "superseded notice"
    LAYOUT: ClassVar[struct.Struct] = U32
    generation: int
    """Generation of the newer registration."""


@dataclass(frozen=True, slots=True)
class Heartbeat(FixedLayoutFrame):
    """Sign of life, sent by the client and echoed by the server."""

    KIND: ClassVar[int] = 0x1B
    LABEL: ClassVar[str] = "heartbeat"
    LAYOUT: ClassVar[struct.Struct] = U32
    token: int = 0
    """Any number; the echo has the same, so that the client can measure the round trip."""


@dataclass(frozen=True, slots=True)
class NatReport:
    """What the worker found out about the NAT in front of it."""

    KIND: ClassVar[int] = 0x1C
    nat: NatBehavior

    def pack(self) -> bytes:
        return pack_frame(self.KIND, bytes((self.nat.to_byte(),)))

    @classmethod
    def unpack(cls, body: bytes) -> NatReport:
        """Decode a body of one byte."""
        return cls(NatBehavior.from_byte(expect_length(body, 1, "NAT kind")[0]))


@dataclass(frozen=True, slots=True)
class ReachabilityRequest(FixedLayoutFrame):
    """Request to connect to the sender's public address; answered by ``ReachabilityResult``."""

    KIND: ClassVar[int] = 0x1D
    LABEL: ClassVar[str] = "reachability request"


@dataclass(frozen=True, slots=True)
class ReachabilityResult:
    """Whether the server could connect to the worker's public address."""

    KIND: ClassVar[int] = 0x1E
    filter: NatFiltering

    def pack(self) -> bytes:
        return pack_frame(self.KIND, bytes((self.filter,)))

    @classmethod
    def unpack(cls, body: bytes) -> ReachabilityResult:
        """Decode a body of one byte."""
        value = expect_length(body, 1, "reachability result")[0]
        return cls(NatFiltering(value) if value <= 2 else NatFiltering.UNKNOWN)


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """Request to connect to the sender, which is connecting, too.

    From a client: to these ranks. From the server: by this rank.
    """

    KIND: ClassVar[int] = 0x1F
    ranks: tuple[int, ...]

    def pack(self) -> bytes:
        return pack_frame(self.KIND, b"".join(map(U32.pack, self.ranks)))

    @classmethod
    def unpack(cls, body: bytes) -> ConnectRequest:
        """Decode a body: ranks of four bytes up to its end."""
        if len(body) % 4 or len(body) > 4 * MAX_RANGES:
            raise ProtocolError(f"connect request: {len(body)} bytes are not a list of ranks")
        return cls(tuple(rank for (rank,) in U32.iter_unpack(body)))


@dataclass(frozen=True, slots=True)
class RelayInvite(FixedLayoutFrame):
    """A peer waits for this worker at the relay."""

    KIND: ClassVar[int] = 0x20
    LABEL: ClassVar[str] = "relay invitation"
    LAYOUT: ClassVar[struct.Struct] = U32
    rank: int


@dataclass(frozen=True, slots=True)
class RelayReady(FixedLayoutFrame):
    """Both ends of a relayed stream are connected; all further bytes are the peer's."""

    KIND: ClassVar[int] = 0x21
    LABEL: ClassVar[str] = "relay-ready notice"


@dataclass(frozen=True, slots=True)
class Deregister(FixedLayoutFrame):
    """The rank is done and must not count as lost."""

    KIND: ClassVar[int] = 0x22
    LABEL: ClassVar[str] = "deregistration"


@dataclass(frozen=True, slots=True)
class Draining(FixedLayoutFrame):
    """The server is shutting down; connections between workers stay."""

    KIND: ClassVar[int] = 0x23
    LABEL: ClassVar[str] = "drain notice"


@dataclass(frozen=True, slots=True)
class FailureReport:
    """Why this rank gives up, for all others; an empty one asks for the others' reports.

    Sent only to a server whose ``Welcome`` says that it takes them.
    """

    KIND: ClassVar[int] = 0x24
    report: bytes = b""
    """At most `MAX_REPORT_BYTES`; their meaning is up to the ranks."""

    def pack(self) -> bytes:
        return pack_frame(self.KIND, self.report)

    @classmethod
    def unpack(cls, body: bytes) -> FailureReport:
        """Decode a body of any content up to the limit."""
        if len(body) > MAX_REPORT_BYTES:
            raise ProtocolError(f"failure report: {len(body)} bytes, at most {MAX_REPORT_BYTES}")
        return cls(body)


_FAILURE = struct.Struct("!I8s")


@dataclass(frozen=True, slots=True)
class RankFailure:
    """A rank gave up, and why; sent to members that asked with an empty `FailureReport`.

    That is answered by all reports so far and then an empty one of the member itself.
    """

    KIND: ClassVar[int] = 0x25
    rank: int
    instance: bytes
    report: bytes

    def pack(self) -> bytes:
        return pack_frame(self.KIND, _FAILURE.pack(self.rank, self.instance) + self.report)

    @classmethod
    def unpack(cls, body: bytes) -> RankFailure:
        """Decode a body: rank and instance, then the report."""
        if len(body) < _FAILURE.size:
            raise ProtocolError(f"failure of a rank: {len(body)} bytes")
        rank, instance = _FAILURE.unpack_from(body)
        return cls(rank, instance, body[_FAILURE.size :])
