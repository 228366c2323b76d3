"""The wire format of the rendezvous: bytes in, frames out; no socket anywhere.

A connection opens with ``MAGIC`` and one opening frame (``Register``, ``Relay`` or ``Probe``);
from then on both sides send frames: one byte of type, four bytes of length, the body. Numbers are
in network byte order. docs/reference/rendezvous-protocol.md describes each byte.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from perseid.rendezvous.wire import (
    MAC_BYTES,
    MAX_CANDIDATES,
    MAX_JOB_BYTES,
    MAX_RANGES,
    MAX_WORLD,
    NONCE_BYTES,
    RANGE,
    U16,
    U32,
    Address,
    ProtocolError,
    Reader,
    exactly,
    pack_address,
    pack_frame,
    pack_ranges,
    pack_text,
)

MAGIC = b"\x93PERSEID"
"""The first bytes of each connection; 0x93 cannot begin UTF-8 text, so no pairing name does."""
VERSION = 1
"""Version of the opening frames; a server refuses those that it does not speak."""


class Mapping(enum.IntEnum):
    """What a NAT does to the local port."""

    UNKNOWN = 0
    NONE = 1
    """The server sees the address that the worker itself has: no NAT."""
    INDEPENDENT = 2
    """Two destinations see the same public port."""
    SYMMETRIC = 3
    """Two destinations see two ports: a hole made for one does not serve another."""


class Filter(enum.IntEnum):
    """What happens to an unsolicited connection from outside."""

    UNKNOWN = 0
    OPEN = 1
    FILTERED = 2


class Nat(NamedTuple):
    """The kind of NAT that a worker sits behind; one byte on the wire."""

    mapping: Mapping = Mapping.UNKNOWN
    filter: Filter = Filter.UNKNOWN

    def to_byte(self) -> int:
        """Mapping in the low four bits, filter in the high four."""
        return self.mapping | self.filter << 4

    @classmethod
    def from_byte(cls, value: int) -> Nat:
        """Unknown values of a newer peer read as UNKNOWN."""
        mapping, filtering = value & 15, value >> 4
        return cls(
            Mapping(mapping) if mapping <= 3 else Mapping.UNKNOWN,
            Filter(filtering) if filtering <= 2 else Filter.UNKNOWN,
        )


class Refusal(enum.IntEnum):
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


class Departure(enum.IntEnum):
    """Why a rank is no longer registered."""

    LEFT = 0
    """It said goodbye."""
    CLOSED = 1
    """Its connection ended without a goodbye: the process died."""
    SILENT = 2
    """Its heartbeat stopped: the process is stopped or unreachable."""
    REPLACED = 3
    """Another process registered the same rank."""


class Frame(Protocol):
    """What every frame can do."""

    KIND: ClassVar[int]

    def pack(self) -> bytes:
        """The frame as it travels."""
        ...

    @classmethod
    def unpack(cls, body: bytes) -> Frame:
        """Read one body; ``ProtocolError`` if it does not fit."""
        ...


# --- opening frames, client to server -------------------------------------------------------

_REGISTER = struct.Struct("!BBIIIH8s16s")


@dataclass(frozen=True, slots=True)
class Register:
    """One worker's registration."""

    KIND: ClassVar[int] = 0x01
    job: str
    """Name of the job, at most ``MAX_JOB_BYTES`` of UTF-8."""
    rank: int
    """0 to ``world - 1``."""
    world: int
    """Number of ranks of the job."""
    generation: int
    """Attempt of the whole job; a newer one ends the older."""
    instance: bytes
    """8 random bytes of this process: the same after a reconnection, another after a retry."""
    nonce: bytes
    """16 fresh random bytes of this connection."""
    heartbeat: int = 1500
    """Milliseconds of silence after which the rank counts as lost; 0: only a closed connection."""
    candidates: tuple[Address, ...] = ()
    """The worker's own addresses."""
    interest: tuple[range, ...] = ()
    """Ranks whose addresses are to be sent as they come."""
    version: int = VERSION

    def pack(self) -> bytes:
        """The frame as it travels."""
        fixed = _REGISTER.pack(
            self.version,
            len(self.candidates),
            self.world,
            self.rank,
            self.generation,
            self.heartbeat,
            self.instance,
            self.nonce,
        )
        addresses = b"".join(map(pack_address, self.candidates))
        body = fixed + pack_text(self.job) + addresses + pack_ranges(self.interest)
        return pack_frame(self.KIND, body)

    @classmethod
    def unpack(cls, body: bytes) -> Register:
        """Check lengths and bounds."""
        reader = Reader(body, "registration")
        fixed = _REGISTER.unpack(reader.take(_REGISTER.size, "fixed part"))
        version, count, world, rank, generation, heartbeat, instance, nonce = fixed
        if count > MAX_CANDIDATES:
            raise ProtocolError(f"registration: {count} candidates, at most {MAX_CANDIDATES}")
        if not 0 < world <= MAX_WORLD or rank >= world:
            raise ProtocolError(f"registration: rank {rank} in a world of {world}")
        job = reader.text("job", MAX_JOB_BYTES)
        if not job:
            raise ProtocolError("registration: the job has no name")
        candidates = tuple(reader.address("candidate") for _ in range(count))
        interest = reader.ranges("interest")
        reader.end()
        return cls(
            job, rank, world, generation, instance, nonce, heartbeat, candidates, interest, version
        )


