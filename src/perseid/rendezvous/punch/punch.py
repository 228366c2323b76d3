"""Connections to peers: listens on and dials from the registered port, and keeps one for each pair.

Everything here runs in the event loop's thread. The lower rank of a pair decides which connection
is kept and when to fall back to the relay, so that the two ends cannot decide differently.
"""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from perseid.rendezvous.net.event_loop import READ, EventLoopThread
from perseid.rendezvous.protocol import PeerRecord
from perseid.rendezvous.protocol.candidates import usable_candidates
from perseid.rendezvous.protocol.handshake import Handshake, HandshakeState, Identity
from perseid.rendezvous.protocol.wire import Address
from perseid.rendezvous.punch.dialer import ConnectionAttempt
from perseid.rendezvous.punch.encryption import LinkEncryption
from perseid.rendezvous.punch.links import Link, PeerConnection
from perseid.rendezvous.punch.peer_attempts import Callbacks, ConnectionAttempts

if TYPE_CHECKING:  # OpenSSL takes its time to load, and most links are plain
    from perseid.rendezvous.net.tls import JobCertificate

MAX_UNIDENTIFIED = 256
"""Accepted connections without a valid HELLO, in addition to one for each rank of the job. Beyond
that the oldest is dropped."""


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
        Seconds for which a peer may be too busy to answer.
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
        self._encryption = None
        if certificate is not None:
            self._encryption = LinkEncryption(
                loop, certificate, me.rank, callbacks.linked, self._encryption_failed
            )
        self.loop, self._me, self._key, self._callbacks = loop, me, key, callbacks
        self._transport = transport
        self._attempts = ConnectionAttempts(
            loop, me.rank, callbacks, transport, patience, self._connected
        )
        self._peers = self._attempts.peers
        self._unidentified: dict[PeerConnection, None] = {}
        self._awaiting_record: dict[int, list[PeerConnection]] = {}
        self._settled: dict[int, bytes] = {}
        """Instances of the connected ranks."""
        self._listeners: list[socket.socket] = []
        self._max_unidentified = MAX_UNIDENTIFIED + world

    # --- listening ---------------------------------------------------------------------------

    def listen(self, listener: socket.socket) -> None:
        """Accept on a port, and connect from it to addresses of its family."""
        self._attempts.dialer.ports[listener.family] = listener.getsockname()[1]
        self._listeners.append(listener)
        self.loop.watch(listener, READ, lambda _: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        while listener in self._listeners:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            connection = PeerConnection(self, sock, Handshake(self._me, self._key), "direct")
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
        if rank in self._settled or rank == self._me.rank:
            return
        attempt = self._attempts.of(rank)
        if rank in self._peers:
            self._attempts.proceed(attempt, ask_peer)
        else:
            self._callbacks.subscribe(rank)

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
        known = self._peers.get(peer.rank)
        usable = usable_candidates(peer.private, peer.public)
        if usable != peer.private:  # seldom, and a large job has many peers
            peer = replace(peer, private=usable)
        self._peers[peer.rank] = peer
        # Their HELLO overtook the server's description of them, without which it cannot be checked.
        for connection in self._awaiting_record.pop(peer.rank, []):
            self._hello_received(connection)
        attempt = self._attempts.get(peer.rank)
        if attempt is None:
            return
        if known is not None and known.instance != peer.instance:
            # A restarted peer listens on another port, and its old sockets are dead.
            self._attempts.reset(attempt)
        self._attempts.proceed(attempt, ask_peer=True)

    def registered(self, round_trip: float, can_relay: bool) -> None:
        """The server granted the registration, for the first time or again.

        Parameters
        ----------
        round_trip
            Seconds to the server and back.
        can_relay
            Whether the server relays.
        """
        self._attempts.dialer.round_trip = round_trip
        self._attempts.can_relay = can_relay

    @property
    def self_peer(self) -> PeerRecord | None:
        """This worker as the server sees it; None before it has registered."""
        return self._attempts.self_peer

    def self_updated(self, record: PeerRecord) -> None:
        """More is known of this worker or of the NAT in front of it."""
        self._attempts.self_peer = record
        for attempt in self._attempts:
            if attempt.rank in self._peers:
                self._attempts.proceed(attempt, ask_peer=True)

    def forget(self, rank: int) -> None:
        """A peer is lost: drop everything that belongs to it."""
        self._peers.pop(rank, None)
        self._settled.pop(rank, None)
        if self._encryption is not None:
            self._encryption.drop(rank)
        attempt = self._attempts.get(rank)
        if attempt is not None:
            self._attempts.drop(attempt)

    def close(self) -> None:
        """Drop everything but the links that were handed over."""
        while self._listeners:
            listener = self._listeners.pop()
            self.loop.unwatch(listener)
            listener.close()
        for attempt in self._attempts:
            self.forget(attempt.rank)
        if self._encryption is not None:
            self._encryption.close()
        for connection in list(self._unidentified):
            connection.close()

    # --- connected sockets -------------------------------------------------------------------

    def _connected(self, attempt: ConnectionAttempt, address: Address, sock: socket.socket) -> None:
        peer = self._peers.get(attempt.rank)
        if peer is None:
            sock.close()
            self._attempts.dialer.not_the_peer(attempt, address)
            return
        handshake = Handshake(self._me, self._key, attempt.rank, peer.instance)
        attempt.connections.append(PeerConnection(self, sock, handshake, "direct", address))

    def relayed(self, rank: int, sock: socket.socket) -> None:
        """A relayed stream to a peer is open: start the handshake, as on a direct connection."""
        attempt, peer = self._attempts.get(rank), self._peers.get(rank)
        # The pair was connected directly, or the peer was lost, while the relay was being reached.
        if attempt is None or peer is None:
            sock.close()
            return
        sock.setblocking(False)
        handshake = Handshake(self._me, self._key, rank, peer.instance)
        attempt.connections.append(PeerConnection(self, sock, handshake, "relay"))

    def relay_failed(self, rank: int, reason: str, final: bool = False) -> None:
        """The relay could not be used for a peer; unless that is final, it is tried again."""
        self._attempts.relay_failed(rank, reason, final)

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
        peer = self._peers.get(rank)
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
        attempt = self._attempts.of(rank)
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
        attempt = self._attempts.get(rank)
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
        self._attempts.drop(attempt)
        self._settled[rank] = connection.handshake.instance or b""
        remote, began = Address(host, port), attempt.began
        link = Link(rank, sock, connection.transport, remote, time.monotonic() - began)
        if self._encryption is None:
            self._callbacks.linked(link)
        else:
            self._encryption.start(link, began)

    def _encryption_failed(self, rank: int, reason: str) -> None:
        self._settled.pop(rank, None)
        self._callbacks.failed(rank, reason)

    def dropped(self, connection: PeerConnection) -> None:
        """A connection ended before its handshake was complete."""
        self._unidentified.pop(connection, None)
        rank = connection.handshake.peer
        attempt = self._attempts.get(rank)
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
            self._attempts.dialer.not_the_peer(attempt, connection.dialed)
        elif attempt.started and attempt.rank in self._peers:
            # The connection was accepted; perhaps nothing is being dialed from here.
            self._attempts.proceed(attempt, ask_peer=True)
