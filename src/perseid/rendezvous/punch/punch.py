"""Connections to peers: listens on and dials from the registered port, and keeps one for each pair.

Everything here runs in the event loop's thread. The lower rank of a pair decides which connection
is kept and when to fall back to the relay, so that the two ends cannot decide differently.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from perseid.rendezvous.net.event_loop import READ, EventLoopThread
from perseid.rendezvous.protocol import PeerRecord
from perseid.rendezvous.protocol.candidates import usable_candidates
from perseid.rendezvous.protocol.handshake import Handshake, HandshakeState, Identity
from perseid.rendezvous.protocol.wire import Address
from perseid.rendezvous.punch.dialer import ConnectionAttempt, Dialer
from perseid.rendezvous.punch.encryption import TlsHandshake
from perseid.rendezvous.punch.links import Link, PeerConnection
from perseid.rendezvous.punch.nat import dial_candidates, direct_impossible

if TYPE_CHECKING:  # OpenSSL takes its time to load, and most links are plain
    from perseid.rendezvous.net.tls import JobCertificate, TlsSession

DIRECT_SECONDS = 5.0
"""Time for a direct connection before the relay is used; 1.5 s was too short under packet loss."""
SLOW_PEER_SECONDS = 10.0
"""Additional time if there is a connection and only the peer's HELLO is late."""
ATTEMPT_SECONDS = 60.0
"""Time for an attempt as a whole, from when the peer's address is known."""
RELAY_RETRY_SECONDS = 0.5
"""Pause between two tries of the relay; a busy peer may miss the server's time limit."""
REQUEST_SECONDS = 0.03
"""Without a connection after this time, the peer is asked through the server to connect, too."""
REQUEST_SLOW_SECONDS = 0.5
"""The same if there is a connection and only the peer's HELLO is late."""
MAX_UNIDENTIFIED = 256
"""Accepted connections without a valid HELLO, in addition to one for each rank of the job. Beyond
that the oldest is dropped."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What hole punching reports to the client and asks of it, in the event loop's thread."""

    linked: Callable[[Link], None]
    """A peer is connected."""
    failed: Callable[[int, str], None]
    """A rank cannot be reached, for this reason."""
    request_connect: Callable[[int], None]
    """Ask a rank, through the server, to connect, too."""
    subscribe: Callable[[int], None]
    """Ask the server for a rank's address."""
    relay: Callable[[int], None]
    """Open a relayed stream to a rank; ends in ``relayed`` or ``relay_failed``."""


