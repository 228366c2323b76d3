"""Frames up to the welcome: a request, challenge and proof, and the server's decision."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from perseid.rendezvous.protocol.types import FixedLayoutFrame, RefusalCode
from perseid.rendezvous.protocol.wire import (
    MAC_BYTES,
    MAX_CANDIDATES,
    MAX_JOB_BYTES,
    MAX_WORLD,
    NONCE_BYTES,
    U16,
    Address,
    BodyReader,
    ProtocolError,
    pack_address,
    pack_frame,
    pack_ranges,
    pack_text,
)

VERSION = 1
"""Version of these frames. A server refuses versions that it does not know."""


# --- requests, client to server -------------------------------------------------------

_REGISTER = struct.Struct("!BBIIIH8s16s")


@dataclass(frozen=True, slots=True)
class Register:
    """Request to register one worker; the connection then stays open."""

    KIND: ClassVar[int] = 0x01
    job: str
    """Name of the job, at most ``MAX_JOB_BYTES`` of UTF-8."""
    rank: int
    """0 to ``world - 1``."""
    world: int
    """Number of ranks of the job."""
    generation: int
    """Attempt of the whole job. A newer one ends the older."""
    instance: bytes
    """8 random bytes that name this process: kept when it reconnects, new when it is restarted."""
    nonce: bytes
    """16 random bytes, new for each connection."""
    heartbeat: int = 60_000
    """Silence after which the rank counts as lost, as `liveness.pack_silence` writes it; 0: only
    a closed connection."""
    candidates: tuple[Address, ...] = ()
    """Addresses that the worker claims to have, its local one first."""
    interest: tuple[range, ...] = ()
    """Ranks whose addresses the server is to send as they register."""
    version: int = VERSION

    def pack(self) -> bytes:
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
        """Decode a body and check its bounds."""
        reader = BodyReader(body, "registration")
        fixed = _REGISTER.unpack(reader.take(_REGISTER.size, "fixed part"))
        version, count, world, rank, generation, heartbeat, instance, nonce = fixed
        if count > MAX_CANDIDATES:
            raise ProtocolError(f"registration: {count} candidates, at most {MAX_CANDIDATES}")
        if not 0 < world <= MAX_WORLD or rank >= world:
            raise ProtocolError(f"registration: rank {rank} in a world of {world}")
        job = reader.text("job", MAX_JOB_BYTES)
        if not job:
            raise ProtocolError("registration: the job has no name")
        candidates = tuple([reader.address("candidate") for _ in range(count)])
        interest = reader.ranges("interest")
        reader.end()
        return cls(
            job, rank, world, generation, instance, nonce, heartbeat, candidates, interest, version
        )


_RELAY = struct.Struct("!BIII8s16s")


@dataclass(frozen=True, slots=True)
class RelayRequest:
    """Request for a stream to a peer through the server; both ranks of the pair must ask."""

    KIND: ClassVar[int] = 0x02
    job: str
    rank: int
    """Rank that asks; it must be registered with this instance."""
    peer: int
    """Rank at the other end."""
    generation: int
    instance: bytes
    nonce: bytes
    version: int = VERSION

    def pack(self) -> bytes:
        fixed = _RELAY.pack(
            self.version, self.rank, self.peer, self.generation, self.instance, self.nonce
        )
        return pack_frame(self.KIND, fixed + pack_text(self.job))

    @classmethod
    def unpack(cls, body: bytes) -> RelayRequest:
        """Decode a body and check its bounds."""
        reader = BodyReader(body, "relay request")
        version, rank, peer, generation, instance, nonce = _RELAY.unpack(
            reader.take(_RELAY.size, "fixed part")
        )
        if rank == peer:
            raise ProtocolError(f"relay request: rank {rank} asks for a stream to itself")
        job = reader.text("job", MAX_JOB_BYTES)
        reader.end()
        return cls(job, rank, peer, generation, instance, nonce, version)


@dataclass(frozen=True, slots=True)
class Probe(FixedLayoutFrame):
    """Question which address the server sees, on either port; answered by ``ObservedAddress``."""

    KIND: ClassVar[int] = 0x03
    LABEL: ClassVar[str] = "probe"
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("!B")
    version: int = VERSION


# --- the handshake --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Challenge(FixedLayoutFrame):
    """The server's nonce; the client is to prove that it has the job's key."""

    KIND: ClassVar[int] = 0x10
    LABEL: ClassVar[str] = "challenge"
    LAYOUT: ClassVar[struct.Struct] = struct.Struct(f"{NONCE_BYTES}s")
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Proof(FixedLayoutFrame):
    """HMAC over the request and both nonces (see ``auth``)."""

    KIND: ClassVar[int] = 0x11
    LABEL: ClassVar[str] = "proof"
    LAYOUT: ClassVar[struct.Struct] = struct.Struct(f"{MAC_BYTES}s")
    mac: bytes


_WELCOME = struct.Struct("!BHH32s")


@dataclass(frozen=True, slots=True)
class Welcome:
    """The request was granted."""

    KIND: ClassVar[int] = 0x12
    address: Address
    """The worker's public address: the one that the server sees."""
    mac: bytes = bytes(MAC_BYTES)
    """The server's own proof; zeros if it has no keys."""
    relay: bool = False
    """Whether this server relays."""
    probe_port: int = 0
    """A second port that answers ``Probe``; 0: none."""
    heartbeat: int = 0
    """Silence after which the rank counts as lost, as granted by the server."""
    reports: bool = False
    """Whether this server forwards `FailureReport`."""

    def pack(self) -> bytes:
        flags = self.relay | self.reports << 1
        fixed = _WELCOME.pack(flags, self.probe_port, self.heartbeat, self.mac)
        return pack_frame(self.KIND, fixed + pack_address(self.address))

    @classmethod
    def unpack(cls, body: bytes) -> Welcome:
        reader = BodyReader(body, "welcome")
        flags, probe_port, heartbeat, mac = _WELCOME.unpack(
            reader.take(_WELCOME.size, "fixed part")
        )
        address = reader.address("address")
        reader.end()
        return cls(address, mac, bool(flags & 1), probe_port, heartbeat, bool(flags & 2))


