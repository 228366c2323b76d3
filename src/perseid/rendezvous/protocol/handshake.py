"""The handshake between two workers on a fresh connection; bytes in, bytes out, no socket.

Both sides greet each other with HELLO (96 bytes). The lower rank SELECTs (36 bytes) the first
connection whose greeting is valid; the higher answers ACK (36 bytes) and both close the others, so
exactly one connection of a pair survives, chosen the same at both ends. SELECT and ACK cover both
greetings with their fresh nonces: a recorded greeting gets nobody in. All frames have a fixed
size and are never read beyond their end, so the next byte is the user's.
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
"""A greeting: fixed part and MAC."""
DECISION_BYTES = 36
"""SELECT and ACK: four bytes of type, MAC."""


class HandshakeError(ValueError):
    """The other side is no peer of this job, or not the one meant."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who greets."""

    job: str
    generation: int
    rank: int
    instance: bytes
    """8 bytes, as registered."""

    def digest(self) -> bytes:
        """16 bytes that stand for the job's name."""
        return hashlib.sha256(self.job.encode()).digest()[:16]


class HandshakeState(enum.Enum):
    """Where a handshake stands."""

    AWAITING_HELLO = "greeting"
    """Waiting for the other side's HELLO."""
    HELLO_RECEIVED = "greeted"
    """The HELLO is valid; the lower rank may select, the higher waits for it."""
    SELECT_SENT = "selected"
    """The lower rank has sent SELECT and waits for ACK."""
    SELECT_RECEIVED = "chosen"
    """The higher rank has a valid SELECT and owes ACK."""
    DONE = "done"


class Handshake:
    """One connection's handshake.

    Parameters
    ----------
    me
        This side.
    key
        The key between the job's workers (``auth.peer_key``).
    expect
        Rank that was dialled; None on an accepted connection, whose HELLO tells it.
    instance
        The dialled peer's instance.
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
        """How many bytes the next frame has; read no more than these."""
        return HELLO_BYTES if self.state is HandshakeState.AWAITING_HELLO else DECISION_BYTES

    @property
    def decides(self) -> bool:
        """Whether this side decides."""
        return self.peer is not None and self.me.rank < self.peer

    def hello(self) -> bytes:
        """This side's greeting; empty if it was sent already, or if nobody is known to greet."""
        if self._own_hello or self.peer is None or self.instance is None:
            return b""
        fixed = _HELLO.pack(
            HELLO_MAGIC, self.me.digest(), self.me.generation, self.me.rank, self.peer,
            self.me.instance, self.instance, fresh_nonce(),
        )  # fmt: skip
        self._own_hello = fixed + hmac.digest(self._key, fixed, "sha256")
        return self._own_hello

    def feed(self, frame: bytes) -> HandshakeState:
        """Take one whole frame of ``needed`` bytes; the new state.

        Raises
        ------
        HandshakeError
            It is not valid: close the connection.
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
            raise HandshakeError("bytes before the connection was settled")
        return self.state

    def select(self) -> bytes:
        """The lower rank's choice of this connection."""
        self.state = HandshakeState.SELECT_SENT
        return SELECT_MAGIC + self._mac(SELECT_MAGIC)

    def acknowledge(self) -> bytes:
        """The higher rank's consent."""
        self.state = HandshakeState.DONE
        return ACK_MAGIC + self._mac(ACK_MAGIC)

    def _hello_received(self, frame: bytes) -> None:
        fixed, mac = frame[: _HELLO.size], frame[_HELLO.size :]
        magic, digest, generation, rank, meant, instance, mine, _nonce = _HELLO.unpack(fixed)
        if magic != HELLO_MAGIC or not macs_equal(mac, hmac.digest(self._key, fixed, "sha256")):
            raise HandshakeError("this is no greeting of a worker that has the job's key")
        if digest != self.me.digest() or generation != self.me.generation:
            raise HandshakeError("the greeting is for another job or generation")
        if meant != self.me.rank or mine != self.me.instance or rank == self.me.rank:
            raise HandshakeError(f"the greeting of rank {rank} is meant for another worker")
        if self.peer not in (None, rank) or self.instance not in (None, instance):
            raise HandshakeError(f"rank {rank} answered instead of rank {self.peer}")
        self.peer, self.instance = rank, instance
        self._peer_hello = frame
        self.state = HandshakeState.HELLO_RECEIVED

    def _mac(self, label: bytes) -> bytes:
        first, second = (self._own_hello, self._peer_hello)
        if not self.decides:
            first, second = second, first
        return hmac.digest(self._key, label + first + second, "sha256")

    def _check(self, frame: bytes, label: bytes) -> None:
        if frame[:4] != label or not macs_equal(frame[4:], self._mac(label)):
            raise HandshakeError("the choice of this connection is not authentic")
