"""A connected socket and its handshake with a peer, and the link that results."""

from __future__ import annotations

import logging
import socket
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from perseid.rendezvous.net.event_loop import READ, EventLoopThread
from perseid.rendezvous.protocol.handshake import Handshake, HandshakeError, HandshakeState
from perseid.rendezvous.protocol.wire import Address

if TYPE_CHECKING:  # OpenSSL takes its time to load, and most links are plain
    from perseid.rendezvous.net.tls import TlsSession

HELLO_SECONDS = 20.0
"""Time for the HELLO on an accepted connection. A lost segment costs a second or more, and a peer
may share its cores with hundreds of others. After that, and on a connection that was dialed, only
the attempt's own limit counts: dialing again would not be faster, and the side that selects must
not drop a connection that the other may already have acknowledged."""

log = logging.getLogger("perseid.rendezvous.client")


@dataclass(frozen=True, slots=True)
class Link:
    """A connection to an authenticated peer. Whoever receives it owns the socket."""

    rank: int
    """Rank of the peer."""
    sock: socket.socket
    """Connected, blocking, TCP_NODELAY."""
    transport: str
    """``direct`` or ``relay``."""
    remote: Address
    """Address of the other end of the socket: of the peer, or of the relay."""
    seconds: float
    """Seconds from the first try to the end of the handshake."""
    tls: TlsSession | None = None
    """Of an encrypted link: everything on the socket is its ciphertext."""

    @property
    def way(self) -> str:
        """Use `transport`: this is its name in version 0.1."""
        warnings.warn("Link.way is now Link.transport", DeprecationWarning, stacklevel=2)
        return self.transport


class ConnectionOwner(Protocol):
    """What a `PeerConnection` reports to; the `HolePuncher`."""

    loop: EventLoopThread

    def advanced(self, connection: PeerConnection, state: HandshakeState) -> None:
        """The handshake reached a new state."""
        ...

    def dropped(self, connection: PeerConnection) -> None:
        """The connection ended before its handshake was complete."""
        ...


class PeerConnection:
    """A connected socket and its handshake.

    Parameters
    ----------
    tried
        The address that was dialed; None if the connection was accepted or is relayed.
    owner
        Informed of the progress and the end of the handshake.
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
            # A dialed connection has the time limit of its attempt instead.
            self._timer.cancel()
        owner.loop.watch(sock, READ, self._readable)
        self.send(handshake.hello())

    def send(self, frame: bytes) -> None:
        """Send a handshake frame; it always fits into the empty send buffer."""
        if not frame:
            return
        try:
            sent = self.sock.send(frame)
        except OSError:
            sent = 0
        if sent != len(frame):
            # Not at once: this may be the constructor, and the owner does not know the connection
            # yet.
            self.owner.loop.call_threadsafe(self.fail)

    def _readable(self, _events: int) -> None:
        try:
            # Never more than the frame: what follows the handshake belongs to whoever gets the
            # socket.
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
            # Not a warning: port scanners and workers of earlier attempts connect, too.
            log.debug("connection dropped: %s", error)
            self.fail()
            return
        self._timer.cancel()
        self.owner.advanced(self, state)

    def release(self) -> socket.socket:
        """Give the socket away, blocking and no longer watched."""
        self._timer.cancel()
        self.owner.loop.unwatch(self.sock)
        self.sock.setblocking(True)
        return self.sock

    def close(self) -> None:
        """Close without informing the owner."""
        self._timer.cancel()
        if self.sock.fileno() >= 0:
            self.owner.loop.unwatch(self.sock)
            self.sock.close()

    def fail(self) -> None:
        """Close and inform the owner."""
        if self.sock.fileno() >= 0:
            self.close()
            self.owner.dropped(self)
