"""Connections to peers: listen on and connect from the registered port, settle on one a pair.

Everything here runs in the reactor's thread. What was learnt from the laboratory: both sides'
first packets must be in flight at once, so refusals are answered by a random wait of about a round
trip; a pending connection is never given up, its retransmissions are the kernel's; EADDRNOTAVAIL
means that the peer's connection is being accepted; the lower rank decides, also when to fall back
to the relay, so falling back is free of races.
"""

from __future__ import annotations

import errno
import logging
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from perseid.rendezvous.dial import reusable_socket
from perseid.rendezvous.handshake import Handshake, HandshakeError, Identity, State
from perseid.rendezvous.nat import candidates, hopeless, retry_wait
from perseid.rendezvous.protocol import Peer
from perseid.rendezvous.reactor import READ, WRITE, Reactor, Timer
from perseid.rendezvous.wire import Address

PUNCH_SECONDS = 5.0
"""Time for a direct connection before the relay is asked (1.5 s was too short under loss)."""
HANDSHAKE_SECONDS = 8.0
"""Time for one connection's handshake: a lost segment costs the kernel a second or more."""
ATTEMPT_SECONDS = 60.0
"""Time for all means together, from when the peer's address is known."""
CALL_SECONDS = 0.03
"""Without success after this, the server asks the peer to connect as well."""
ACCEPTING_WAIT = (0.03, 0.08)
"""Seconds until the next try while the peer's own connection is being accepted."""
MAX_STRANGERS = 256
"""Accepted connections that have not greeted yet; beyond that the oldest is dropped."""
BACKLOG = 512
"""Connections that the kernel keeps for the listener."""

log = logging.getLogger("perseid.rendezvous.client")


@dataclass(frozen=True, slots=True)
class Link:
    """A settled connection to a peer; whoever gets it owns the socket."""

    rank: int
    """The peer."""
    sock: socket.socket
    """Connected, blocking, TCP_NODELAY."""
    way: str
    """``direct`` or ``relay``."""
    remote: Address
    """The socket's other end."""
    seconds: float
    """From the first try to the settlement."""


class PeerConnection:
    """One connected socket and its handshake."""

    def __init__(
        self, punch: Punch, sock: socket.socket, shake: Handshake, way: str, tried: Address | None
    ) -> None:
        self.punch, self.sock, self.shake, self.way, self.tried = punch, sock, shake, way, tried
        self._data = b""
        self._timer = punch.reactor.later(HANDSHAKE_SECONDS, self._late)
        punch.reactor.watch(sock, READ, self._readable)
        self.send(shake.hello())

    def send(self, frame: bytes) -> None:
        """Send a handshake frame; it always fits an empty socket buffer."""
        if not frame:
            return
        try:
            sent = self.sock.send(frame)
        except OSError:
            sent = 0
        if sent != len(frame):
            self.punch.reactor.call(self.fail)

    def _late(self) -> None:
        self.fail()

    def _readable(self, _events: int) -> None:
        try:
            data = self.sock.recv(self.shake.need - len(self._data))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.fail()
            return
        self._data += data
        if len(self._data) < self.shake.need:
            return
        frame, self._data = self._data, b""
        try:
            state = self.shake.feed(frame)
        except HandshakeError as error:
            log.debug("connection dropped: %s", error)
            self.fail()
            return
        self.punch.advanced(self, state)

    def release(self) -> socket.socket:
        """The socket, blocking, no longer watched."""
        self._timer.cancel()
        self.punch.reactor.forget(self.sock)
        self.sock.setblocking(True)
        return self.sock

    def close(self) -> None:
        """Drop it."""
        self._timer.cancel()
        if self.sock.fileno() >= 0:
            self.punch.reactor.forget(self.sock)
            self.sock.close()

    def fail(self) -> None:
        """Drop it and tell."""
        if self.sock.fileno() >= 0:
            self.close()
            self.punch.dropped(self)