class HolePuncher:
    """Connects one worker to its peers.

    Parameters
    ----------
    world
        Number of ranks of the job: all of them may connect at once.
    transport
        ``auto``: direct if possible, else relayed; ``direct``: never relayed; ``relay``: always
        relayed, whatever the peer's setting.
    patience
        Seconds for which a peer may be too busy to answer; at least `ATTEMPT_SECONDS`.
    certificate
        With one, all links are encrypted; the other ranks must have the same.
    """

    def __init__(
        self,
        loop: EventLoopThread,
        me: Identity,
        key: bytes,
        callbacks: Callbacks,
        world: int,
        transport: str = "auto",
        patience: float = 0.0,
        certificate: JobCertificate | None = None,
    ) -> None:
        self._certificate = certificate
        self._encrypting: dict[int, TlsHandshake] = {}
        self.loop, self.me, self._key, self._callbacks = loop, me, key, callbacks
        self._transport = transport
        self._attempt_seconds = max(ATTEMPT_SECONDS, patience)
        self.can_relay = False
        self.self_peer: PeerRecord | None = None
        """This worker as the server sees it."""
        self.peers: dict[int, PeerRecord] = {}
        """The other ranks as the server described them."""
        self._attempts: dict[int, ConnectionAttempt] = {}
        self._unidentified: dict[PeerConnection, None] = {}
        self._awaiting_record: dict[int, list[PeerConnection]] = {}
        self._settled: dict[int, bytes] = {}
        """Instances of the connected ranks."""
        self._listeners: list[socket.socket] = []
        self._max_unidentified = MAX_UNIDENTIFIED + world
        self.dialer = Dialer(loop, self._connected)

    # --- listening ---------------------------------------------------------------------------

    def listen(self, listener: socket.socket) -> None:
        """Accept on a port, and connect from it to addresses of its family."""
        self.dialer.ports[listener.family] = listener.getsockname()[1]
        self._listeners.append(listener)
        self.loop.watch(listener, READ, lambda _: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        while listener in self._listeners:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            connection = PeerConnection(self, sock, Handshake(self.me, self._key), "direct")
            self._unidentified[connection] = None
            if len(self._unidentified) > self._max_unidentified:
                # A dict keeps the order of arrival, so this drops the oldest. Anyone can connect to
                # the port and say nothing: without a limit a scanner could use up all descriptors.
                next(iter(self._unidentified)).fail()

    # --- requests and news ----------------------------------------------------------------

    def start(self, rank: int, ask_peer: bool = True) -> None:
        """Connect to a peer, now or as soon as its address is known.

        Parameters
        ----------
        ask_peer
            Whether to ask the peer to connect, too, if it is not reached soon.
        """
        # Both ends may ask for the same link at any time: whoever comes second finds it made.
        if rank in self._settled or rank == self.me.rank:
            return
        attempt = self._attempts.get(rank) or self._new_attempt(rank)
        if rank in self.peers:
            self._proceed(attempt, ask_peer)
        else:
            self._callbacks.subscribe(rank)

    def _new_attempt(self, rank: int) -> ConnectionAttempt:
        attempt = self._attempts[rank] = ConnectionAttempt(rank, time.monotonic())
        return attempt

    def connect_requested(self, rank: int) -> None:
        """The peer is connecting to this worker: connect to it, so that both NATs open."""
        # Asking back would have the two ends ask each other forever.
        self.start(rank, ask_peer=False)

    def relay_invited(self, rank: int) -> None:
        """A peer waits for this worker at the relay."""
        if self._transport == "direct" or rank in self._settled:
            return
        # The invitation may come before this end has given up its own direct attempt: it still
        # needs an attempt to hang the relayed connection on.
        self.start(rank, ask_peer=False)
        attempt = self._attempts.get(rank)
        if attempt is not None and not attempt.relaying:
            attempt.relaying = True
            self._callbacks.relay(rank)

    def peer_updated(self, peer: PeerRecord) -> None:
        """The server described a peer, for the first time or again."""
        known = self.peers.get(peer.rank)
        peer = replace(peer, private=usable_candidates(peer.private, peer.public))
        self.peers[peer.rank] = peer
        # Their HELLO overtook the server's description of them, without which it cannot be checked.
        for connection in self._awaiting_record.pop(peer.rank, []):
            self._hello_received(connection)
        attempt = self._attempts.get(peer.rank)
        if attempt is None:
            return
        if known is not None and known.instance != peer.instance:
            # A restarted peer listens on another port, and its old sockets are dead.
            self._reset(attempt)
        self._proceed(attempt, ask_peer=True)

    def own_nat_updated(self) -> None:
        """More is known of the NAT in front of this worker."""
        for attempt in list(self._attempts.values()):
            if attempt.rank in self.peers:
                self._proceed(attempt, ask_peer=True)

    def forget(self, rank: int) -> None:
        """A peer is lost: drop everything that belongs to it."""
        self.peers.pop(rank, None)
        self._settled.pop(rank, None)
        if (encrypting := self._encrypting.pop(rank, None)) is not None:
            encrypting.close()
        attempt = self._attempts.get(rank)
        if attempt is not None:
            self._drop_attempt(attempt)

    def close(self) -> None:
        """Drop everything but the links that were handed over."""
        while self._listeners:
            listener = self._listeners.pop()
            self.loop.unwatch(listener)
            listener.close()
        for rank in {*self._attempts, *self._encrypting}:
            self.forget(rank)
        for connection in list(self._unidentified):
            connection.close()

    # --- one attempt -------------------------------------------------------------------------

    def _proceed(self, attempt: ConnectionAttempt, ask_peer: bool) -> None:
        peer, me = self.peers[attempt.rank], self.self_peer
        # Which addresses can be dialed depends on this worker's own: the welcome is still to come.
        if me is None:
            return
        later = self.loop.call_later
        if not attempt.started:
            attempt.started = True
            attempt.timers.append(later(DIRECT_SECONDS, lambda: self._direct_timeout(attempt)))
            attempt.timers.append(
                later(self._attempt_seconds, lambda: self._attempt_timeout(attempt))
            )
        # The request waits a moment because most peers are reached, or connect by themselves,
        # first: in a large job each request saved is two messages less for the server.
        if ask_peer and not attempt.request_scheduled:
            attempt.request_scheduled = True
            attempt.timers.append(
                later(REQUEST_SECONDS, lambda: self._request_connect(attempt, REQUEST_SLOW_SECONDS))
            )
        # No use to wait for the time limit if the kinds of the two NATs rule a connection out.
        if self._transport == "relay" or direct_impossible(me, peer):
            self._fall_back(attempt)
            return
        if not attempt.handshaking():
            self.dialer.dial(attempt, dial_candidates(me, peer), peer.public)

    def _request_connect(self, attempt: ConnectionAttempt, patience: float = 0.0) -> None:
        if attempt.over or attempt.handshaking():
            return
        if patience and attempt.connected():  # another connection would not be faster
            attempt.timers.append(
                self.loop.call_later(patience, lambda: self._request_connect(attempt))
            )
        else:
            self._callbacks.request_connect(attempt.rank)

    def _connected(self, attempt: ConnectionAttempt, address: Address, sock: socket.socket) -> None:
        peer = self.peers.get(attempt.rank)
        if peer is None:
            sock.close()
            self.dialer.not_the_peer(attempt, address)
            return
        handshake = Handshake(self.me, self._key, attempt.rank, peer.instance)
        attempt.connections.append(PeerConnection(self, sock, handshake, "direct", address))

    def _reset(self, attempt: ConnectionAttempt) -> None:
        self.dialer.drop(attempt)
        for connection in attempt.connections:
            connection.close()
        attempt.connections.clear()
        attempt.selected = None

    def _direct_timeout(self, attempt: ConnectionAttempt) -> None:
        if attempt.over or attempt.relaying:
            return
        # The kernel of a busy machine accepts at once, long before the process sends its HELLO.
        limit = self._attempt_seconds
        if self._may_relay():
            limit = DIRECT_SECONDS + SLOW_PEER_SECONDS
        if attempt.connected() and time.monotonic() - attempt.began < limit:
            attempt.timers.append(self.loop.call_later(1.0, lambda: self._direct_timeout(attempt)))
        else:
            self._fall_back(attempt)

    def _may_relay(self) -> bool:
        return self._transport != "direct" and self.can_relay

    def _fall_back(self, attempt: ConnectionAttempt) -> None:
        if attempt.over or attempt.relaying:
            return
        if not self._may_relay():
            self._fail(attempt, "no direct connection, and there is no relay")
        # Only the lower rank falls back, and the higher waits for its invitation: if both decided
        # by their own clocks, one could choose the relay while the other settles on a direct
        # connection. Where only the relay may be used, there is nothing to decide differently.
        elif self.me.rank < attempt.rank or self._transport == "relay":
            attempt.relaying = True
            self._callbacks.relay(attempt.rank)

    def _attempt_timeout(self, attempt: ConnectionAttempt) -> None:
        if not attempt.over:
            self._fail(attempt, f"not reached in {self._attempt_seconds:g} s")

    def _fail(self, attempt: ConnectionAttempt, reason: str) -> None:
        self._drop_attempt(attempt)
        self._callbacks.failed(attempt.rank, reason)

    def _drop_attempt(self, attempt: ConnectionAttempt) -> None:
        attempt.over = True
        self._attempts.pop(attempt.rank, None)
        self._reset(attempt)
        for timer in attempt.timers:
            timer.cancel()

    # --- the relay's ends --------------------------------------------------------------------

    def relayed(self, rank: int, sock: socket.socket) -> None:
        """A relayed stream to a peer is open: start the handshake, as on a direct connection."""
        attempt, peer = self._attempts.get(rank), self.peers.get(rank)
        # The pair was connected directly, or the peer was lost, while the relay was being reached.
        if attempt is None or peer is None:
            sock.close()
            return
        sock.setblocking(False)
        handshake = Handshake(self.me, self._key, rank, peer.instance)
        attempt.connections.append(PeerConnection(self, sock, handshake, "relay"))

    def relay_failed(self, rank: int, reason: str, final: bool = False) -> None:
        """The relay could not be used for a peer; unless that is final, it is tried again."""
        attempt = self._attempts.get(rank)
        if attempt is None:
            return
        attempt.relaying = False
        if not final:
            again = self.loop.call_later(RELAY_RETRY_SECONDS, lambda: self._fall_back(attempt))
            attempt.timers.append(again)
        elif self.me.rank < rank or self._transport == "relay":
            self._fail(attempt, f"no direct connection, and the relay failed: {reason}")

    # --- handshakes ----------------------------------------------------------------------------

    def advanced(self, connection: PeerConnection, state: HandshakeState) -> None:
        """A handshake reached a new state."""
        if state is HandshakeState.HELLO_RECEIVED:
            self._hello_received(connection)
        elif state is HandshakeState.SELECT_RECEIVED:
            connection.send(connection.handshake.acknowledge())
            self._settle(connection)
        elif state is HandshakeState.DONE:
            self._settle(connection)

    def _hello_received(self, connection: PeerConnection) -> None:
        handshake = connection.handshake
        rank = handshake.peer
        # Closed by an earlier event of the same round.
        if rank is None or connection.sock.fileno() < 0:
            return
        if self._transport == "relay" and connection.transport == "direct":
            connection.fail()
            self.start(rank, ask_peer=False)  # the pair will be relayed
            return
        peer = self.peers.get(rank)
        # The peer is known to hold the job's key, but not yet whether it is the registered
        # instance.
        if peer is None:
            self._awaiting_record.setdefault(rank, []).append(connection)
            self._callbacks.subscribe(rank)
            return
        # A late connection of a process that was replaced, or the losing one of two that crossed.
        if peer.instance != handshake.instance or rank in self._settled:
            connection.fail()
            return
        attempt = self._attempts.get(rank) or self._new_attempt(rank)
        if connection in self._unidentified:
            del self._unidentified[connection]
            attempt.connections.append(connection)
            connection.send(handshake.hello())
        # The first valid connection wins. Only the lower rank chooses; if both did, each could pick
        # the connection that the other is about to close.
        if handshake.decides and attempt.selected is None:
            attempt.selected = connection
            connection.send(handshake.select())

    def _settle(self, connection: PeerConnection) -> None:
        rank = connection.handshake.peer
        attempt = self._attempts.get(rank) if rank is not None else None
        if rank is None or attempt is None or connection.sock.fileno() < 0:
            connection.close()
            return
        try:
            host, port = connection.sock.getpeername()[:2]
        except OSError:  # it was reset just now
            connection.fail()
            return
        attempt.connections.remove(connection)
        sock = connection.release()
        # Closes the pair's other connections: only `connection` is no longer among them.
        self._drop_attempt(attempt)
        self._settled[rank] = connection.handshake.instance or b""
        remote, began = Address(host, port), attempt.began
        link = Link(rank, sock, connection.transport, remote, time.monotonic() - began)
        if self._certificate is None:
            self._callbacks.linked(link)
        else:
            self._encrypt(link, self._certificate, began)

    def _encrypt(self, link: Link, certificate: JobCertificate, began: float) -> None:
        """Have the link once both ends have proved that they hold the job's certificate."""

        def done(session: TlsSession) -> None:
            self._encrypting.pop(link.rank, None)
            link.sock.setblocking(True)
            seconds = time.monotonic() - began
            self._callbacks.linked(replace(link, tls=session, seconds=seconds))

        def failed(reason: str) -> None:
            self._encrypting.pop(link.rank, None)
            self._settled.pop(link.rank, None)
            self._callbacks.failed(
                link.rank,
                f"the encrypted connection failed: {reason}; give all ranks the same certificate",
            )

        link.sock.setblocking(False)
        session = certificate.session(server_side=self.me.rank < link.rank)
        self._encrypting[link.rank] = TlsHandshake(self.loop, link.sock, session, done, failed)

    def dropped(self, connection: PeerConnection) -> None:
        """A connection ended before its handshake was complete."""
        self._unidentified.pop(connection, None)
        rank = connection.handshake.peer
        attempt = self._attempts.get(rank) if rank is not None else None
        if attempt is None or connection not in attempt.connections:
            return
        attempt.connections.remove(connection)
        # The chosen connection broke before the ACK: another that is ready takes its place.
        if attempt.selected is connection:
            attempt.selected = None
            for other in attempt.connections:
                if other.handshake.state is HandshakeState.HELLO_RECEIVED:
                    self._hello_received(other)
                    break
        if connection.transport == "relay":
            self.relay_failed(attempt.rank, "the relayed stream broke during the handshake")
        elif connection.dialed is not None:
            self.dialer.not_the_peer(attempt, connection.dialed)
        elif attempt.started and attempt.rank in self.peers:
            # The connection was accepted; perhaps nothing is being dialed from here.
            self._proceed(attempt, ask_peer=True)
