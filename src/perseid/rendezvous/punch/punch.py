"""Connections to peers: listen on and connect from the registered port, settle on one a pair.

Everything here runs in the reactor's thread. The lower rank decides, also when to fall back to the
relay, so falling back is free of races.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from perseid.rendezvous.net.event_loop import READ, EventLoopThread
from perseid.rendezvous.protocol import PeerRecord
from perseid.rendezvous.protocol.candidates import usable_candidates
from perseid.rendezvous.protocol.handshake import Handshake, HandshakeState, Identity
from perseid.rendezvous.protocol.wire import Address
from perseid.rendezvous.punch.attempts import ConnectionAttempt, Dialer
from perseid.rendezvous.punch.links import Link, PeerConnection
from perseid.rendezvous.punch.nat import dial_candidates, direct_impossible

DIRECT_SECONDS = 5.0
"""Time for a direct connection before the relay is asked (1.5 s was too short under loss)."""
SLOW_PEER_SECONDS = 10.0
"""More time where the peer is connected and only slow to greet."""
ATTEMPT_SECONDS = 60.0
"""Time for all means together, from when the peer's address is known."""
RELAY_RETRY_SECONDS = 0.5
"""Between two tries of the relay: the peer may be too busy to come in the server's time."""
REQUEST_SECONDS = 0.03
"""Without a connection after this, the server asks the peer to connect as well."""
REQUEST_SLOW_SECONDS = 0.5
"""The same where a connection is there whose other end has not greeted."""
MAX_UNIDENTIFIED = 256
"""Accepted connections that have not greeted yet, besides one a rank of the job; beyond that the
oldest is dropped."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What punching asks of the client and tells it; all called in the reactor's thread."""

    linked: Callable[[Link], None]
    failed: Callable[[int, str], None]
    request_connect: Callable[[int], None]
    """Ask the peer, through the server, to connect too."""
    subscribe: Callable[[int], None]
    """Ask the server for a rank's address."""
    relay: Callable[[int], None]
    """Open the relay to a rank; ends in ``relayed`` or ``relay_failed``."""