@dataclass(slots=True)
class Attempt:
    """All that is done to reach one peer."""

    rank: int
    began: float
    tries: dict[Address, int] = field(default_factory=dict)
    """How often each candidate was refused."""
    pending: dict[Address, socket.socket] = field(default_factory=dict)
    """Connections on their way."""
    waiting: dict[Address, Timer] = field(default_factory=dict)
    """Candidates that will be tried again."""
    connections: list[PeerConnection] = field(default_factory=list)
    """Connected, in the handshake."""
    selected: PeerConnection | None = None
    relaying: bool = False
    """Whether the relay was asked."""
    going: bool = False
    """Whether its time for a direct connection runs."""
    calling: bool = False
    """Whether the peer will be asked to connect as well."""
    timers: list[Timer] = field(default_factory=list)

    def settling(self) -> bool:
        """Whether a connection has greeted validly."""
        return any(one.shake.state is not State.GREETING for one in self.connections)


@dataclass(frozen=True, slots=True)
class Hooks:
    """What punching asks of the client and tells it; all called in the reactor's thread."""

    linked: Callable[[Link], None]
    failed: Callable[[int, str], None]
    call: Callable[[int], None]
    """Ask the peer, through the server, to connect too."""
    want: Callable[[int], None]
    """Ask the server for a rank's address."""
    relay: Callable[[int], None]
    """Open the relay to a rank; ends in ``relayed`` or ``relay_failed``."""


