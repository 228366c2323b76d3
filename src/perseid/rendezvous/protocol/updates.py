"""Frames after the welcome: who is there, who is lost, heartbeats, calls."""

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

# --- after the handshake --------------------------------------------------------------------

_PEER = struct.Struct("!I8sBB")


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """What the server tells of a rank; one record of ``Peers``."""

    rank: int
    instance: bytes
    nat: NatBehavior
    public: Address
    """As the server sees it."""
    private: tuple[Address, ...] = ()
    """As the worker sees itself."""

    def pack(self) -> bytes:
        """One record, without a frame's header."""
        fixed = _PEER.pack(self.rank, self.instance, self.nat.to_byte(), len(self.private))
        return fixed + pack_address(self.public) + b"".join(map(pack_address, self.private))

    @classmethod
    def read(cls, reader: BodyReader) -> PeerRecord:
        """The record at the cursor."""
        rank, instance, nat, count = _PEER.unpack(reader.take(_PEER.size, "record"))
        if count > MAX_CANDIDATES:
            raise ProtocolError(f"peers: {count} private addresses, at most {MAX_CANDIDATES}")
        public = reader.address("public address")
        private = tuple(reader.address("private address") for _ in range(count))
        return cls(rank, instance, NatBehavior.from_byte(nat), public, private)


@dataclass(frozen=True, slots=True)
class Peers:
    """Ranks of the job that are registered."""

    KIND: ClassVar[int] = 0x14
    peers: tuple[PeerRecord, ...]

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_peers([peer.pack() for peer in self.peers])

    @classmethod
    def unpack(cls, body: bytes) -> Peers:
        """Four bytes of count, then records."""
        reader = BodyReader(body, "peers")
        count = reader.number(U32, "count")
        if count > MAX_WORLD:
            raise ProtocolError(f"peers: {count} records, at most {MAX_WORLD}")
        peers = tuple(PeerRecord.read(reader) for _ in range(count))
        reader.end()
        return cls(peers)


def pack_peers(records: list[bytes]) -> bytes:
    """``Peers`` from packed records, as the server keeps them."""
    return pack_frame(Peers.KIND, U32.pack(len(records)) + b"".join(records))


_GONE = struct.Struct("!I8sB")


class Departure(NamedTuple):
    """One rank that is no longer registered."""

    rank: int
    instance: bytes
    reason: DepartureReason


@dataclass(frozen=True, slots=True)
class Departures:
    """Ranks that are no longer registered, told to all others of the job."""

    KIND: ClassVar[int] = 0x15
    departures: tuple[Departure, ...]

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, b"".join(_GONE.pack(*one) for one in self.departures))

    @classmethod
    def unpack(cls, body: bytes) -> Departures:
        """Records of 13 bytes."""
        if len(body) % _GONE.size:
            raise ProtocolError(f"lost ranks: {len(body)} bytes are no multiple of {_GONE.size}")
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
    """Send these ranks' addresses: those registered now, the others as they come."""

    KIND: ClassVar[int] = 0x16
    ranges: tuple[range, ...]

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, pack_ranges(self.ranges))

    @classmethod
    def unpack(cls, body: bytes) -> Subscribe:
        """Ranges of ranks."""
        reader = BodyReader(body, "wanted ranks")
        ranges = reader.ranges("ranges")
        reader.end()
        return cls(ranges)


@dataclass(frozen=True, slots=True)
class MissingRequest(FixedLayoutFrame):
    """Who is not registered? Answered by ``MissingRanks``."""

    KIND: ClassVar[int] = 0x17
    LABEL: ClassVar[str] = "question for missing ranks"


@dataclass(frozen=True, slots=True)
class MissingRanks:
    """The ranks that are not registered now."""

    KIND: ClassVar[int] = 0x18
    ranges: tuple[range, ...]

    def pack(self) -> bytes:
        """The frame as it travels."""
        parts = [RANGE.pack(part.start, len(part)) for part in self.ranges]
        return pack_frame(self.KIND, b"".join(parts))

    @classmethod
    def unpack(cls, body: bytes) -> MissingRanks:
        """(first, count) pairs up to the end."""
        if len(body) % RANGE.size:
            raise ProtocolError(f"missing ranks: {len(body)} bytes are no multiple of 8")
        pairs = RANGE.iter_unpack(body)
        return cls(tuple(range(first, first + count) for first, count in pairs))


@dataclass(frozen=True, slots=True)
class Complete(FixedLayoutFrame):
    """All ranks of the job are registered now."""

    KIND: ClassVar[int] = 0x19
    LABEL: ClassVar[str] = "completeness"
    LAYOUT: ClassVar[struct.Struct] = U32
    world: int


@dataclass(frozen=True, slots=True)
class Superseded(FixedLayoutFrame):
    """A newer registration took this rank, or a newer generation the job; the connection ends."""

    KIND: ClassVar[int] = 0x1A
    LABEL: ClassVar[str] = "replacement"
    LAYOUT: ClassVar[struct.Struct] = U32
    generation: int
    """Of the newer registration."""