_RELAY = struct.Struct("!BIII8s16s")


@dataclass(frozen=True, slots=True)
class Relay:
    """Ask for a stream to a peer through the server; both of the pair ask."""

    KIND: ClassVar[int] = 0x02
    job: str
    rank: int
    """Of who asks; it must be registered with this instance."""
    peer: int
    """Rank at the other end."""
    generation: int
    instance: bytes
    nonce: bytes
    version: int = VERSION

    def pack(self) -> bytes:
        """The frame as it travels."""
        fixed = _RELAY.pack(
            self.version, self.rank, self.peer, self.generation, self.instance, self.nonce
        )
        return pack_frame(self.KIND, fixed + pack_text(self.job))

    @classmethod
    def unpack(cls, body: bytes) -> Relay:
        """Check lengths and bounds."""
        reader = Reader(body, "relay request")
        version, rank, peer, generation, instance, nonce = _RELAY.unpack(
            reader.take(_RELAY.size, "fixed part")
        )
        if rank == peer:
            raise ProtocolError(f"relay request: rank {rank} asks for itself")
        job = reader.text("job", MAX_JOB_BYTES)
        reader.end()
        return cls(job, rank, peer, generation, instance, nonce, version)


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask which address the server sees; answered by ``Observed`` on either port."""

    KIND: ClassVar[int] = 0x03
    version: int = VERSION

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, bytes((self.version,)))

    @classmethod
    def unpack(cls, body: bytes) -> Probe:
        """One byte."""
        reader = Reader(body, "probe")
        version = reader.byte("version")
        reader.end()
        return cls(version)


# --- the handshake --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Challenge:
    """The server's nonce: prove that you have the job's key."""

    KIND: ClassVar[int] = 0x10
    nonce: bytes

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, self.nonce)

    @classmethod
    def unpack(cls, body: bytes) -> Challenge:
        """16 bytes."""
        return cls(exactly(body, NONCE_BYTES, "challenge"))


@dataclass(frozen=True, slots=True)
class Proof:
    """HMAC over the opening frame and both nonces (see ``auth``)."""

    KIND: ClassVar[int] = 0x11
    mac: bytes

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, self.mac)

    @classmethod
    def unpack(cls, body: bytes) -> Proof:
        """32 bytes."""
        return cls(exactly(body, MAC_BYTES, "proof"))


_WELCOME = struct.Struct("!BHH32s")


@dataclass(frozen=True, slots=True)
class Welcome:
    """The registration stands."""

    KIND: ClassVar[int] = 0x12
    address: Address
    """The worker's public address: what the server sees."""
    mac: bytes = bytes(MAC_BYTES)
    """The server's own proof; zeros in open mode."""
    relay: bool = False
    """Whether this server relays."""
    probe_port: int = 0
    """A second port that answers ``Probe``; 0: none."""
    heartbeat: int = 0
    """Milliseconds of silence after which the rank counts as lost, as the server grants it."""

    def pack(self) -> bytes:
        """The frame as it travels."""
        fixed = _WELCOME.pack(self.relay, self.probe_port, self.heartbeat, self.mac)
        return pack_frame(self.KIND, fixed + pack_address(self.address))

    @classmethod
    def unpack(cls, body: bytes) -> Welcome:
        """Fixed part, then the address."""
        reader = Reader(body, "welcome")
        relay, probe_port, heartbeat, mac = _WELCOME.unpack(
            reader.take(_WELCOME.size, "fixed part")
        )
        address = reader.address("address")
        reader.end()
        return cls(address, mac, bool(relay), probe_port, heartbeat)