class Punch:
    """The connections of one worker.

    Parameters
    ----------
    transport
        ``auto``: direct, then relay; ``direct``: never the relay; ``relay``: nothing else.
    """

    def __init__(
        self, reactor: Reactor, me: Identity, key: bytes, hooks: Hooks, transport: str = "auto"
    ) -> None:
        self.reactor, self.me, self._key, self._hooks = reactor, me, key, hooks
        self._transport = transport
        self.can_relay = False
        self.round_trip = 0.0
        self.self_peer: Peer | None = None
        """This worker as the server sees it."""
        self.peers: dict[int, Peer] = {}
        """What the server told of the others."""
        self._attempts: dict[int, Attempt] = {}
        self._strangers: dict[PeerConnection, None] = {}
        self._parked: dict[int, list[PeerConnection]] = {}
        self._settled: dict[int, bytes] = {}
        self._listener: socket.socket | None = None
        self._port = 0
        self._family = socket.AF_INET

    # --- listening ---------------------------------------------------------------------------

    def listen(self, family: socket.AddressFamily, port: int) -> None:
        """Accept on the registered port."""
        self._family, self._port = family, port
        self._listener = reusable_socket(family, port)
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        self.reactor.watch(self._listener, READ, self._accept)

    def _accept(self, _events: int) -> None:
        while self._listener is not None:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            connection = PeerConnection(self, sock, Handshake(self.me, self._key), "direct", None)
            self._strangers[connection] = None
            if len(self._strangers) > MAX_STRANGERS:
                next(iter(self._strangers)).fail()

    # --- what the client asks ----------------------------------------------------------------

    def start(self, rank: int, calling: bool = True) -> None:
        """Reach a peer; if its address is not known yet, as soon as it is."""
        if rank in self._settled or rank == self.me.rank:
            return
        attempt = self._attempts.get(rank) or self._new_attempt(rank)
        if rank in self.peers:
            self._go(attempt, calling)
        else:
            self._hooks.want(rank)

    def _new_attempt(self, rank: int) -> Attempt:
        attempt = self._attempts[rank] = Attempt(rank, time.monotonic())
        return attempt

    def called(self, rank: int) -> None:
        """The peer connects to us: connect to it, so that both first packets are under way."""
        self.start(rank, calling=False)

    def invited(self, rank: int) -> None:
        """The peer waits at the relay."""
        if self._transport == "direct" or rank in self._settled:
            return
        self.start(rank, calling=False)
        attempt = self._attempts.get(rank)
        if attempt is not None and not attempt.relaying:
            attempt.relaying = True
            self._hooks.relay(rank)

    def learnt(self, peer: Peer) -> None:
        """The server told of a peer, or of its NAT kind."""
        known = self.peers.get(peer.rank)
        self.peers[peer.rank] = peer
        for connection in self._parked.pop(peer.rank, []):
            self._greeted(connection)
        attempt = self._attempts.get(peer.rank)
        if attempt is None:
            return
        if known is not None and known.instance != peer.instance:
            self._reset(attempt)
        self._go(attempt, calling=True)

    def reconsider(self) -> None:
        """This worker's own NAT kind became known."""
        for attempt in list(self._attempts.values()):
            if attempt.rank in self.peers:
                self._go(attempt, calling=True)

    def forget(self, rank: int) -> None:
        """A peer is lost: nothing of it is kept."""
        self.peers.pop(rank, None)
        self._settled.pop(rank, None)
        attempt = self._attempts.pop(rank, None)
        if attempt is not None:
            self._reset(attempt)
            for timer in attempt.timers:
                timer.cancel()

    def close(self) -> None:
        """Drop everything but settled links."""
        if self._listener is not None:
            self.reactor.forget(self._listener)
            self._listener.close()
            self._listener = None
        for rank in list(self._attempts):
            self.forget(rank)
        for connection in list(self._strangers):
            connection.close()

    # --- one attempt -------------------------------------------------------------------------

    def _go(self, attempt: Attempt, calling: bool) -> None:
        peer, me = self.peers[attempt.rank], self.self_peer
        if me is None:
            return
        later = self.reactor.later
        if not attempt.going:
            attempt.going = True
            attempt.timers.append(later(PUNCH_SECONDS, lambda: self._fall_back(attempt)))
            attempt.timers.append(later(ATTEMPT_SECONDS, lambda: self._expired(attempt)))
        if calling and not attempt.calling:
            attempt.calling = True
            attempt.timers.append(later(CALL_SECONDS, lambda: self._call(attempt)))
        if self._transport == "relay" or hopeless(me, peer):
            self._fall_back(attempt)
            return
        found = candidates(me, peer)
        if attempt.settling():
            return
        for address in found:
            if address not in attempt.pending and address not in attempt.waiting:
                self._try(attempt, address)

    def _call(self, attempt: Attempt) -> None:
        if self._attempts.get(attempt.rank) is attempt and not attempt.settling():
            self._hooks.call(attempt.rank)

    def _try(self, attempt: Attempt, address: Address) -> None:
        attempt.waiting.pop(address, None)
        if self._attempts.get(attempt.rank) is not attempt:
            return
        if attempt.settling():
            self._again(attempt, address, random.uniform(*ACCEPTING_WAIT))
            return
        try:
            sock = reusable_socket(self._family, self._port)
        except OSError as error:
            self._refused(attempt, address, error.errno or 0)
            return
        sock.setblocking(False)
        code = sock.connect_ex((address.host, address.port))
        if code in (0, errno.EINPROGRESS):
            attempt.pending[address] = sock
            self.reactor.watch(sock, WRITE, lambda _: self._connected(attempt, address))
        else:
            sock.close()
            self._refused(attempt, address, code)

    def _connected(self, attempt: Attempt, address: Address) -> None:
        sock = attempt.pending.pop(address, None)
        if sock is None:  # dropped by another event of the same round
            return
        self.reactor.forget(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        peer = self.peers.get(attempt.rank)
        if code or peer is None:
            sock.close()
            self._refused(attempt, address, code)
            return
        shake = Handshake(self.me, self._key, attempt.rank, peer.instance)
        attempt.connections.append(PeerConnection(self, sock, shake, "direct", address))

    def _refused(self, attempt: Attempt, address: Address, code: int) -> None:
        tries = attempt.tries[address] = attempt.tries.get(address, 0) + 1
        if code == errno.EADDRNOTAVAIL:
            wait = random.uniform(*ACCEPTING_WAIT)
        else:
            wait = retry_wait(self.round_trip, tries, random.random())
        self._again(attempt, address, wait)

    def _again(self, attempt: Attempt, address: Address, wait: float) -> None:
        attempt.waiting[address] = self.reactor.later(wait, lambda: self._try(attempt, address))

    def _reset(self, attempt: Attempt) -> None:
        for sock in attempt.pending.values():
            self.reactor.forget(sock)
            sock.close()
        for timer in attempt.waiting.values():
            timer.cancel()
        for connection in attempt.connections:
            connection.close()
        attempt.pending.clear()
        attempt.waiting.clear()
        attempt.connections.clear()
        attempt.selected = None

    def _fall_back(self, attempt: Attempt) -> None:
        if self._attempts.get(attempt.rank) is not attempt or attempt.relaying:
            return
        if self._transport == "direct" or not self.can_relay:
            self._fail(attempt, "no direct connection came about, and there is no relay")
        elif self.me.rank < attempt.rank:
            attempt.relaying = True
            self._hooks.relay(attempt.rank)

    def _expired(self, attempt: Attempt) -> None:
        if self._attempts.get(attempt.rank) is attempt:
            self._fail(attempt, f"not reached in {ATTEMPT_SECONDS:g} s")

    def _fail(self, attempt: Attempt, reason: str) -> None:
        self._drop_attempt(attempt)
        self._hooks.failed(attempt.rank, reason)

    def _drop_attempt(self, attempt: Attempt) -> None:
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
        shake = Handshake(self.me, self._key, rank, peer.instance)
        attempt.connections.append(PeerConnection(self, sock, shake, "relay", None))

    def relay_failed(self, rank: int, reason: str) -> None:
        """No relay to this peer."""
        attempt = self._attempts.get(rank)
        if attempt is None:
            return
        attempt.relaying = False
        if self.me.rank < rank or self._transport == "relay":
            self._fail(attempt, f"no direct connection came about, and no relay: {reason}")

    # --- settling ----------------------------------------------------------------------------

    def advanced(self, connection: PeerConnection, state: State) -> None:
        """A connection's handshake moved on."""
        if state is State.GREETED:
            self._greeted(connection)
        elif state is State.CHOSEN:
            connection.send(connection.shake.acknowledge())
            self._settle(connection)
        elif state is State.DONE:
            self._settle(connection)

    def _greeted(self, connection: PeerConnection) -> None:
        shake = connection.shake
        rank = shake.peer
        if rank is None or connection.sock.fileno() < 0:
            return
        peer = self.peers.get(rank)
        if peer is None:
            self._parked.setdefault(rank, []).append(connection)
            self._hooks.want(rank)
            return
        if peer.instance != shake.instance or rank in self._settled:
            connection.fail()
            return
        attempt = self._attempts.get(rank) or self._new_attempt(rank)
        if connection in self._strangers:
            del self._strangers[connection]
            attempt.connections.append(connection)
            connection.send(shake.hello())
        if shake.lower and attempt.selected is None:
            attempt.selected = connection
            connection.send(shake.select())

    def _settle(self, connection: PeerConnection) -> None:
        rank = connection.shake.peer
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
        self._settled[rank] = connection.shake.instance or b""
        seconds = time.monotonic() - attempt.began
        self._hooks.linked(Link(rank, sock, connection.way, Address(host, port), seconds))

    def dropped(self, connection: PeerConnection) -> None:
        """A connection ended before it was settled."""
        self._strangers.pop(connection, None)
        rank = connection.shake.peer
        attempt = self._attempts.get(rank) if rank is not None else None
        if attempt is None or connection not in attempt.connections:
            return
        attempt.connections.remove(connection)
        if attempt.selected is connection:
            attempt.selected = None
            for other in attempt.connections:
                if other.shake.state is State.GREETED:
                    self._greeted(other)
                    break
        if connection.way == "relay":
            self.relay_failed(attempt.rank, "the stream broke in the handshake")
        elif connection.tried is not None:
            self._again(attempt, connection.tried, random.uniform(*ACCEPTING_WAIT))
