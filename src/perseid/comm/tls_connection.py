"""An encrypted stream to one peer: TLS over the socket of a plain connection."""

from __future__ import annotations

import contextlib
import socket
import threading

from perseid.comm.connection import Connection
from perseid.comm.objects import Buffer
from perseid.rendezvous.net.tls import CIPHERTEXT_BYTES, TlsSession

CHUNK_BYTES = 64 * 1024
"""Bytes that are encrypted before checking whether the socket takes more."""
_DONTWAIT: int = getattr(socket, "MSG_DONTWAIT", 0)


class TlsConnection:
    """TLS over a connected socket; see `perseid.comm.connection.Connection`.

    Parameters
    ----------
    sock
        The socket, which belongs to `plain`.
    session
        A session whose handshake is complete; it may already hold bytes from the peer.
    plain
        The plain connection of the socket, which keeps its time limits and ends it.
    """

    __slots__ = (
        "_ciphertext", "_lock", "_plain", "_session", "_sock", "_taken", "_unsent", "pending",
        "transport",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, session: TlsSession, plain: Connection) -> None:
        self._sock, self._session, self._plain = sock, session, plain
        self.transport = plain.transport
        self.pending = True
        """Whether the session may hold complete records, which polling the socket does not show."""
        self._ciphertext = memoryview(bytearray(CIPHERTEXT_BYTES))
        self._unsent = memoryview(b"")
        """Ciphertext that the socket has not taken yet."""
        self._taken = 0
        """Plaintext bytes that are encrypted already, but not reported as sent yet."""
        # One thread may receive while another sends, but they share one OpenSSL object.
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._sock.fileno()

    # --- sending -----------------------------------------------------------------------------

    def send(self, data: Buffer, _flags: int, /) -> int:
        return self.send_pieces([data])

    def send_pieces(
        self, pieces: list[Buffer], _ancillary: tuple[()] = (), _flags: int = 0, /
    ) -> int:
        """Encrypt and send; returns the number of plaintext bytes that were sent.

        Bytes count as sent once the socket has taken all of their ciphertext. Until then, the
        caller waits for the socket and calls again with the same bytes.
        """
        with self._lock:
            if not self._flush():
                return 0
            sent, self._taken = self._taken, 0
            # These were encrypted by an earlier call: encrypting them again would send them twice.
            skip = sent
            for piece in pieces:
                view = memoryview(piece).cast("B")
                skip, view = max(0, skip - len(view)), view[skip:]
                for start in range(0, len(view), CHUNK_BYTES):
                    chunk = view[start : start + CHUNK_BYTES]
                    self._session.encrypt(chunk)
                    if not self._flush():
                        self._taken = len(chunk)
                        return sent
                    sent += len(chunk)
            return sent

    def send_at_once(self, data: bytes) -> None:
        """Encrypt and send; what the socket does not take now is sent before the next bytes."""
        with self._lock:
            # Only between two messages: the record would otherwise end up inside the current one.
            if self._flush() and not self._taken:
                self._session.encrypt(data)
                self._flush()

    def _flush(self) -> bool:
        """Send ciphertext; returns whether none is left."""
        fresh = self._session.take()
        if fresh:
            self._unsent = (
                memoryview(bytes(self._unsent) + fresh) if self._unsent else memoryview(fresh)
            )
        while self._unsent:
            try:
                self._unsent = self._unsent[self._sock.send(self._unsent, _DONTWAIT) :]
            except BlockingIOError:
                return False
        return True

    # --- receiving ---------------------------------------------------------------------------

    def receive(self, into: bytearray | memoryview) -> int:
        """Wait for a record, at most for the polling interval."""
        return self._receive(into, 0)

    def receive_whole(self, into: list[memoryview]) -> int:
        """Receive until the places are full, or nothing comes for the polling interval."""
        count = 0
        for place in into:
            while len(place):
                try:
                    came = self._receive(place, 0)
                except BlockingIOError:
                    if count:
                        return count
                    raise
                if not came:
                    return count
                count, place = count + came, place[came:]
        return count

    def receive_available(self, into: memoryview) -> int:
        """Receive what has arrived, without waiting."""
        return self._receive(into, _DONTWAIT)

    def _receive(self, into: bytearray | memoryview, flags: int) -> int:
        while True:
            if count := self._decrypt(memoryview(into)):
                return count
            if self._session.shut:
                return 0
            came = self._sock.recv_into(self._ciphertext, 0, flags)
            # An end without TLS saying so, as a process that died leaves it.
            if not came:
                return 0
            with self._lock:
                self._session.feed(self._ciphertext[:came])

    def _decrypt(self, into: memoryview) -> int:
        """Decrypt what has arrived into ``into``; sets `pending` if there may be more."""
        count = 0
        with self._lock:
            while count < len(into):
                came = self._session.decrypt(into[count:])
                if not came:
                    self.pending = False
                    return count
                count += came
        self.pending = True
        return count

    # --- the end -----------------------------------------------------------------------------

    def unanswered_for(self) -> float:
        """See `SocketConnection`."""
        return self._plain.unanswered_for()

    def interrupt(self) -> None:
        """See `SocketConnection`."""
        self._plain.interrupt()

    def finish(self, *, wait: bool) -> None:
        """Send the TLS close message, then end the plain connection."""
        # The peer may already be gone, and then there is nobody to tell.
        with contextlib.suppress(OSError), self._lock:
            if self._flush():
                self._session.end()
                self._flush()
        self._plain.finish(wait=wait)

    def discard(self) -> None:
        """Close this process' copy of the socket."""
        self._plain.discard()