@dataclass(frozen=True, slots=True)
class Refused:
    """The request was refused; the server closes the connection."""

    KIND: ClassVar[int] = 0x13
    code: RefusalCode
    reason: str
    """A clause for people, at most 255 bytes of UTF-8."""

    def pack(self) -> bytes:
        return pack_frame(self.KIND, bytes((self.code,)) + pack_text(self.reason))

    @classmethod
    def unpack(cls, body: bytes) -> Refused:
        reader = BodyReader(body, "refusal")
        code = reader.byte("code")
        reason = reader.text("reason", 255)
        reader.end()
        known = {member.value for member in RefusalCode}
        return cls(RefusalCode(code) if code in known else RefusalCode.MALFORMED, reason)


@dataclass(frozen=True, slots=True)
class ObservedAddress:
    """Answer to ``Probe``."""

    KIND: ClassVar[int] = 0x04
    address: Address
    """The client's address as the server sees it."""
    probe_port: int = 0
    """The server's second port; 0: none."""
    keyed: bool = False
    """Whether registrations need a job key."""

    def pack(self) -> bytes:
        body = bytes((self.keyed,)) + U16.pack(self.probe_port) + pack_address(self.address)
        return pack_frame(self.KIND, body)

    @classmethod
    def unpack(cls, body: bytes) -> ObservedAddress:
        reader = BodyReader(body, "observed address")
        keyed = bool(reader.byte("keyed"))
        port = reader.number(U16, "probe port")
        address = reader.address("address")
        reader.end()
        return cls(address, port, keyed)