@dataclass(frozen=True, slots=True)
class Refused:
    """No, with the reason; the connection ends."""

    KIND: ClassVar[int] = 0x13
    code: Refusal
    reason: str
    """One sentence, at most 255 bytes of UTF-8."""

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, bytes((self.code,)) + pack_text(self.reason))

    @classmethod
    def unpack(cls, body: bytes) -> Refused:
        """Code and sentence."""
        reader = Reader(body, "refusal")
        code = reader.byte("code")
        reason = reader.text("reason", 255)
        reader.end()
        known = {member.value for member in Refusal}
        return cls(Refusal(code) if code in known else Refusal.MALFORMED, reason)


@dataclass(frozen=True, slots=True)
class Observed:
    """Answer to ``Probe``."""

    KIND: ClassVar[int] = 0x04
    address: Address
    """What the server sees."""
    probe_port: int = 0
    """Its second port; 0: none."""
    keyed: bool = False
    """Whether registrations need a job key."""

    def pack(self) -> bytes:
        """The frame as it travels."""
        body = bytes((self.keyed,)) + U16.pack(self.probe_port) + pack_address(self.address)
        return pack_frame(self.KIND, body)

    @classmethod
    def unpack(cls, body: bytes) -> Observed:
        """Flag, port, address."""
        reader = Reader(body, "observed address")
        keyed = bool(reader.byte("keyed"))
        port = reader.number(U16, "probe port")
        address = reader.address("address")
        reader.end()
        return cls(address, port, keyed)


# --- after the handshake --------------------------------------------------------------------

_PEER = struct.Struct("!I8sBB")


@dataclass(frozen=True, slots=True)
class Peer:
    """What the server tells of a rank; one record of ``Peers``."""

    rank: int
    instance: bytes
    nat: Nat
    public: Address
    """As the server sees it."""
    private: tuple[Address, ...] = ()
    """As the worker sees itself."""

    def pack(self) -> bytes:
        """One record, without a frame's header."""
        fixed = _PEER.pack(self.rank, self.instance, self.nat.to_byte(), len(self.private))
        return fixed + pack_address(self.public) + b"".join(map(pack_address, self.private))

    @classmethod
    def read(cls, reader: Reader) -> Peer:
        """The record at the cursor."""
        rank, instance, nat, count = _PEER.unpack(reader.take(_PEER.size, "record"))
        public = reader.address("public address")
        private = tuple(reader.address("private address") for _ in range(count))
        return cls(rank, instance, Nat.from_byte(nat), public, private)


@dataclass(frozen=True, slots=True)
class Peers:
    """Ranks of the job that are registered."""

    KIND: ClassVar[int] = 0x14
    peers: tuple[Peer, ...]

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_peers([peer.pack() for peer in self.peers])

    @classmethod
    def unpack(cls, body: bytes) -> Peers:
        """Four bytes of count, then records."""
        reader = Reader(body, "peers")
        count = reader.number(U32, "count")
        if count > MAX_WORLD:
            raise ProtocolError(f"peers: {count} records, at most {MAX_WORLD}")
        peers = tuple(Peer.read(reader) for _ in range(count))
        reader.end()
        return cls(peers)


def pack_peers(records: list[bytes]) -> bytes:
    """``Peers`` from packed records, as the server keeps them."""
    return pack_frame(Peers.KIND, U32.pack(len(records)) + b"".join(records))


