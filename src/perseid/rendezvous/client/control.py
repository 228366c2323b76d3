"""The open connection to the server: frames out, frames in, heartbeats; in the reactor's thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from perseid.rendezvous.client.connections import RECEIVE_BYTES, read_until_closed
from perseid.rendezvous.client.session import Session
from perseid.rendezvous.net.event_loop import READ, EventLoopThread
from perseid.rendezvous.protocol import FROM_SERVER, ControlFrame, Deregister, Heartbeat, decode
from perseid.rendezvous.protocol.wire import Address, ProtocolError

HEARTBEATS_PER_TIMEOUT = 4
"""Heartbeats sent in that time: three may be late."""
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
    """

    def __init__(
        self,
        loop: EventLoopThread,
        session: Session,
        received: Callable[[ControlFrame], None],
        ended: Callable[[], None],
    ) -> None:
        self._loop, self._received, self._ended = loop, received, ended
        self._sock, self._reader = session.sock, session.reader
        self._unsent = b""
        self._last_received = time.monotonic()
        self._heartbeat_seconds = session.welcome.heartbeat / 1000
        self.local = Address(*self._sock.getsockname()[:2])
        """This side."""
        self.server = Address(*self._sock.getpeername()[:2])
        """The other."""
        self.open = True
        self._sock.setblocking(False)
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

    def deregister(self) -> None:
        """Say goodbye and see it arrive."""
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
        self._last_received = time.monotonic()
        try:
            for kind, body in self._reader.feed(data):
                self._received(decode(FROM_SERVER, kind, body))
        except ProtocolError as error:
            log.warning("the server sent what cannot be read: %s", error)
            self._break()

    def _send_heartbeat(self) -> None:
        if not self.open:
            return
        silent = time.monotonic() - self._last_received
        if silent > max(3 * self._heartbeat_seconds, SERVER_SILENCE_SECONDS):
            log.warning("the rendezvous has been silent for %.1f s", silent)
            self._break()
            return
        self.send(Heartbeat())
        self._loop.call_later(
            self._heartbeat_seconds / HEARTBEATS_PER_TIMEOUT, self._send_heartbeat
        )
