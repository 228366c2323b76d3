"""The handshake between two workers on a new connection, without I/O.

Both sides send HELLO (96 bytes). The lower rank sends SELECT (36 bytes) on the first connection
whose HELLO is valid, the higher rank answers ACK (36 bytes), and both close their other connections
to each other. So exactly one connection of a pair survives, the same at both ends. SELECT and ACK
authenticate both HELLOs with their fresh nonces, so a recorded HELLO is of no use. All frames have
fixed sizes and nothing is read beyond them: the next byte belongs to the user.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from dataclasses import dataclass

from perseid.rendezvous.protocol.auth import fresh_nonce, macs_equal

HELLO_MAGIC = b"PPH1"
SELECT_MAGIC = b"PPS1"
ACK_MAGIC = b"PPA1"
_HELLO = struct.Struct("!4s16sIII8s8s16s")
HELLO_BYTES = _HELLO.size + 32
"""Size of HELLO: fixed part and MAC."""
DECISION_BYTES = 36
"""Size of SELECT and ACK: four bytes of type, and MAC."""


class HandshakeError(ValueError):
    """The other side is not the peer that it should be; the connection must be closed."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One side of a handshake."""

    job: str
    generation: int
    rank: int
    instance: bytes
    """8 bytes, as registered."""

    def digest(self) -> bytes:
        """The first 16 bytes of the SHA-256 of the job's name."""
        return hashlib.sha256(self.job.encode()).digest()[:16]


class HandshakeState(enum.Enum):
    """Progress of a handshake."""

    AWAITING_HELLO = "greeting"
    """The other side's HELLO has not arrived yet."""
    HELLO_RECEIVED = "greeted"
    """The HELLO is valid. The lower rank may select, the higher waits for that."""
    SELECT_SENT = "selected"
    """The lower rank has sent SELECT and waits for ACK."""
    SELECT_RECEIVED = "chosen"
    """The higher rank has received a valid SELECT and must send ACK."""
    DONE = "done"


class Handshake:
    """The handshake of one connection.

    Parameters
    ----------
    me
        This side's identity.
    key
        The key between the job's workers (``auth.peer_key``).
    expect
        Rank that was dialed; None on an accepted connection, whose HELLO names it.
    instance
        Instance of the dialed peer; None on an accepted connection.
    """

    def __init__(
        self,
        me: Identity,
        key: bytes,
        expect: int | None = None,
        instance: bytes | None = None,
    ) -> None:
        self.me, self._key = me, key
        self.peer, self.instance = expect, instance
        self.state = HandshakeState.AWAITING_HELLO
        self._own_hello = b""
        self._peer_hello = b""

    @property
    def needed(self) -> int:
        """Size of the next frame, in bytes; no more may be read."""
        # Reading exactly this many bytes leaves what follows in the kernel for the socket's next
        # owner.
        return HELLO_BYTES if self.state is HandshakeState.AWAITING_HELLO else DECISION_BYTES

    @property
    def decides(self) -> bool:
        """Whether this side selects the connection: it has the lower rank."""
        return self.peer is not None and self.me.rank < self.peer

    def hello(self) -> bytes:
        """This side's HELLO; empty if it was sent before, or while the peer is not known."""
        # On an accepted connection the peer is known only from its HELLO, so this side sends
        # second.
        if self._own_hello or self.peer is None or self.instance is None:
            return b""
        fixed = _HELLO.pack(
            HELLO_MAGIC, self.me.digest(), self.me.generation, self.me.rank, self.peer,
            self.me.instance, self.instance, fresh_nonce(),
        )  # fmt: skip
        self._own_hello = fixed + hmac.digest(self._key, fixed, "sha256")
        return self._own_hello

    def feed(self, frame: bytes) -> HandshakeState:
        """Process one frame of ``needed`` bytes; return the new state.

        Raises
        ------
        HandshakeError
            The frame is not valid.
        """
        if self.state is HandshakeState.AWAITING_HELLO:
            self._hello_received(frame)
        elif self.state is HandshakeState.HELLO_RECEIVED and not self.decides:
            self._check(frame, SELECT_MAGIC)
            self.state = HandshakeState.SELECT_RECEIVED
        elif self.state is HandshakeState.SELECT_SENT:
            self._check(frame, ACK_MAGIC)
            self.state = HandshakeState.DONE
        else:
            raise HandshakeError("bytes before the handshake was complete")
        return self.state

    def select(self) -> bytes:
        """The lower rank's SELECT."""
        self.state = HandshakeState.SELECT_SENT
        return SELECT_MAGIC + self._mac(SELECT_MAGIC)

    def acknowledge(self) -> bytes:
        """The higher rank's ACK."""
        self.state = HandshakeState.DONE
        return ACK_MAGIC + self._mac(ACK_MAGIC)

    def _hello_received(self, frame: bytes) -> None:
        fixed, mac = frame[: _HELLO.size], frame[_HELLO.size :]
        # The nonce is not looked at: it only makes each HELLO, and with it the MACs below, unique.
        magic, digest, generation, rank, meant, instance, mine, _nonce = _HELLO.unpack(fixed)
        # The MAC comes first. Nothing that a stranger sent is believed, not even for an error
        # message.
        if magic != HELLO_MAGIC or not macs_equal(mac, hmac.digest(self._key, fixed, "sha256")):
            raise HandshakeError("this is not the hello of a worker that has the job's key")
        if digest != self.me.digest() or generation != self.me.generation:
            raise HandshakeError("the hello is for another job or generation")
        # Naming the receiver keeps a HELLO from being passed on to another worker of the same job.
        if meant != self.me.rank or mine != self.me.instance or rank == self.me.rank:
            raise HandshakeError(f"the hello of rank {rank} is meant for another worker")
        # Behind a NAT another worker of the job can listen where this peer was expected.
        if self.peer not in (None, rank) or self.instance not in (None, instance):
            raise HandshakeError(f"rank {rank} answered instead of rank {self.peer}")
        self.peer, self.instance = rank, instance
        self._peer_hello = frame
        self.state = HandshakeState.HELLO_RECEIVED

    def _mac(self, label: bytes) -> bytes:
        first, second = (self._own_hello, self._peer_hello)
        # The lower rank's HELLO comes first at both ends, so both compute the same MAC.
        if not self.decides:
            first, second = second, first
        return hmac.digest(self._key, label + first + second, "sha256")

    def _check(self, frame: bytes, label: bytes) -> None:
        if frame[:4] != label or not macs_equal(frame[4:], self._mac(label)):
            raise HandshakeError("the selection of this connection is not authentic")
