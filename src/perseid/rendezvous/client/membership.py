"""What the registration's own thread does: notices, registering again, punching, finding the NAT.

``Client`` adds the calls that wait; all that both touch is in the ``Roster``.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import replace
from functools import partial

from perseid.errors import (
    RendezvousError,
    RendezvousRefusedError,
    RendezvousUnreachableError,
    ReplacedError,
)
from perseid.rendezvous.client.connections import Opened, observe, register_again, relay_stream
from perseid.rendezvous.client.control import Control
from perseid.rendezvous.client.peer_table import Notice, Roster
from perseid.rendezvous.client.session import Session
from perseid.rendezvous.net.endpoint import Endpoint
from perseid.rendezvous.net.event_loop import Reactor
from perseid.rendezvous.protocol import (
    AskBack,
    Back,
    Call,
    Complete,
    Departure,
    Filter,
    Frame,
    Gone,
    Invite,
    Lost,
    Mapping,
    Missing,
    Nat,
    Peer,
    Peers,
    Relay,
    Superseded,
    TellNat,
    Want,
    auth,
)
from perseid.rendezvous.protocol.handshake import Identity
from perseid.rendezvous.protocol.wire import Address, ProtocolError, as_ranges
from perseid.rendezvous.punch.nat import mapping_kind
from perseid.rendezvous.punch.punch import Hooks, Punch

REJOIN_SECONDS = 60.0
"""How long a worker tries to register again after its connection broke."""
REJOIN_TRY_SECONDS = 3.0
"""Time for one of these tries; between them it is seen whether the client was closed."""
RETURN_SECONDS = 10.0
"""How long the others may take to come back to a restarted server before they count as lost."""
PROBE_SECONDS = 3.0
"""Time for finding out the kind of NAT."""
LAST_LINK_SECONDS = 0.5
"""After a rank's goodbye, how long a connection that it made may still be settling."""

log = logging.getLogger("perseid.rendezvous.client.client")