class HolePuncher:
    """The connections of one worker.

    Parameters
    ----------
    world
        Number of ranks that may connect at once.
    transport
        ``auto``: direct, then relay; ``direct``: never the relay; ``relay``: nothing else,
        whatever the other end would rather do.
    patience
        Seconds that a peer may be too busy to answer, if more than `ATTEMPT_SECONDS`.
    """

    def __init__(
        self,
        loop: EventLoopThread,
        me: Identity,
        key: bytes,
        hooks: Callbacks,
        world: int,
        transport: str = "auto",
        patience: float = 0.0,
    ) -> None:
        self.loop, self.me, self._key, self._hooks = loop, me, key, hooks
        self._transport = transport
        self._attempt_seconds = max(ATTEMPT_SECONDS, patience)
        self.can_relay = False
        self.self_peer: PeerRecord | None = None
        """This worker as the server sees it."""
        self.peers: dict[int, PeerRecord] = {}
        """What the server told of the others."""
        self._attempts: dict[int, ConnectionAttempt] = {}
        self._unidentified: dict[PeerConnection, None] = {}
        self._awaiting_record: dict[int, list[PeerConnection]] = {}
        self._settled: dict[int, bytes] = {}
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
                next(iter(self._unidentified)).fail()

    # --- what the client asks ----------------------------------------------------------------

    def start(self, rank: int, request_scheduled: bool = True) -> None:
        """Reach a peer; if its address is not known yet, as soon as it is."""
        if rank in self._settled or rank == self.me.rank:
            return
        attempt = self._attempts.get(rank) or self._new_attempt(rank)
        if rank in self.peers:
            self._proceed(attempt, request_scheduled)
        else:
            self._hooks.subscribe(rank)

    def _new_attempt(self, rank: int) -> ConnectionAttempt:
        attempt = self._attempts[rank] = ConnectionAttempt(rank, time.monotonic())
        return attempt

    def connect_requested(self, rank: int) -> None:
        """The peer connects to us: connect to it, so that both first packets are under way."""
        self.start(rank, request_scheduled=False)

    def relay_invited(self, rank: int) -> None:
        """The peer waits at the relay."""
        if self._transport == "direct" or rank in self._settled:
            return
        self.start(rank, request_scheduled=False)
        attempt = self._attempts.get(rank)
        if attempt is not None and not attempt.relaying:
            attempt.relaying = True
            self._hooks.relay(rank)

    def peer_updated(self, peer: PeerRecord) -> None:
        """The server told of a peer, or of its NAT kind."""
        known = self.peers.get(peer.rank)
        peer = replace(peer, private=usable_candidates(peer.private, peer.public))
        self.peers[peer.rank] = peer
        for connection in self._awaiting_record.pop(peer.rank, []):
            self._hello_received(connection)
        attempt = self._attempts.get(peer.rank)
        if attempt is None:
            return
        if known is not None and known.instance != peer.instance:
            self._reset(attempt)
        self._proceed(attempt, request_scheduled=True)

    def own_nat_updated(self) -> None:
        """This worker's own NAT kind became known."""
        for attempt in list(self._attempts.values()):
            if attempt.rank in self.peers:
                self._proceed(attempt, request_scheduled=True)

    def forget(self, rank: int) -> None:
        """A peer is lost: nothing of it is kept."""
        self.peers.pop(rank, None)
        self._settled.pop(rank, None)
        attempt = self._attempts.get(rank)
        if attempt is not None:
            self._drop_attempt(attempt)

    def close(self) -> None:
        """Drop everything but settled links."""
        while self._listeners:
            listener = self._listeners.pop()
            self.loop.unwatch(listener)
            listener.close()
        for rank in list(self._attempts):
            self.forget(rank)
        for connection in list(self._unidentified):
            connection.close()

    # --- one attempt -------------------------------------------------------------------------

    def _proceed(self, attempt: ConnectionAttempt, request_scheduled: bool) -> None:
        peer, me = self.peers[attempt.rank], self.self_peer
        if me is None:
            return
        later = self.loop.call_later
        if not attempt.started:
            attempt.started = True
            attempt.timers.append(later(DIRECT_SECONDS, lambda: self._direct_timeout(attempt)))
            attempt.timers.append(
                later(self._attempt_seconds, lambda: self._attempt_timeout(attempt))
            )
        if request_scheduled and not attempt.request_scheduled:
            attempt.request_scheduled = True
            attempt.timers.append(
                later(REQUEST_SECONDS, lambda: self._request_connect(attempt, REQUEST_SLOW_SECONDS))
            )
        if self._transport == "relay" or direct_impossible(me, peer):
            self._fall_back(attempt)
            return
        if not attempt.handshaking():
            self.dialer.dial(attempt, dial_candidates(me, peer), peer.public)

    def _request_connect(self, attempt: ConnectionAttempt, patience: float = 0.0) -> None:
        if attempt.over or attempt.handshaking():
            return
        if patience and attempt.connected():  # a second connection would not be greeted sooner
            attempt.timers.append(
                self.loop.call_later(patience, lambda: self._request_connect(attempt))
            )
        else:
            self._hooks.request_connect(attempt.rank)

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
        # A peer on a busy machine is reached at once, by its kernel, and greets much later.
        most = self._attempt_seconds
        if self._may_relay():
            most = DIRECT_SECONDS + SLOW_PEER_SECONDS
        if attempt.connected() and time.monotonic() - attempt.began < most:
            attempt.timers.append(self.loop.call_later(1.0, lambda: self._direct_timeout(attempt)))
        else:
            self._fall_back(attempt)

    def _may_relay(self) -> bool:
        return self._transport != "direct" and self.can_relay

    def _fall_back(self, attempt: ConnectionAttempt) -> None:
        if attempt.over or attempt.relaying:
            return
        if not self._may_relay():
            self._fail(attempt, "no direct connection came about, and there is no relay")
        elif self.me.rank < attempt.rank or self._transport == "relay":
            attempt.relaying = True
            self._hooks.relay(attempt.rank)

    def _attempt_timeout(self, attempt: ConnectionAttempt) -> None:
        if not attempt.over:
            self._fail(attempt, f"not reached in {self._attempt_seconds:g} s")

    def _fail(self, attempt: ConnectionAttempt, reason: str) -> None:
        self._drop_attempt(attempt)
        self._hooks.failed(attempt.rank, reason)

    def _drop_attempt(self, attempt: ConnectionAttempt) -> None:
        attempt.over = True
        self._attempts.pop(attempt.rank, None)
        self._reset(attempt)
        for timer in attempt.timers:
            timer.cancel()

    # --- the relay's ends --------------------------------------------------------------------

    def relayed(self, rank: int, sock: socket.socket) -> None:
        """The relay joined us with a peer: the same handshake as on a direct connection."""
        attempt, peer = self._attempts.get(rank), self.peers.get(rank)
        if attempt is None or peer is None:
            sock.close()
            return
        sock.setblocking(False)
        handshake = Handshake(self.me, self._key, rank, peer.instance)
        attempt.connections.append(PeerConnection(self, sock, handshake, "relay"))

    def relay_failed(self, rank: int, reason: str, final: bool = False) -> None:
        """No relay to this peer; unless that is final it is tried again."""
        attempt = self._attempts.get(rank)
        if attempt is None:
            return
        attempt.relaying = False
        if not final:
            again = self.loop.call_later(RELAY_RETRY_SECONDS, lambda: self._fall_back(attempt))
            attempt.timers.append(again)
        elif self.me.rank < rank or self._transport == "relay":
            self._fail(attempt, f"no direct connection came about, and no relay: {reason}")

    # --- settling ----------------------------------------------------------------------------

    def advanced(self, connection: PeerConnection, state: HandshakeState) -> None:
        """A connection's handshake moved on."""
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
        if rank is None or connection.sock.fileno() < 0:
            return
        if self._transport == "relay" and connection.transport == "direct":
            connection.fail()
            self.start(rank, request_scheduled=False)  # and meet the peer at the relay
            return
        peer = self.peers.get(rank)
        if peer is None:
            self._awaiting_record.setdefault(rank, []).append(connection)
            self._hooks.subscribe(rank)
            return
        if peer.instance != handshake.instance or rank in self._settled:
            connection.fail()
            return
        attempt = self._attempts.get(rank) or self._new_attempt(rank)
        if connection in self._unidentified:
            del self._unidentified[connection]
            attempt.connections.append(connection)
            connection.send(handshake.hello())
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
        except OSError:  # it was reset in this very moment
            connection.fail()
            return
        attempt.connections.remove(connection)
        sock = connection.release()
        self._drop_attempt(attempt)
        self._settled[rank] = connection.handshake.instance or b""
        seconds = time.monotonic() - attempt.began
        self._hooks.linked(Link(rank, sock, connection.transport, Address(host, port), seconds))

    def dropped(self, connection: PeerConnection) -> None:
        """A connection ended before it was settled."""
        self._unidentified.pop(connection, None)
        rank = connection.handshake.peer
        attempt = self._attempts.get(rank) if rank is not None else None
        if attempt is None or connection not in attempt.connections:
            return
        attempt.connections.remove(connection)
        if attempt.selected is connection:
            attempt.selected = None
            for other in attempt.connections:
                if other.handshake.state is HandshakeState.HELLO_RECEIVED:
                    self._hello_received(other)
                    break
        if connection.transport == "relay":
            self.relay_failed(attempt.rank, "the stream broke in the handshake")
        elif connection.dialed is not None:
            self.dialer.not_the_peer(attempt, connection.dialed)
        elif attempt.started and attempt.rank in self.peers:
            self._proceed(
                attempt, request_scheduled=True
            )  # it was accepted: nothing may be on its way from here
