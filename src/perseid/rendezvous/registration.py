"""What the registration's own thread does: heartbeats, notices, registering again, punching.

``Client`` adds the calls that wait; all state that both touch is guarded by one condition.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from perseid.errors import (
    RendezvousError,
    RendezvousRefused,
    RendezvousUnreachable,
    Replaced,
)
from perseid.rendezvous import auth
from perseid.rendezvous.dial import Endpoint
from perseid.rendezvous.handshake import Identity
from perseid.rendezvous.nat import mapping_kind
from perseid.rendezvous.protocol import (
    FROM_SERVER,
    AskBack,
    Back,
    Beat,
    Call,
    Complete,
    Departure,
    Filter,
    Frame,
    Gone,
    Invite,
    Leave,
    Lost,
    Missing,
    Nat,
    Peer,
    Peers,
    Register,
    Relay,
    Superseded,
    TellNat,
    Want,
    decode,
)
from perseid.rendezvous.protocol import Mapping as NatMapping
from perseid.rendezvous.punch import Hooks, Link, Punch
from perseid.rendezvous.reactor import READ, Reactor
from perseid.rendezvous.session import Session
from perseid.rendezvous.streams import await_end, observe, open_registration, relay_stream
from perseid.rendezvous.wire import Address, ProtocolError, as_ranges

BEATS_A_HEARTBEAT = 4
"""Heartbeats sent in that time: three may be late."""
REJOIN_SECONDS = 60.0
"""How long a worker tries to register again after its connection broke."""
REJOIN_TRY_SECONDS = 3.0
"""Time for one of these tries; between them it is seen whether the client was closed."""
RETURN_SECONDS = 10.0
"""How long the others may take to come back to a restarted server before they count as lost."""
PROBE_SECONDS = 3.0
"""Time for finding out the kind of NAT."""
RECEIVE_BYTES = 256 * 1024
"""Bytes taken by one read of the control connection."""

log = logging.getLogger("perseid.rendezvous.client")


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened to the job; given to subscribers in the registration's thread."""

    kind: str
    """``lost``, ``left``, ``joined``, ``complete``, ``linked``, ``no-path``, ``replaced``,
    ``server-lost``, ``server-back`` or ``refused``."""
    rank: int = -1
    """The rank it is about; -1: none."""
    reason: str = ""
    """One clause for people."""


LAST_LINK_SECONDS = 0.5
"""After a rank's goodbye, how long a connection that it made may still be settling."""

WHY = {
    Departure.LEFT: "it said goodbye",
    Departure.CLOSED: "its connection to the rendezvous ended",
    Departure.SILENT: "its heartbeat stopped",
    Departure.REPLACED: "a newer registration of this rank took over",
}
"""Why a rank is gone, as a clause for people."""


