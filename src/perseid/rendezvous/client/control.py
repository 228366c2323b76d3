"""The connection to the server after the welcome: frames and heartbeats.

Used in the event loop's thread only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from perseid.rendezvous.client.connections import RECEIVE_BYTES, read_until_closed
from perseid.rendezvous.client.server_session import ServerSession
from perseid.rendezvous.liveness import unpack_silence
from perseid.rendezvous.net.event_loop import READ, EventLoopThread
from perseid.rendezvous.net.keepalive import end_unanswered, watch_link
from perseid.rendezvous.protocol import FROM_SERVER, ControlFrame, Deregister, Heartbeat, decode
from perseid.rendezvous.protocol.wire import Address, ProtocolError

HEARTBEATS_PER_TIMEOUT = 4
"""Heartbeats within the silence timeout, so that three of them may be late."""
LONGEST_HEARTBEAT_SECONDS = 5.0
"""Longest time between two heartbeats; they also keep a NAT's mapping alive."""
SERVER_SILENCE_SECONDS = 10.0
"""Shortest silence of the server after which a worker registers again. To a server that was only
stopped for a while, the closed connection would look like the end of the worker."""

log = logging.getLogger("perseid.rendezvous.client")


class ControlConnection:
    """One connection to the server, from the welcome to its end.

    Parameters
    ----------
    session
        The open session; its socket belongs to this object from now on.
    received
        Called with each frame.
    ended
        Called once if the connection breaks; not after ``close``.
    link_timeout
        Seconds without an answer of the server's host after which the connection counts as cut.
    """

    def __init__(
        self,
        loop: EventLoopThread,
        session: ServerSession,
        received: Callable[[ControlFrame], None],
        ended: Callable[[], None],
        link_timeout: float,
    ) -> None:
        self._loop, self._received, self._ended = loop, received, ended
        self._sock, self._reader = session.sock, session.reader
        self._unsent = b""
        self._unanswered_since: float | None = None
        silence = unpack_silence(session.welcome.heartbeat)
        self._server_silence = max(silence, SERVER_SILENCE_SECONDS)
        self._heartbeat_seconds = min(silence / HEARTBEATS_PER_TIMEOUT, LONGEST_HEARTBEAT_SECONDS)
        self.local = Address(*self._sock.getsockname()[:2])
        """Address of this end."""
        self.server = Address(*self._sock.getpeername()[:2])
        """Address of the server's end."""
        self.open = True
        self._sock.setblocking(False)
        watch_link(self._sock, link_timeout)
        end_unanswered(self._sock, link_timeout)
        loop.watch(self._sock, READ, self._readable)
        self._pending = getattr(self._sock, "pending", lambda: 0)
        """Bytes that were decrypted and not read: the socket would not tell."""
        if self._pending():
            loop.call_later(0, lambda: self._readable(READ))
        if self._heartbeat_seconds:
            self._send_heartbeat()

    def send(self, frame: ControlFrame) -> None:
        """Send a frame, unless the connection has ended."""
        if not self.open:
            return
        data = self._unsent + frame.pack()
        self._unsent = b""
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._break()
            return
        if sent < len(data):
            # The rest is sent with the next frame, at the latest with the next heartbeat.
            self._unsent = data[sent:]

    def close(self) -> None:
        """Close without a last frame."""
        if self.open:
            self.open = False
            self._loop.unwatch(self._sock)
            self._sock.close()

    def finish(self, goodbye: bool) -> None:
        """Close once all that was sent has arrived; without a goodbye this rank counts as lost."""
        if goodbye:
            self.send(Deregister())
        if self.open:
            self._loop.unwatch(self._sock)
            # Blocks for a moment, which is fine: nothing else is left to do for this thread.
            read_until_closed(self._sock)
        self.close()

    def _break(self) -> None:
        if self.open:
            self.close()
            self._ended()

    def _readable(self, _events: int) -> None:
        while self.open and self._read() and self._pending():
            pass

    def _read(self) -> bool:
        """Take in what is here; whether that was anything."""
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self._break()
            return False
        # Any byte from the server is an answer, not only the echo of a heartbeat.
        self._unanswered_since = None
        try:
            for kind, body in self._reader.feed(data):
                self._received(decode(FROM_SERVER, kind, body))
        except ProtocolError as error:
            log.warning("the server sent an invalid frame: %s", error)
            self._break()
        return True

    def _send_heartbeat(self) -> None:
        if not self.open:
            return
        # Counted from the first heartbeat without an answer: what this process could not send
        # while it was stopped, or computed, is not the server's silence.
        now = time.monotonic()
        if self._unanswered_since is None:
            self._unanswered_since = now
        silent = now - self._unanswered_since
        if silent > self._server_silence:
            log.warning("the rendezvous has been silent for %.1f s", silent)
            self._break()
            return
        self.send(Heartbeat())
        self._loop.call_later(self._heartbeat_seconds, self._send_heartbeat)
