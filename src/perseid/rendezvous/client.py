"""A worker's registration: blocking calls for any thread, no asyncio.

The registration's own thread keeps the control connection (heartbeats, notices, registering again
after a broken connection) and makes the connections to peers; the calls wait for it, each with a
deadline.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from perseid.errors import (
    BadInput,
    Closed,
    NoPath,
    PeerLost,
    RendezvousError,
    RendezvousRefused,
    RendezvousTimeout,
    RendezvousUnreachable,
    Replaced,
)
from perseid.rendezvous import auth
from perseid.rendezvous.dial import Endpoint, dial
from perseid.rendezvous.handshake import Identity
from perseid.rendezvous.nat import mapping_kind
from perseid.rendezvous.protocol import (
    FROM_SERVER,
    MAGIC,
    AskBack,
    AskMissing,
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
    Observed,
    Peer,
    Peers,
    Probe,
    Register,
    Relay,
    RelayReady,
    Superseded,
    TellNat,
    Want,
    decode,
)
from perseid.rendezvous.protocol import Mapping as NatMapping
from perseid.rendezvous.punch import Hooks, Link, Punch
from perseid.rendezvous.reactor import READ, Reactor
from perseid.rendezvous.session import Session, open_session, receive_frame
from perseid.rendezvous.wire import MAX_SERVER_FRAME, Address, FrameReader, ProtocolError, as_ranges

HEARTBEAT_SECONDS = 1.5
"""Silence after which the server gives a worker up, so that others know within 2 s."""
BEATS_A_HEARTBEAT = 4
"""Heartbeats sent in that time: three may be late."""
SMALL_WORLD = 64
"""Worlds up to this size are sent all addresses as they come, without asking."""
REJOIN_SECONDS = 60.0
"""How long a worker tries to register again after its connection broke."""
RETURN_SECONDS = 10.0
"""How long the others may take to come back to a restarted server before they count as lost."""
RELAY_SECONDS = 15.0
"""Time for both ends to come to the relay."""
PROBE_SECONDS = 3.0
"""Time for finding out the kind of NAT."""
GOODBYE_SECONDS = 1.0
"""Longest wait for the server to take a goodbye."""
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


_WHY = {
    Departure.LEFT: "it said goodbye",
    Departure.CLOSED: "its connection to the rendezvous ended",
    Departure.SILENT: "its heartbeat stopped",
    Departure.REPLACED: "a newer registration of this rank took over",
}


class Client:
    """One worker's registration with a rendezvous server; a context manager.

    Use ``Client.register``. Links that were handed out belong to the caller and outlive it.
    """

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

    # --- making one --------------------------------------------------------------------------

    @classmethod
    def register(
        cls,
        server: str | Endpoint,
        job: str,
        rank: int,
        world_size: int,
        *,
        key: bytes | None = None,
        generation: int = 0,
        interest: Iterable[int] | None = None,
        heartbeat: float = HEARTBEAT_SECONDS,
        transport: str = "auto",
        deadline: float = 10.0,
    ) -> Client:
        """Register one rank of a job.

        Parameters
        ----------
        server
            ``HOST:PORT`` of the rendezvous; the name is resolved anew for each attempt.
        job
            Name of the job, the same on all ranks.
        rank, world_size
            This worker's number, and how many there are.
        key
            The job's key, 32 bytes (``auth.job_key``); None with an open server.
        generation
            Attempt of the whole job: registering a newer one ends the older.
        interest
            Ranks whose addresses are wanted as they come; None: all in a world of up to
            ``SMALL_WORLD`` ranks. ``connect`` asks for what it needs by itself.
        heartbeat
            Seconds of silence after which this worker counts as lost; 0: only when its
            connection ends.
        transport
            ``auto``, ``direct`` or ``relay``.
        deadline
            Seconds for the whole registration.

        Raises
        ------
        BadInput
            A rank outside the world, an empty or over-long job name, an unknown transport.
        RendezvousUnreachable, RendezvousRefused, JobKeyRefused
            No server answered in time, or it said no.
        """
        endpoint = server if isinstance(server, Endpoint) else Endpoint.parse(server)
        _check(job, rank, world_size, transport)
        if interest is not None:
            ranges = as_ranges(interest)
        else:
            ranges = (range(world_size),) if world_size <= SMALL_WORLD else ()
        hello = Register(
            job,
            rank,
            world_size,
            generation,
            auth.fresh_instance(),
            auth.fresh_nonce(),
            round(heartbeat * 1000),
            interest=ranges,
        )
        end = time.monotonic() + deadline
        session = _open(endpoint, hello, key, end)
        return cls(endpoint, hello, key, session, transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- what is known -----------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """This worker's number."""
        return self._hello.rank

    @property
    def world_size(self) -> int:
        """Number of ranks of the job."""
        return self._hello.world

    @property
    def port(self) -> int:
        """The local port of the registration: peers dial it, and are dialled from it."""
        return self._port

    @property
    def nat(self) -> Nat:
        """The kind of NAT, as far as it is known yet."""
        return self._nat

    @property
    def public(self) -> Address | None:
        """This worker's address as the server sees it."""
        me = self._punch.self_peer
        return me.public if me else None

    def lost(self) -> Mapping[int, str]:
        """Ranks that were lost and have not registered again, with the reason."""
        with self._changed:
            return dict(self._lost)

    def ways(self) -> dict[int, str]:
        """Which way each pair took, by rank: ``direct`` or ``relay``."""
        with self._changed:
            return dict(self._ways)

    def peers(self) -> dict[int, Peer]:
        """What the server told of the others so far."""
        with self._changed:
            return dict(self._peers)

    def subscribe(self, call: Callable[[Notice], None]) -> None:
        """Be called with each notice, in the registration's thread: return quickly, never wait."""
        with self._changed:
            self._subscribers.append(call)

    # --- what waits --------------------------------------------------------------------------

    def wait_complete(self, deadline: float) -> None:
        """Wait until all ranks are registered.

        Raises
        ------
        RendezvousTimeout
            Not all came within ``deadline`` seconds; ``missing`` names the ranks.
        Replaced, Closed, RendezvousRefused
            The registration is over.
        """
        with self._changed:
            if self._wait(lambda: self._complete, deadline):
                return
        missing = self.missing(min(2.0, deadline))
        names = ", ".join(map(str, missing[:20])) + (", …" if len(missing) > 20 else "")
        raise RendezvousTimeout(
            f"{len(missing)} of {self.world_size} ranks of job {self._hello.job!r} did not "
            f"register within {deadline:g} s: {names}; see whether those workers started.",
            missing,
        )

    def missing(self, deadline: float = 5.0) -> list[int]:
        """Ranks that are not registered now, as the server says.

        Raises
        ------
        RendezvousUnreachable
            The server did not answer within ``deadline`` seconds.
        """
        with self._changed:
            self._missing = None
            self._send_soon(AskMissing())
            if not self._wait(lambda: self._missing is not None, deadline):
                raise RendezvousUnreachable(
                    f"The rendezvous at {self._endpoint} did not answer within {deadline:g} s."
                )
            return list(self._missing or ())

    def connect(self, ranks: Iterable[int], deadline: float) -> dict[int, Link]:
        """Connections to peers, made in parallel; those that exist already are given at once.

        Both ends may ask, or one alone: the other's thread answers by itself.

        Raises
        ------
        PeerLost
            One of them is lost.
        NoPath
            Neither a direct connection nor a relay could be had to some.
        RendezvousTimeout
            Some were not reached within ``deadline`` seconds; ``missing`` names them.
        Replaced, Closed, RendezvousRefused
            The registration is over.
        """
        wanted = sorted(set(ranks) - {self.rank})
        outside = [rank for rank in wanted if not 0 <= rank < self.world_size]
        if outside:
            raise BadInput(f"Rank {outside[0]} is not in a world of {self.world_size} ranks.")
        with self._changed:
            todo = [rank for rank in wanted if rank not in self._links]
            for rank in todo:
                self._failed.pop(rank, None)
        if todo:
            self._reactor.call(lambda: self._start(todo))
        return self._collect(wanted, deadline)

    def _start(self, ranks: list[int]) -> None:
        for rank in ranks:
            self._punch.start(rank)

    def _collect(self, wanted: list[int], deadline: float) -> dict[int, Link]:
        def gone(rank: int) -> bool:
            return rank in self._lost or (rank in self._left and rank not in self._links)

        def settled() -> bool:
            return any(gone(r) or r in self._failed for r in wanted) or all(
                r in self._links for r in wanted
            )

        with self._changed:
            in_time = self._wait(settled, deadline)
            for rank in wanted:
                if gone(rank):
                    reason = self._lost.get(rank, _WHY[Departure.LEFT])
                    raise PeerLost(f"Rank {rank} is lost: {reason}.", rank)
            failed = {rank: self._failed[rank] for rank in wanted if rank in self._failed}
            if failed:
                first = min(failed)
                raise NoPath(
                    f"Ranks {sorted(failed)} cannot be reached (rank {first}: {failed[first]}); "
                    "go through the store.",
                    failed,
                )
            if not in_time:
                late = [rank for rank in wanted if rank not in self._links]
                raise RendezvousTimeout(
                    f"Ranks {late} were not reached within {deadline:g} s.", late
                )
            self._taken.update(wanted)
            return {rank: self._links[rank] for rank in wanted}

    def _wait(self, ready: Callable[[], bool], deadline: float) -> bool:
        def over() -> bool:
            return ready() or self._closed or self._fatal is not None

        self._changed.wait_for(over, deadline)
        if ready():
            return True
        if self._fatal is not None:
            raise self._fatal
        if self._closed:
            raise Closed(f"The registration of rank {self.rank} is closed.")
        return False

    def close(self, goodbye: bool = True) -> None:
        """Say goodbye; links that were handed out stay open, those nobody took are closed.

        Without a goodbye the others are told that this rank is lost.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._reactor.call(self._leave if goodbye else self._break_off)
        self._reactor.stop()
        with self._changed:
            for link in self._links.values():
                self._close_unless_taken(link)

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
        self._punch.learnt(peer)
        if joined:
            self._tell(Notice("joined", peer.rank))

    def _lose(self, gone: Gone) -> None:
        known = self._peers.get(gone.rank)
        if gone.rank == self.rank or (known is not None and known.instance != gone.instance):
            return
        reason = _WHY[gone.reason]
        left = gone.reason is Departure.LEFT
        with self._changed:
            self._complete = False
            self._peers.pop(gone.rank, None)
            if left:
                self._left.add(gone.rank)
            else:
                self._lost[gone.rank] = reason
                self._close_unless_taken(self._links.pop(gone.rank, None))
            self._changed.notify_all()
        if not left:
            self._punch.forget(gone.rank)
        self._tell(Notice("left" if left else "lost", gone.rank, reason))

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
        wanted = as_ranges(self._wanted | set(self._peers) - {self.rank})
        interest = tuple({*self._hello.interest, *wanted})
        while not self._closed:
            time.sleep(random.uniform(0.01, 0.1))
            hello = replace(self._hello, nonce=auth.fresh_nonce(), interest=interest)
            try:
                session = _open(self._endpoint, hello, self._key, end, self._port, self._family)
            except RendezvousUnreachable as unreachable:
                if time.monotonic() < end:
                    continue
                self._reactor.call(partial(self._end, unreachable, "refused"))
            except RendezvousRefused as refused:
                self._reactor.call(partial(self._end, refused, "refused"))
            else:
                self._reactor.call(partial(self._returned, session))
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
                sock = _relay_stream(server, family, request, self._key)
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
            _await_end(self._control)
        self._drop_control()
        self._punch.close()

    def _tell(self, notice: Notice) -> None:
        for call in list(self._subscribers):
            try:
                call(notice)
            except Exception:
                log.exception("a subscriber failed")


def _check(job: str, rank: int, world_size: int, transport: str) -> None:
    if not 0 <= rank < world_size:
        raise BadInput(f"Rank {rank} is not in a world of {world_size} ranks.")
    if not 0 < len(job.encode()) <= 200:
        raise BadInput(f"A job's name has 1 to 200 bytes, not {len(job.encode())}.")
    if transport not in ("auto", "direct", "relay"):
        raise BadInput(f"The transport is auto, direct or relay, not {transport!r}.")


def _open(
    endpoint: Endpoint,
    hello: Register,
    key: bytes | None,
    deadline: float,
    port: int = 0,
    family: int = 0,
) -> Session:
    """Dial and register; the candidates are filled in once the local port is known."""
    sock = dial(endpoint, deadline, port, family)
    try:
        local = Address(*sock.getsockname()[:2])
        return open_session(sock, replace(hello, candidates=(local,)), key, deadline)
    except BaseException:
        sock.close()
        raise


def _await_end(sock: socket.socket) -> None:
    """Read until the server closes: closing with unread bytes would reset the connection, and
    the server would lose the goodbye."""
    end = time.monotonic() + GOODBYE_SECONDS
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            if not sock.recv(RECEIVE_BYTES):
                return


def _loopback(address: Address) -> bool:
    return address.host == "::1" or address.host.startswith("127.")


def _relay_stream(
    server: Endpoint, family: int, request: Relay, key: bytes | None
) -> socket.socket:
    """A stream to the peer once both ends have come to the relay."""
    deadline = time.monotonic() + RELAY_SECONDS
    sock = dial(server, deadline, family=family)
    try:
        session = open_session(sock, request, key, deadline)
        frame = receive_frame(sock, session.reader, deadline)
        if not isinstance(frame, RelayReady):
            raise ProtocolError(getattr(frame, "reason", f"a {type(frame).__name__}"))
    except BaseException:
        sock.close()
        raise
    return sock


def observe(endpoint: Endpoint, port: int, family: int, seconds: float) -> Observed:
    """Which address one of the server's ports sees when asked from a local port.

    Parameters
    ----------
    port
        Local port to ask from; 0: any.
    family
        Address family; 0: any.

    Raises
    ------
    RendezvousUnreachable
        No answer within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    with dial(endpoint, deadline, port, family) as sock:
        try:
            sock.sendall(MAGIC + Probe().pack())
            frame = receive_frame(sock, FrameReader(MAX_SERVER_FRAME), deadline)
        except (OSError, ProtocolError) as error:
            raise RendezvousUnreachable(
                f"{endpoint} did not answer as a rendezvous server does: {error}."
            ) from None
    if not isinstance(frame, Observed):
        raise RendezvousUnreachable(f"{endpoint} answered a probe with something else.")
    return frame