class Registration:
    """The thread's side of one worker's registration."""

    def __init__(
        self,
        endpoint: Endpoint,
        hello: Register,
        key: bytes | None,
        session: Session,
        transport: str,
    ) -> None:
        self._endpoint, self._hello, self._key = endpoint, hello, key
        self._changed = threading.Condition()
        self._links: dict[int, Link] = {}
        self._taken: set[int] = set()
        """Ranks whose links were handed out: their sockets belong to the caller."""
        self._ways: dict[int, str] = {}
        self._lost: dict[int, str] = {}
        self._left: set[int] = set()
        self._out_of_reach: set[int] = set()
        """Ranks that left so long ago that no connection of theirs is still on its way."""
        self._failed: dict[int, str] = {}
        self._missing: list[int] | None = None
        self._complete = False
        self._closed = False
        self._fatal: RendezvousError | None = None
        self._subscribers: list[Callable[[Notice], None]] = []
        self._wanted: set[int] = set()
        self._unconfirmed: set[int] = set()
        self._peers: dict[int, Peer] = {}
        self._nat = Nat()
        self._reactor = Reactor(f"perseid-rendezvous-{hello.rank}")
        identity = Identity(hello.job, hello.generation, hello.rank, hello.instance)
        hooks = Hooks(self._linked, self._no_path, self._call, self._want, self._open_relay)
        peer_key = auth.peer_key(key, hello.job)
        self._punch = Punch(self._reactor, identity, peer_key, hooks, transport)
        self._control: socket.socket | None = None
        self._unsent = b""
        self._heard = 0.0
        self._family = session.sock.family
        self._port: int = session.sock.getsockname()[1]
        self._punch.listen(socket.AddressFamily(self._family), self._port)
        self._reactor.call(lambda: self._adopt(session))
        self._reactor.start()

    @property
    def rank(self) -> int:
        """This worker's number."""
        return self._hello.rank

    # --- the control connection (in the reactor's thread from here on) -----------------------

    def _adopt(self, session: Session) -> None:
        sock, welcome = session.sock, session.welcome
        sock.setblocking(False)
        self._control, self._reader, self._unsent = sock, session.reader, b""
        self._heard = time.monotonic()
        local = Address(*sock.getsockname()[:2])
        self._punch.round_trip = session.round_trip
        self._punch.can_relay = welcome.relay
        self._server = Address(*sock.getpeername()[:2])
        self._beat_seconds = welcome.heartbeat / 1000
        self._local = local
        self._set_self(welcome.address)
        self._reactor.watch(sock, READ, self._readable)
        if self._beat_seconds:
            self._beat(sock)
        self._send(TellNat(self._nat))
        self._find_nat(welcome.address, welcome.probe_port)
        self._tell(Notice("server-back"))

    def _set_self(self, public: Address) -> None:
        mapping = mapping_kind(self._local, public, None)
        if mapping is not NatMapping.UNKNOWN:
            self._nat = self._nat._replace(mapping=mapping)
        hello = self._hello
        self._punch.self_peer = Peer(hello.rank, hello.instance, self._nat, public, (self._local,))
        self._punch.reconsider()

    def _find_nat(self, public: Address, probe_port: int) -> None:
        if self._nat.filter is Filter.UNKNOWN and not _loopback(public):
            self._send(AskBack())
        if self._nat.mapping is not NatMapping.UNKNOWN or not probe_port:
            return
        target = Endpoint(self._server.host, probe_port)

        def probe() -> None:
            try:
                seen = observe(target, self._port, self._family, PROBE_SECONDS)
            except RendezvousError as error:
                log.debug("no second observation: %s", error)
                return
            kind = mapping_kind(self._local, public, seen.address)
            self._reactor.call(lambda: self._learn_nat(mapping=kind))

        threading.Thread(target=probe, name="perseid-probe", daemon=True).start()

    def _learn_nat(
        self, mapping: NatMapping | None = None, filtering: Filter | None = None
    ) -> None:
        self._nat = Nat(mapping or self._nat.mapping, filtering or self._nat.filter)
        if self._punch.self_peer is not None:
            self._set_self(self._punch.self_peer.public)
        self._send(TellNat(self._nat))

    def _readable(self, _events: int) -> None:
        if self._control is None:
            return
        try:
            data = self._control.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._disconnected()
            return
        self._heard = time.monotonic()
        try:
            for kind, body in self._reader.feed(data):
                self._frame(decode(FROM_SERVER, kind, body))
        except ProtocolError as error:
            log.warning("the server sent what cannot be read: %s", error)
            self._disconnected()

    def _frame(self, frame: Frame) -> None:
        if isinstance(frame, Peers):
            for peer in frame.peers:
                self._learn(peer)
        elif isinstance(frame, Lost):
            for gone in frame.gone:
                self._lose(gone)
        elif isinstance(frame, Missing):
            with self._changed:
                self._missing = [rank for part in frame.ranges for rank in part]
                self._changed.notify_all()
        elif isinstance(frame, Complete):
            with self._changed:
                self._complete = True
                self._changed.notify_all()
            self._tell(Notice("complete"))
        elif isinstance(frame, Call):
            for rank in frame.ranks:
                self._punch.called(rank)
        elif isinstance(frame, Invite):
            self._punch.invited(frame.rank)
        elif isinstance(frame, Back):
            self._learn_nat(filtering=frame.filter)
        elif isinstance(frame, Superseded):
            self._superseded(frame)

    def _learn(self, peer: Peer) -> None:
        if peer.rank == self.rank:
            return
        known = self._peers.get(peer.rank)
        if known is not None and known.instance != peer.instance:
            self._lose(Gone(peer.rank, known.instance, Departure.REPLACED))
        self._unconfirmed.discard(peer.rank)
        with self._changed:
            joined = peer.rank not in self._peers
            self._peers[peer.rank] = peer
            self._lost.pop(peer.rank, None)
            self._left.discard(peer.rank)
            self._out_of_reach.discard(peer.rank)
        self._punch.learnt(peer)
        if joined:
            self._tell(Notice("joined", peer.rank))

    def _lose(self, gone: Gone) -> None:
        known = self._peers.get(gone.rank)
        if gone.rank == self.rank or (known is not None and known.instance != gone.instance):
            return
        reason = WHY[gone.reason]
        left = gone.reason is Departure.LEFT
        with self._changed:
            self._peers.pop(gone.rank, None)
            if left:
                self._left.add(gone.rank)
            else:
                self._lost[gone.rank] = reason
                self._close_unless_taken(self._links.pop(gone.rank, None))
            self._changed.notify_all()
        if left:
            self._reactor.later(LAST_LINK_SECONDS, partial(self._no_more_of, gone.rank))
        else:
            self._punch.forget(gone.rank)
        self._tell(Notice("left" if left else "lost", gone.rank, reason))

    def _no_more_of(self, rank: int) -> None:
        # A quick rank connects, sends and leaves; its goodbye may come before the handshake's end.
        with self._changed:
            if rank in self._left:
                self._out_of_reach.add(rank)
                self._changed.notify_all()

    def _close_unless_taken(self, link: Link | None) -> None:
        if link is not None and link.rank not in self._taken:
            link.sock.close()
        elif link is not None:
            self._taken.discard(link.rank)

    def _superseded(self, frame: Superseded) -> None:
        what = "rank" if frame.generation == self._hello.generation else "generation"
        self._end(
            Replaced(
                f"Rank {self.rank} of job {self._hello.job!r} was replaced by a newer "
                f"registration (a new {what}); this worker is an abandoned attempt."
            ),
            "replaced",
        )

    def _end(self, error: RendezvousError, kind: str) -> None:
        with self._changed:
            self._fatal = error
            self._changed.notify_all()
        self._drop_control()
        self._punch.close()
        self._tell(Notice(kind, self.rank, str(error)))

    def _beat(self, sock: socket.socket) -> None:
        if self._control is not sock:
            return
        silent = time.monotonic() - self._heard
        if silent > 3 * self._beat_seconds:
            log.warning("the rendezvous has been silent for %.1f s", silent)
            self._disconnected()
            return
        self._send(Beat())
        wait = self._beat_seconds / BEATS_A_HEARTBEAT
        self._reactor.later(wait, lambda: self._beat(sock))

    def _send_soon(self, frame: Frame) -> None:
        self._reactor.call(lambda: self._send(frame))

    def _send(self, frame: Frame) -> None:
        if self._control is None:
            return
        data = self._unsent + frame.pack()
        self._unsent = b""
        try:
            sent = self._control.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._disconnected()
            return
        if sent < len(data):
            # The next frame, at the latest the next heartbeat, takes it along.
            self._unsent = data[sent:]

    def _drop_control(self) -> None:
        if self._control is not None:
            self._reactor.forget(self._control)
            self._control.close()
            self._control = None

    # --- registering again -------------------------------------------------------------------

    def _disconnected(self) -> None:
        if self._control is None:
            return
        self._drop_control()
        if self._closed or self._fatal is not None:
            return
        self._tell(Notice("server-lost", -1, "the connection to the rendezvous ended"))
        self._unconfirmed = set(self._peers)
        with self._changed:
            self._complete = False
        threading.Thread(target=self._rejoin, name="perseid-rejoin", daemon=True).start()

    def _rejoin(self) -> None:
        end = time.monotonic() + REJOIN_SECONDS
        with self._changed:
            wanted = as_ranges((self._wanted | set(self._peers)) - {self.rank})
        interest = tuple({*self._hello.interest, *wanted})
        while not self._closed:
            time.sleep(random.uniform(0.01, 0.1))
            hello = replace(self._hello, nonce=auth.fresh_nonce(), interest=interest)
            soon = min(end, time.monotonic() + REJOIN_TRY_SECONDS)
            try:
                session = open_registration(
                    self._endpoint, hello, self._key, soon, self._port, self._family
                )
            except RendezvousUnreachable as unreachable:
                if time.monotonic() < end:
                    continue
                self._reactor.call(partial(self._end, unreachable, "refused"))
            except RendezvousRefused as refused:
                self._reactor.call(partial(self._end, refused, "refused"))
            else:
                self._reactor.call(partial(self._returned, session))
                if self._closed:  # the thread that would take it has ended
                    session.sock.close()
            return

    def _returned(self, session: Session) -> None:
        if self._closed:
            session.sock.close()
            return
        self._adopt(session)
        self._reactor.later(RETURN_SECONDS, self._give_up_unconfirmed)

    def _give_up_unconfirmed(self) -> None:
        if self._control is None:
            return
        for rank in self._unconfirmed & set(self._peers):
            self._lose(Gone(rank, self._peers[rank].instance, Departure.CLOSED))
        self._unconfirmed = set()

    # --- hooks of punching -------------------------------------------------------------------

    def _linked(self, link: Link) -> None:
        with self._changed:
            self._links[link.rank] = link
            self._ways[link.rank] = link.way
            self._changed.notify_all()
        self._tell(Notice("linked", link.rank, link.way))

    def _no_path(self, rank: int, reason: str) -> None:
        with self._changed:
            self._failed[rank] = reason
            self._changed.notify_all()
        self._tell(Notice("no-path", rank, reason))

    def _call(self, rank: int) -> None:
        self._send(Call((rank,)))

    def _want(self, rank: int) -> None:
        covered = any(rank in part for part in self._hello.interest) or rank in self._wanted
        if not covered:
            self._wanted.add(rank)
            self._send(Want((range(rank, rank + 1),)))

    def _open_relay(self, rank: int) -> None:
        hello = self._hello
        request = Relay(
            hello.job, hello.rank, rank, hello.generation, hello.instance, auth.fresh_nonce()
        )
        server, family = Endpoint(self._server.host, self._server.port), self._family

        def open_it() -> None:
            try:
                sock = relay_stream(server, family, request, self._key)
            except (RendezvousError, ProtocolError, OSError) as error:
                reason = str(error)
                self._reactor.call(lambda: self._punch.relay_failed(rank, reason))
            else:
                self._reactor.call(lambda: self._punch.relayed(rank, sock))

        threading.Thread(target=open_it, name="perseid-relay", daemon=True).start()

    def _break_off(self) -> None:
        self._drop_control()
        self._punch.close()

    def _leave(self) -> None:
        self._send(Leave())
        if self._control is not None:
            self._reactor.forget(self._control)
            await_end(self._control)
        self._drop_control()
        self._punch.close()

    def _tell(self, notice: Notice) -> None:
        for call in list(self._subscribers):
            try:
                call(notice)
            except Exception:
                log.exception("a subscriber failed")


def _loopback(address: Address) -> bool:
    return address.host == "::1" or address.host.startswith("127.")