_GONE = struct.Struct("!I8sB")


class Gone(NamedTuple):
    """One rank that is no longer registered."""

    rank: int
    instance: bytes
    reason: Departure


@dataclass(frozen=True, slots=True)
class Lost:
    """Ranks that are no longer registered, told to all others of the job."""

    KIND: ClassVar[int] = 0x15
    gone: tuple[Gone, ...]

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, b"".join(_GONE.pack(*one) for one in self.gone))

    @classmethod
    def unpack(cls, body: bytes) -> Lost:
        """Records of 13 bytes."""
        if len(body) % _GONE.size:
            raise ProtocolError(f"lost ranks: {len(body)} bytes are no multiple of {_GONE.size}")
        known = {member.value for member in Departure}
        return cls(
            tuple(
                Gone(rank, instance, Departure(why) if why in known else Departure.CLOSED)
                for rank, instance, why in _GONE.iter_unpack(body)
            )
        )


@dataclass(frozen=True, slots=True)
class Want:
    """Send these ranks' addresses: those registered now, the others as they come."""

    KIND: ClassVar[int] = 0x16
    ranges: tuple[range, ...]

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, pack_ranges(self.ranges))

    @classmethod
    def unpack(cls, body: bytes) -> Want:
        """Ranges of ranks."""
        reader = Reader(body, "wanted ranks")
        ranges = reader.ranges("ranges")
        reader.end()
        return cls(ranges)


@dataclass(frozen=True, slots=True)
class AskMissing:
    """Who is not registered? Answered by ``Missing``."""

    KIND: ClassVar[int] = 0x17

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND)

    @classmethod
    def unpack(cls, body: bytes) -> AskMissing:
        """Empty."""
        exactly(body, 0, "question for missing ranks")
        return cls()


@dataclass(frozen=True, slots=True)
class Missing:
    """The ranks that are not registered now."""

    KIND: ClassVar[int] = 0x18
    ranges: tuple[range, ...]

    def pack(self) -> bytes:
        """The frame as it travels."""
        parts = [RANGE.pack(part.start, len(part)) for part in self.ranges]
        return pack_frame(self.KIND, b"".join(parts))

    @classmethod
    def unpack(cls, body: bytes) -> Missing:
        """(first, count) pairs up to the end."""
        if len(body) % RANGE.size:
            raise ProtocolError(f"missing ranks: {len(body)} bytes are no multiple of 8")
        pairs = RANGE.iter_unpack(body)
        return cls(tuple(range(first, first + count) for first, count in pairs))


@dataclass(frozen=True, slots=True)
class Complete:
    """All ranks of the job are registered now."""

    KIND: ClassVar[int] = 0x19
    world: int

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, U32.pack(self.world))

    @classmethod
    def unpack(cls, body: bytes) -> Complete:
        """Four bytes."""
        return cls(U32.unpack(exactly(body, 4, "completeness"))[0])


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer registration took this rank, or a newer generation the job; the connection ends."""

    KIND: ClassVar[int] = 0x1A
    generation: int
    """Of the newer registration."""

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, U32.pack(self.generation))

    @classmethod
    def unpack(cls, body: bytes) -> Superseded:
        """Four bytes."""
        return cls(U32.unpack(exactly(body, 4, "replacement"))[0])


@dataclass(frozen=True, slots=True)
class Beat:
    """I am alive; sent by the client, echoed by the server."""

    KIND: ClassVar[int] = 0x1B
    token: int = 0
    """Any number; the echo bears the same, so the client can measure the round trip."""

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, U32.pack(self.token))

    @classmethod
    def unpack(cls, body: bytes) -> Beat:
        """Four bytes."""
        return cls(U32.unpack(exactly(body, 4, "heartbeat"))[0])


@dataclass(frozen=True, slots=True)
class TellNat:
    """The worker found out behind which kind of NAT it sits."""

    KIND: ClassVar[int] = 0x1C
    nat: Nat

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, bytes((self.nat.to_byte(),)))

    @classmethod
    def unpack(cls, body: bytes) -> TellNat:
        """One byte."""
        return cls(Nat.from_byte(exactly(body, 1, "NAT kind")[0]))


@dataclass(frozen=True, slots=True)
class AskBack:
    """Connect to my public address, to see whether that is open; answered by ``Back``."""

    KIND: ClassVar[int] = 0x1D

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND)

    @classmethod
    def unpack(cls, body: bytes) -> AskBack:
        """Empty."""
        exactly(body, 0, "request to connect back")
        return cls()


@dataclass(frozen=True, slots=True)
class Back:
    """What became of the server's connection to the worker."""

    KIND: ClassVar[int] = 0x1E
    filter: Filter

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, bytes((self.filter,)))

    @classmethod
    def unpack(cls, body: bytes) -> Back:
        """One byte."""
        value = exactly(body, 1, "result of connecting back")[0]
        return cls(Filter(value) if value <= 2 else Filter.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Call:
    """Client to server: I am connecting to these ranks; server to each: this rank calls you."""

    KIND: ClassVar[int] = 0x1F
    ranks: tuple[int, ...]

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, b"".join(map(U32.pack, self.ranks)))

    @classmethod
    def unpack(cls, body: bytes) -> Call:
        """Ranks of four bytes up to the end."""
        if len(body) % 4 or len(body) > 4 * MAX_RANGES:
            raise ProtocolError(f"call: {len(body)} bytes are no list of ranks")
        return cls(tuple(rank for (rank,) in U32.iter_unpack(body)))


