"""A connected socket on its way to being a link: greeted, chosen, handed over."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from typing import Protocol

from perseid.rendezvous.net.event_loop import READ, EventLoopThread
from perseid.rendezvous.protocol.handshake import Handshake, HandshakeError, HandshakeState
from perseid.rendezvous.protocol.wire import Address

HELLO_SECONDS = 20.0
"""Time for the greeting of who connected to us: a lost segment costs the kernel a second or more, a
peer that shares few cores with hundreds of others its turn. After it, and where we connected
ourselves, there is no limit but the attempt's: dialling again would help nobody, and the end that
decides must not give up what the other may have settled on."""

log = logging.getLogger("perseid.rendezvous.client.client")


@dataclass(frozen=True, slots=True)
class Link:
    """A settled connection to a peer; whoever gets it owns the socket."""

    rank: int
    """The peer."""
    sock: socket.socket
    """Connected, blocking, TCP_NODELAY."""
    transport: str
    """``direct`` or ``relay``."""
    remote: Address
    """The socket's other end."""
    seconds: float
    """From the first try to the settlement."""


class ConnectionOwner(Protocol):
    """What a connection tells of itself."""

    loop: EventLoopThread

    def advanced(self, connection: PeerConnection, state: HandshakeState) -> None:
        """Its handshake moved on."""
        ...

    def dropped(self, connection: PeerConnection) -> None:
        """It ended before it was settled."""
        ...


class PeerConnection:
    """One connected socket and its handshake.

    Parameters
    ----------
    tried
        The address that was dialled; None for one that was accepted, or that came by the relay.
    owner
        Told what becomes of it.
    """

    def __init__(
        self,
        owner: ConnectionOwner,
        sock: socket.socket,
        handshake: Handshake,
        transport: str,
        dialed: Address | None = None,
    ) -> None:
        self.owner, self.sock, self.handshake, self.transport, self.dialed = (
            owner,
            sock,
            handshake,
            transport,
            dialed,
        )
        self._data = b""
        self._timer = owner.loop.call_later(HELLO_SECONDS, self.fail)
        if dialed is not None:
            self._timer.cancel()
        owner.loop.watch(sock, READ, self._readable)
        self.send(handshake.hello())

    def send(self, frame: bytes) -> None:
        """Send a handshake frame; it always fits an empty socket buffer."""
        if not frame:
            return
        try:
            sent = self.sock.send(frame)
        except OSError:
            sent = 0
        if sent != len(frame):
            self.owner.loop.call_threadsafe(self.fail)

    def _readable(self, _events: int) -> None:
        try:
            data = self.sock.recv(self.handshake.needed - len(self._data))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.fail()
            return
        self._data += data
        if len(self._data) < self.handshake.needed:
            return
        frame, self._data = self._data, b""
        try:
            state = self.handshake.feed(frame)
        except HandshakeError as error:
            log.debug("connection dropped: %s", error)
            self.fail()
            return
        self._timer.cancel()
        self.owner.advanced(self, state)

    def release(self) -> socket.socket:
        """The socket, blocking, no longer watched."""
        self._timer.cancel()
        self.owner.loop.unwatch(self.sock)
        self.sock.setblocking(True)
        return self.sock

    def close(self) -> None:
        """Drop it."""
        self._timer.cancel()
        if self.sock.fileno() >= 0:
            self.owner.loop.unwatch(self.sock)
            self.sock.close()

    def fail(self) -> None:
        """Drop it and tell."""
        if self.sock.fileno() >= 0:
            self.close()
            self.owner.dropped(self)
