"""The background thread of a client: updates from the server, reconnection, NAT detection.

``Client`` adds the calls that wait. The state that both sides use is in the ``PeerTable``.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from perseid.errors import (
    RendezvousError,
    RendezvousRefusedError,
    RendezvousUnreachableError,
    ReplacedError,
)
from perseid.rendezvous.client.connections import (
    OpenedRegistration,
    relay_stream,
    reregister,
)
from perseid.rendezvous.client.control import ControlConnection
from perseid.rendezvous.client.nat_detection import NatDetection
from perseid.rendezvous.client.peer_table import Notice, PeerTable
from perseid.rendezvous.client.server_session import ServerSession
from perseid.rendezvous.liveness import unpack_silence
from perseid.rendezvous.net.endpoint import Endpoint
from perseid.rendezvous.net.event_loop import EventLoopThread
from perseid.rendezvous.protocol import (
    MAX_REPORT_BYTES,
    Complete,
    ConnectRequest,
    ControlFrame,
    Departure,
    DepartureReason,
    Departures,
    FailureReport,
    MissingRanks,
    PeerRecord,
    Peers,
    RankFailure,
    ReachabilityResult,
    RelayInvite,
    RelayRequest,
    Subscribe,
    Superseded,
    auth,
)
from perseid.rendezvous.protocol.handshake import Identity
from perseid.rendezvous.protocol.wire import ProtocolError, to_ranges
from perseid.rendezvous.punch.peer_attempts import Callbacks
from perseid.rendezvous.punch.punch import HolePuncher

if TYPE_CHECKING:  # OpenSSL takes its time to load, and most links are plain
    from perseid.rendezvous.net.tls import JobCertificate

REJOIN_SECONDS = 60.0
"""Time for registering again after the connection to the server broke."""
REJOIN_TRY_SECONDS = 3.0
"""Time for one of these tries; between two, the thread checks whether the client was closed."""
RETURN_SECONDS = 10.0
"""Time for the other ranks to register again with a restarted server before they count as lost."""
LAST_LINK_SECONDS = 0.5
"""Time for the handshake of a connection that a rank made just before it deregistered."""

log = logging.getLogger("perseid.rendezvous.client")


class Membership:
    """One worker's membership in its job, kept up by a background thread.

    Parameters
    ----------
    opened
        The registration; its sockets belong to this object from now on.
    transport
        ``auto``, ``direct`` or ``relay``.
    link_timeout
        Seconds without an answer of the server's host after which the connection counts as cut.
    certificate
        With one, links to peers are encrypted.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: bytes | None,
        opened: OpenedRegistration,
        transport: str,
        link_timeout: float,
        certificate: JobCertificate | None = None,
    ) -> None:
        hello = opened.hello
        self._endpoint, self._hello, self._key = endpoint, hello, key
        self._link_timeout = link_timeout
        self._table = PeerTable()
        self._subscribed: set[int] = set()
        self._unconfirmed: set[int] = set()
        self._takes_reports = False
        self._awaiting_reports = False
        """Whether the server may still have reports to send. Until then a departed rank does not
        count as lost: its own report is the better reason."""
        self._departures: list[Departure] = []
        self._loop = EventLoopThread(f"perseid-rendezvous-{hello.rank}")
        identity = Identity(hello.job, hello.generation, hello.rank, hello.instance)
        table = self._table
        callbacks = Callbacks(
            table.linked, table.no_path, self._request_connect, self._subscribe, self._open_relay
        )
        peer_key = auth.peer_key(key, hello.job)
        patience = unpack_silence(hello.heartbeat)
        self._punch = HolePuncher(
            self._loop, identity, peer_key, callbacks, hello.world, transport, patience,
            certificate,
        )  # fmt: skip
        self._control: ControlConnection | None = None
        self._port: int = opened.listeners[0].getsockname()[1]
        self._family = opened.listeners[0].family
        self._nat = NatDetection(self._loop, hello, self._punch, opened.listeners[0], self._send)
        for listener in opened.listeners:
            self._punch.listen(listener)
        # Queued before the thread starts, so that it is the first thing that the thread does.
        self._loop.call_threadsafe(lambda: self._session_opened(opened.session))
        self._loop.start()

    @property
    def rank(self) -> int:
        """Rank of this worker."""
        return self._hello.rank

    # --- the connection to the server (from here on in the event loop's thread) ---------------

    def _session_opened(self, session: ServerSession) -> None:
        welcome = session.welcome
        self._punch.registered(session.round_trip, welcome.relay)
        self._control = ControlConnection(
            self._loop, session, self._handle_frame, self._disconnected, self._link_timeout
        )
        self._server = self._control.server
        self._nat.registered(self._control.local, welcome.address)
        self._takes_reports = self._awaiting_reports = welcome.reports
        self._process_departures()
        if welcome.reports:
            # An empty report asks for those of others: a rank may have given up before this one
            # came.
            self._send(FailureReport())
        self._nat.detect(self._server.host, welcome.probe_port)
        self._table.notify(Notice("server-back"))

    def _send(self, frame: ControlFrame) -> None:
        if self._control is not None:
            self._control.send(frame)

    def _send_soon(self, frame: ControlFrame) -> None:
        self._loop.call_threadsafe(lambda: self._send(frame))

    def _drop_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def _handle_frame(self, frame: ControlFrame) -> None:
        if isinstance(frame, ConnectRequest):
            for rank in frame.ranks:
                self._punch.connect_requested(rank)
        elif isinstance(frame, RelayInvite):
            self._punch.relay_invited(frame.rank)
        elif isinstance(frame, ReachabilityResult):
            self._nat.detected(filtering=frame.filter)
        elif isinstance(frame, Superseded):
            self._superseded(frame)
        else:
            self._handle_update(frame)

    def _handle_update(self, frame: ControlFrame) -> None:
        """News of the other ranks; frames of other types need no answer."""
        if isinstance(frame, Peers):
            for peer in frame.peers:
                self._peer_registered(peer)
        elif isinstance(frame, Departures):
            self._departures.extend(frame.departures)
            if not self._awaiting_reports:
                self._process_departures()
        elif isinstance(frame, MissingRanks):
            self._table.set_missing([rank for part in frame.ranges for rank in part])
        elif isinstance(frame, Complete):
            self._table.set_complete()
        elif isinstance(frame, RankFailure):
            self._failure_reported(frame)

    def _failure_reported(self, frame: RankFailure) -> None:
        if frame.rank != self.rank:
            self._table.set_failure(frame.rank, frame.report.decode(errors="replace"))
        elif not frame.report:
            self._awaiting_reports = False
            self._process_departures()

    def _process_departures(self) -> None:
        departures, self._departures = self._departures, []
        for departure in departures:
            self._peer_departed(departure)

    # --- the other ranks --------------------------------------------------------------------------

    def _peer_registered(self, peer: PeerRecord) -> None:
        if peer.rank == self.rank:
            return
        known = self._table.peers.get(peer.rank)
        # The process behind the rank is a new one: links to the old one are of no use.
        if known is not None and known.instance != peer.instance:
            self._peer_departed(Departure(peer.rank, known.instance, DepartureReason.REPLACED))
        self._unconfirmed.discard(peer.rank)
        self._table.add(peer)
        self._punch.peer_updated(peer)

    def _peer_departed(self, departure: Departure) -> None:
        known = self._table.peers.get(departure.rank)
        # News of an instance that has been replaced here already.
        if departure.rank == self.rank or (
            known is not None and known.instance != departure.instance
        ):
            return
        if departure.reason is DepartureReason.LEFT:
            # A rank may connect, send and deregister at once: that can overtake its handshake.
            later = partial(self._table.set_unreachable, departure.rank)
            self._loop.call_later(LAST_LINK_SECONDS, later)
        else:
            self._punch.forget(departure.rank)
        self._table.remove(departure)

    def _superseded(self, frame: Superseded) -> None:
        what = "rank" if frame.generation == self._hello.generation else "generation"
        self._end(
            ReplacedError(
                f"Rank {self.rank} of job {self._hello.job!r} was replaced by a newer "
                f"registration (a new {what}): this worker belongs to an abandoned attempt."
            ),
            "replaced",
        )

    def _end(self, error: RendezvousError, kind: str) -> None:
        self._table.end(error)
        self._disconnect()
        self._table.notify(Notice(kind, self.rank, str(error)))

    # --- registering again -------------------------------------------------------------------

    def _disconnected(self) -> None:
        self._control = None
        table = self._table
        if table.closed or table.fatal is not None:
            return
        table.notify(Notice("server-lost", -1, "the connection to the rendezvous ended"))
        # A restarted server knows nobody. Until each rank is back it is neither there nor lost.
        self._unconfirmed = set(table.peers)
        with table.changed:
            table.complete = False
        threading.Thread(target=self._reregister, name="perseid-rejoin", daemon=True).start()

    def _reregister(self) -> None:
        end = time.monotonic() + REJOIN_SECONDS
        table = self._table
        with table.changed:
            # The new server does not know what was subscribed to at the old one.
            wanted = to_ranges((self._subscribed | set(table.peers)) - {self.rank})
        interest = tuple({*self._hello.interest, *wanted})
        while not table.closed:
            # All ranks lose the server at the same moment; they should not return at the same
            # moment.
            time.sleep(random.uniform(0.01, 0.1))
            # The instance stays: it tells the server and the peers that this process has not
            # restarted.
            hello = replace(self._hello, nonce=auth.fresh_nonce(), interest=interest)
            soon = min(end, time.monotonic() + REJOIN_TRY_SECONDS)
            try:
                session = reregister(
                    self._endpoint, hello, self._key, soon, self._port, self._family
                )
            except RendezvousUnreachableError as unreachable:
                if time.monotonic() < end:
                    continue
                self._loop.call_threadsafe(partial(self._end, unreachable, "refused"))
            except RendezvousRefusedError as refused:
                self._loop.call_threadsafe(partial(self._end, refused, "refused"))
            else:
                self._loop.call_threadsafe(partial(self._reregistered, session))
                if table.closed:  # the event loop may have ended already
                    session.sock.close()
            return

    def _reregistered(self, session: ServerSession) -> None:
        if self._table.closed:
            session.sock.close()
            return
        self._session_opened(session)
        # Another rank may be in a long call meanwhile, and come back after it.
        patience = unpack_silence(self._hello.heartbeat)
        self._loop.call_later(max(RETURN_SECONDS, patience), self._give_up_unconfirmed)

    def _give_up_unconfirmed(self) -> None:
        if self._control is None:
            return
        peers = self._table.peers
        for rank in self._unconfirmed & set(peers):
            self._peer_departed(Departure(rank, peers[rank].instance, DepartureReason.CLOSED))
        self._unconfirmed = set()

    # --- requests of hole punching --------------------------------------------------------------

    def _request_connect(self, rank: int) -> None:
        self._send(ConnectRequest((rank,)))

    def _subscribe(self, rank: int) -> None:
        covered = any(rank in part for part in self._hello.interest) or rank in self._subscribed
        if not covered:
            self._subscribed.add(rank)
            self._send(Subscribe((range(rank, rank + 1),)))

    def _open_relay(self, rank: int) -> None:
        hello = self._hello
        request = RelayRequest(
            hello.job, hello.rank, rank, hello.generation, hello.instance, auth.fresh_nonce()
        )
        server = replace(self._endpoint, host=self._server.host, port=self._server.port)
        family = self._family

        def open_it() -> None:
            try:
                sock = relay_stream(server, family, request, self._key)
            except (RendezvousError, ProtocolError, OSError) as error:
                # A refusal is final. A peer that did not come may be busy: try again.
                reason, final = str(error), isinstance(error, RendezvousRefusedError)
                self._loop.call_threadsafe(lambda: self._punch.relay_failed(rank, reason, final))
            else:
                self._loop.call_threadsafe(lambda: self._punch.relayed(rank, sock))

        threading.Thread(target=open_it, name="perseid-relay", daemon=True).start()

    # --- the end -----------------------------------------------------------------------------

    def _report(self, report: bytes) -> None:
        if self._takes_reports:
            self._send(FailureReport(report[:MAX_REPORT_BYTES]))

    def _disconnect(self) -> None:
        self._drop_control()
        self._punch.close()

    def _leave(self, goodbye: bool) -> None:
        if self._control is not None:
            self._control.finish(goodbye)
        self._disconnect()