@dataclass(frozen=True, slots=True)
class Invite:
    """The peer waits for you at the relay."""

    KIND: ClassVar[int] = 0x20
    rank: int

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND, U32.pack(self.rank))

    @classmethod
    def unpack(cls, body: bytes) -> Invite:
        """Four bytes."""
        return cls(U32.unpack(exactly(body, 4, "invitation"))[0])


@dataclass(frozen=True, slots=True)
class RelayReady:
    """Both ends are there; all bytes that follow are the peer's."""

    KIND: ClassVar[int] = 0x21

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND)

    @classmethod
    def unpack(cls, body: bytes) -> RelayReady:
        """Empty."""
        exactly(body, 0, "relay's readiness")
        return cls()


@dataclass(frozen=True, slots=True)
class Leave:
    """Goodbye: the rank is done, not lost."""

    KIND: ClassVar[int] = 0x22

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND)

    @classmethod
    def unpack(cls, body: bytes) -> Leave:
        """Empty."""
        exactly(body, 0, "goodbye")
        return cls()


@dataclass(frozen=True, slots=True)
class Draining:
    """The server is going down; connections between workers stay."""

    KIND: ClassVar[int] = 0x23

    def pack(self) -> bytes:
        """The frame as it travels."""
        return pack_frame(self.KIND)

    @classmethod
    def unpack(cls, body: bytes) -> Draining:
        """Empty."""
        exactly(body, 0, "drain notice")
        return cls()


_FROM_CLIENT: tuple[type[Frame], ...] = (
    Register, Relay, Probe, Proof, Want, AskMissing, Beat, TellNat, AskBack, Call, Leave,
)  # fmt: skip
_FROM_SERVER: tuple[type[Frame], ...] = (
    Observed, Challenge, Welcome, Refused, Peers, Lost, Missing, Complete, Superseded, Beat,
    Back, Call, Invite, RelayReady, Draining,
)  # fmt: skip


def _table(kinds: tuple[type[Frame], ...]) -> dict[int, Callable[[bytes], Frame]]:
    return {kind.KIND: kind.unpack for kind in kinds}


FROM_CLIENT = _table(_FROM_CLIENT)
"""How a server reads each type of frame."""
FROM_SERVER = _table(_FROM_SERVER)
"""How a client reads each type of frame."""


def decode(table: dict[int, Callable[[bytes], Frame]], kind: int, body: bytes) -> Frame:
    """The frame of one type.

    Raises
    ------
    ProtocolError
        The type is unknown in this direction, or the body does not fit it.
    """
    unpack = table.get(kind)
    if unpack is None:
        raise ProtocolError(f"frame type {kind} is not known in this direction")
    return unpack(body)
