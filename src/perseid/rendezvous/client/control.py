"""The open connection to the server: frames out, frames in, heartbeats; in the reactor's thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from perseid.rendezvous.client.connections import RECEIVE_BYTES, read_until_closed
from perseid.rendezvous.client.session import Session
from perseid.rendezvous.net.event_loop import READ, EventLoopThread
from perseid.rendezvous.net.liveness import end_unanswered, watch_link
from perseid.rendezvous.protocol import FROM_SERVER, ControlFrame, Deregister, Heartbeat, decode
from perseid.rendezvous.protocol.liveness import unpack_silence
from perseid.rendezvous.protocol.wire import Address, ProtocolError

HEARTBEATS_PER_TIMEOUT = 4
"""Heartbeats sent in the time after which silence is a loss: three may be late."""
LONGEST_HEARTBEAT_SECONDS = 5.0
"""Between two heartbeats at most: they also keep a NAT's mapping alive."""
SERVER_SILENCE_SECONDS = 10.0
"""Shortest silence of the server after which a worker hangs up and registers again: a server that
was only stopped would take the end of its connection for the worker's."""

log = logging.getLogger("perseid.rendezvous.client.client")


class ControlConnection:
    """One connection, from its welcome to its end.

    Parameters
    ----------
    session
        As it was opened; its socket belongs to this object from now on.
    received
        Called with each frame.
    ended
        Called once when the connection broke; not after ``close``.
    link_timeout
        Seconds without an answer of the server's host after which the connection counts as cut.
    """

    def __init__(
        self,
        loop: EventLoopThread,
        session: Session,
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
        """This side."""
        self.server = Address(*self._sock.getpeername()[:2])
        """The other."""
        self.open = True
        self._sock.setblocking(False)
        watch_link(self._sock, link_timeout)
        end_unanswered(self._sock, link_timeout)
        loop.watch(self._sock, READ, self._readable)
        if self._heartbeat_seconds:
            self._send_heartbeat()

    def send(self, frame: ControlFrame) -> None:
        """Send, if the connection stands."""
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
            # The next frame, at the latest the next heartbeat, takes it along.
            self._unsent = data[sent:]

    def close(self) -> None:
        """End it without a word."""
        if self.open:
            self.open = False
            self._loop.unwatch(self._sock)
            self._sock.close()

    def finish(self, goodbye: bool) -> None:
        """End it, and see that all that was sent arrives; without a goodbye this rank is lost."""
        if goodbye:
            self.send(Deregister())
        if self.open:
            self._loop.unwatch(self._sock)
            read_until_closed(self._sock)
        self.close()

    def _break(self) -> None:
        if self.open:
            self.close()
            self._ended()

    def _readable(self, _events: int) -> None:
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._break()
            return
        self._unanswered_since = None
        try:
            for kind, body in self._reader.feed(data):
                self._received(decode(FROM_SERVER, kind, body))
        except ProtocolError as error:
            log.warning("the server sent what cannot be read: %s", error)
            self._break()

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
