"""The open connection to the server: frames out, frames in, heartbeats; in the reactor's thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from perseid.rendezvous.client.connections import RECEIVE_BYTES, await_end
from perseid.rendezvous.client.session import Session
from perseid.rendezvous.net.event_loop import READ, Reactor
from perseid.rendezvous.protocol import FROM_SERVER, Beat, Frame, Leave, decode
from perseid.rendezvous.protocol.wire import Address, ProtocolError

BEATS_A_HEARTBEAT = 4
"""Heartbeats sent in that time: three may be late."""
SERVER_SILENCE_SECONDS = 10.0
"""Shortest silence of the server after which a worker hangs up and registers again: a server that
was only stopped would take the end of its connection for the worker's."""

log = logging.getLogger("perseid.rendezvous.client.client")


class Control:
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
        reactor: Reactor,
        session: Session,
        received: Callable[[Frame], None],
        ended: Callable[[], None],
    ) -> None:
        self._reactor, self._received, self._ended = reactor, received, ended
        self._sock, self._reader = session.sock, session.reader
        self._unsent = b""
        self._heard = time.monotonic()
        self._beat_seconds = session.welcome.heartbeat / 1000
        self.local = Address(*self._sock.getsockname()[:2])
        """This side."""
        self.server = Address(*self._sock.getpeername()[:2])
        """The other."""
        self.open = True
        self._sock.setblocking(False)
        reactor.watch(self._sock, READ, self._readable)
        if self._beat_seconds:
            self._beat()

    def send(self, frame: Frame) -> None:
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
            self._reactor.forget(self._sock)
            self._sock.close()

    def leave(self) -> None:
        """Say goodbye and see it arrive."""
        self.send(Leave())
        if self.open:
            self._reactor.forget(self._sock)
            await_end(self._sock)
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
        self._heard = time.monotonic()
        try:
            for kind, body in self._reader.feed(data):
                self._received(decode(FROM_SERVER, kind, body))
        except ProtocolError as error:
            log.warning("the server sent what cannot be read: %s", error)
            self._break()

    def _beat(self) -> None:
        if not self.open:
            return
        silent = time.monotonic() - self._heard
        if silent > max(3 * self._beat_seconds, SERVER_SILENCE_SECONDS):
            log.warning("the rendezvous has been silent for %.1f s", silent)
            self._break()
            return
        self.send(Beat())
        self._reactor.later(self._beat_seconds / BEATS_A_HEARTBEAT, self._beat)
