"""An encrypted stream to one peer: TLS over the socket of a plain one."""

from __future__ import annotations

import contextlib
import socket
import threading

from perseid.comm.connection import Connection
from perseid.comm.objects import Buffer
from perseid.rendezvous.net.tls import CIPHERTEXT_BYTES, TlsSession

CHUNK_BYTES = 64 * 1024
"""Encrypted before the socket is asked again whether it takes more."""
_DONTWAIT: int = getattr(socket, "MSG_DONTWAIT", 0)


class TlsConnection:
    """TLS over a connected socket; see `perseid.comm.connection.Connection`.

    Parameters
    ----------
    sock
        Belongs to `plain`.
    session
        Its handshake is complete; bytes of the peer's may have been fed to it already.
    plain
        The connection of the socket: its time limits, its end.
    """

    __slots__ = (
        "_ciphertext", "_lock", "_plain", "_session", "_sock", "_taken", "_unsent", "pending",
        "transport",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, session: TlsSession, plain: Connection) -> None:
        self._sock, self._session, self._plain = sock, session, plain
        self.transport = plain.transport
        self.pending = True
        """Whether whole records may lie in the session: the socket would not tell."""
        self._ciphertext = memoryview(bytearray(CIPHERTEXT_BYTES))
        self._unsent = memoryview(b"")
        self._taken = 0  # plaintext bytes that are encrypted, but not reported as sent
        # One thread may receive while another sends, and OpenSSL's object is one for both.
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._sock.fileno()

    # --- sending -----------------------------------------------------------------------------

    def send(self, data: Buffer) -> int:
        return self.send_pieces([data])

    def send_pieces(self, pieces: list[Buffer]) -> int:
        """Encrypt and send.

        Bytes count as sent once the socket has taken their whole ciphertext: until then the caller
        comes again with the same bytes, and waits for the socket.
        """
        with self._lock:
            if not self._flush():
                return 0
            sent, self._taken = self._taken, 0
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
        """What does not go at once goes before the next bytes."""
        with self._lock:
            if self._flush() and not self._taken:
                self._session.encrypt(data)
                self._flush()

    def _flush(self) -> bool:
        """Send ciphertext; whether none is left."""
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
        """Until the places are full, or nothing comes for the polling interval."""
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
        """What is here, without waiting."""
        return self._receive(into, _DONTWAIT)

    def _receive(self, into: bytearray | memoryview, flags: int) -> int:
        while True:
            if count := self._decrypt(memoryview(into)):
                return count
            if self._session.shut:
                return 0
            came = self._sock.recv_into(self._ciphertext, 0, flags)
            if not came:  # as a process that died leaves it
                return 0
            with self._lock:
                self._session.feed(self._ciphertext[:came])

    def _decrypt(self, into: memoryview) -> int:
        """Fill the place with what is here; `pending` says whether there may be more."""
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
        """As of the plain connection."""
        return self._plain.unanswered_for()

    def interrupt(self) -> None:
        """As of the plain connection."""
        self._plain.interrupt()

    def finish(self) -> None:
        """Say in TLS that this was all, then end the socket."""
        with contextlib.suppress(OSError), self._lock:
            if self._flush():
                self._session.end()
                self._flush()
        self._plain.finish()

    def discard(self) -> None:
        """Close this process' copy of the socket."""
        self._plain.discard()