@dataclass(frozen=True, slots=True)
class Heartbeat(FixedLayoutFrame):
    """I am alive; sent by the client, echoed by the server."""

    KIND: ClassVar[int] = 0x1B
    LABEL: ClassVar[str] = "heartbeat"
    LAYOUT: ClassVar[struct.Struct] = U32
    token: int = 0
    """Any number; the echo bears the same, so the client can measure the round trip."""


@dataclass(frozen=True, slots=True)
class NatReport:
    """The worker found out behind which kind of NAT it sits."""

    KIND: ClassVar[int] = 0x1C
    nat: NatBehavior

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, bytes((self.nat.to_byte(),)))

    @classmethod
    def unpack(cls, body: bytes) -> NatReport:
        """One byte."""
        return cls(NatBehavior.from_byte(expect_length(body, 1, "NAT kind")[0]))


@dataclass(frozen=True, slots=True)
class ReachabilityRequest(FixedLayoutFrame):
    """Try to connect to my public address; answered by ``ReachabilityResult``."""

    KIND: ClassVar[int] = 0x1D
    LABEL: ClassVar[str] = "request to connect back"


@dataclass(frozen=True, slots=True)
class ReachabilityResult:
    """What became of the server's connection to the worker."""

    KIND: ClassVar[int] = 0x1E
    filter: NatFiltering

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, bytes((self.filter,)))

    @classmethod
    def unpack(cls, body: bytes) -> ReachabilityResult:
        """One byte."""
        value = expect_length(body, 1, "result of connecting back")[0]
        return cls(NatFiltering(value) if value <= 2 else NatFiltering.UNKNOWN)


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """Client to server: I am connecting to these ranks; server to each: this rank calls you."""

    KIND: ClassVar[int] = 0x1F
    ranks: tuple[int, ...]

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, b"".join(map(U32.pack, self.ranks)))

    @classmethod
    def unpack(cls, body: bytes) -> ConnectRequest:
        """Ranks of four bytes up to the end."""
        if len(body) % 4 or len(body) > 4 * MAX_RANGES:
            raise ProtocolError(f"call: {len(body)} bytes are no list of ranks")
        return cls(tuple(rank for (rank,) in U32.iter_unpack(body)))


@dataclass(frozen=True, slots=True)
class RelayInvite(FixedLayoutFrame):
    """The peer waits for you at the relay."""

    KIND: ClassVar[int] = 0x20
    LABEL: ClassVar[str] = "invitation"
    LAYOUT: ClassVar[struct.Struct] = U32
    rank: int


@dataclass(frozen=True, slots=True)
class RelayReady(FixedLayoutFrame):
    """Both ends are there; all bytes that follow are the peer's."""

    KIND: ClassVar[int] = 0x21
    LABEL: ClassVar[str] = "relay's readiness"


@dataclass(frozen=True, slots=True)
class Deregister(FixedLayoutFrame):
    """Goodbye: the rank is done, not lost."""

    KIND: ClassVar[int] = 0x22
    LABEL: ClassVar[str] = "goodbye"


@dataclass(frozen=True, slots=True)
class Draining(FixedLayoutFrame):
    """The server is going down; connections between workers stay."""

    KIND: ClassVar[int] = 0x23
    LABEL: ClassVar[str] = "drain notice"


@dataclass(frozen=True, slots=True)
class FailureReport:
    """Why this rank gives up, for all others; empty: pass such reports on to me.

    Sent only to a server whose ``Welcome`` says that it takes them.
    """

    KIND: ClassVar[int] = 0x24
    report: bytes = b""
    """At most `MAX_REPORT_BYTES`; what they mean is the ranks' business."""

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, self.report)

    @classmethod
    def unpack(cls, body: bytes) -> FailureReport:
        """Any bytes up to the limit."""
        if len(body) > MAX_REPORT_BYTES:
            raise ProtocolError(f"failure report: {len(body)} bytes, at most {MAX_REPORT_BYTES}")
        return cls(body)


_FAILURE = struct.Struct("!I8s")


@dataclass(frozen=True, slots=True)
class RankFailure:
    """A rank gave up, and says why; only to members that asked with an empty `FailureReport`.

    That is answered by all reports so far and then an empty one of the member itself.
    """

    KIND: ClassVar[int] = 0x25
    rank: int
    instance: bytes
    report: bytes

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, _FAILURE.pack(self.rank, self.instance) + self.report)

    @classmethod
    def unpack(cls, body: bytes) -> RankFailure:
        """Rank and instance, then the report."""
        if len(body) < _FAILURE.size:
            raise ProtocolError(f"failure of a rank: {len(body)} bytes")
        rank, instance = _FAILURE.unpack_from(body)
        return cls(rank, instance, body[_FAILURE.size :])