class Registration:
    """The thread's side of one worker's registration.

    Parameters
    ----------
    opened
        Its sockets belong to this object from now on.
    """

    def __init__(
        self, endpoint: Endpoint, key: bytes | None, opened: Opened, transport: str
    ) -> None:
        hello = opened.hello
        self._endpoint, self._hello, self._key = endpoint, hello, key
        self._roster = Roster()
        self._wanted: set[int] = set()
        self._unconfirmed: set[int] = set()
        self._nat = Nat()
        self._reactor = Reactor(f"perseid-rendezvous-{hello.rank}")
        identity = Identity(hello.job, hello.generation, hello.rank, hello.instance)
        roster = self._roster
        hooks = Hooks(roster.linked, roster.no_path, self._call, self._want, self._open_relay)
        peer_key = auth.peer_key(key, hello.job)
        self._punch = Punch(self._reactor, identity, peer_key, hooks, hello.world, transport)
        self._control: Control | None = None
        self._port: int = opened.listeners[0].getsockname()[1]
        self._family = opened.listeners[0].family
        for listener in opened.listeners:
            self._punch.listen(listener)
        self._reactor.call(lambda: self._adopt(opened.session))
        self._reactor.start()

    @property
    def rank(self) -> int:
        """This worker's number."""
        return self._hello.rank

    # --- the control connection (in the reactor's thread from here on) -----------------------

    def _adopt(self, session: Session) -> None:
        welcome = session.welcome
        self._punch.dialler.round_trip = session.round_trip
        self._punch.can_relay = welcome.relay
        self._control = Control(self._reactor, session, self._frame, self._disconnected)
        self._local, self._server = self._control.local, self._control.server
        self._set_self(welcome.address)
        self._send(TellNat(self._nat))
        self._find_nat(welcome.address, welcome.probe_port)
        self._roster.tell(Notice("server-back"))

    def _send(self, frame: Frame) -> None:
        if self._control is not None:
            self._control.send(frame)

    def _send_soon(self, frame: Frame) -> None:
        self._reactor.call(lambda: self._send(frame))

    def _drop_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def _frame(self, frame: Frame) -> None:
        if isinstance(frame, Peers):
            for peer in frame.peers:
                self._learn(peer)
        elif isinstance(frame, Lost):
            for gone in frame.gone:
                self._lose(gone)
        elif isinstance(frame, Missing):
            self._roster.not_here([rank for part in frame.ranges for rank in part])
        elif isinstance(frame, Complete):
            self._roster.all_came()
        elif isinstance(frame, Call):
            for rank in frame.ranks:
                self._punch.called(rank)
        elif isinstance(frame, Invite):
            self._punch.invited(frame.rank)
        elif isinstance(frame, Back):
            self._learn_nat(filtering=frame.filter)
        elif isinstance(frame, Superseded):
            self._superseded(frame)

    # --- the others --------------------------------------------------------------------------

    def _learn(self, peer: Peer) -> None:
        if peer.rank == self.rank:
            return
        known = self._roster.peers.get(peer.rank)
        if known is not None and known.instance != peer.instance:
            self._lose(Gone(peer.rank, known.instance, Departure.REPLACED))
        self._unconfirmed.discard(peer.rank)
        self._roster.add(peer)
        self._punch.learnt(peer)

    def _lose(self, gone: Gone) -> None:
        known = self._roster.peers.get(gone.rank)
        if gone.rank == self.rank or (known is not None and known.instance != gone.instance):
            return
        if gone.reason is Departure.LEFT:
            # A quick rank connects, sends and leaves; its goodbye may come before the handshake's
            # end.
            later = partial(self._roster.no_more_of, gone.rank)
            self._reactor.later(LAST_LINK_SECONDS, later)
        else:
            self._punch.forget(gone.rank)
        self._roster.remove(gone)

    def _superseded(self, frame: Superseded) -> None:
        what = "rank" if frame.generation == self._hello.generation else "generation"
        self._end(
            ReplacedError(
                f"Rank {self.rank} of job {self._hello.job!r} was replaced by a newer "
                f"registration (a new {what}); this worker is an abandoned attempt."
            ),
            "replaced",
        )

    def _end(self, error: RendezvousError, kind: str) -> None:
        self._roster.end(error)
        self._break_off()
        self._roster.tell(Notice(kind, self.rank, str(error)))

    # --- this worker's own kind of NAT -------------------------------------------------------

    def _set_self(self, public: Address) -> None:
        mapping = mapping_kind(self._local, public, None)
        if mapping is not Mapping.UNKNOWN:
            self._nat = self._nat._replace(mapping=mapping)
        hello = self._hello
        own = (self._local, *hello.candidates)
        self._punch.self_peer = Peer(hello.rank, hello.instance, self._nat, public, own)
        self._punch.reconsider()

    def _find_nat(self, public: Address, probe_port: int) -> None:
        if self._nat.filter is Filter.UNKNOWN and not _loopback(public):
            self._send(AskBack())
        if self._nat.mapping is not Mapping.UNKNOWN or not probe_port:
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

    def _learn_nat(self, mapping: Mapping | None = None, filtering: Filter | None = None) -> None:
        self._nat = Nat(mapping or self._nat.mapping, filtering or self._nat.filter)
        if self._punch.self_peer is not None:
            self._set_self(self._punch.self_peer.public)
        self._send(TellNat(self._nat))

    # --- registering again -------------------------------------------------------------------

    def _disconnected(self) -> None:
        self._control = None
        roster = self._roster
        if roster.closed or roster.fatal is not None:
            return
        roster.tell(Notice("server-lost", -1, "the connection to the rendezvous ended"))
        self._unconfirmed = set(roster.peers)
        with roster.changed:
            roster.complete = False
        threading.Thread(target=self._rejoin, name="perseid-rejoin", daemon=True).start()

    def _rejoin(self) -> None:
        end = time.monotonic() + REJOIN_SECONDS
        roster = self._roster
        with roster.changed:
            wanted = as_ranges((self._wanted | set(roster.peers)) - {self.rank})
        interest = tuple({*self._hello.interest, *wanted})
        while not roster.closed:
            time.sleep(random.uniform(0.01, 0.1))
            hello = replace(self._hello, nonce=auth.fresh_nonce(), interest=interest)
            soon = min(end, time.monotonic() + REJOIN_TRY_SECONDS)
            try:
                session = register_again(
                    self._endpoint, hello, self._key, soon, self._port, self._family
                )
            except RendezvousUnreachableError as unreachable:
                if time.monotonic() < end:
                    continue
                self._reactor.call(partial(self._end, unreachable, "refused"))
            except RendezvousRefusedError as refused:
                self._reactor.call(partial(self._end, refused, "refused"))
            else:
                self._reactor.call(partial(self._returned, session))
                if roster.closed:  # the thread that would take it has ended
                    session.sock.close()
            return

    def _returned(self, session: Session) -> None:
        if self._roster.closed:
            session.sock.close()
            return
        self._adopt(session)
        self._reactor.later(RETURN_SECONDS, self._give_up_unconfirmed)

    def _give_up_unconfirmed(self) -> None:
        if self._control is None:
            return
        peers = self._roster.peers
        for rank in self._unconfirmed & set(peers):
            self._lose(Gone(rank, peers[rank].instance, Departure.CLOSED))
        self._unconfirmed = set()

    # --- what punching asks for --------------------------------------------------------------

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

    # --- the end -----------------------------------------------------------------------------

    def _break_off(self) -> None:
        self._drop_control()
        self._punch.close()

    def _leave(self) -> None:
        if self._control is not None:
            self._control.leave()
        self._break_off()


def _loopback(address: Address) -> bool:
    return address.host == "::1" or address.host.startswith("127.")
