"""What an accepted connection can turn out to be, one class a role.

A role is shared by all its connections and keeps what it needs of one in ``connection.state``.
"""

from __future__ import annotations

import logging
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perseid.rendezvous import auth, tcpunch
from perseid.rendezvous.connection import Connection
from perseid.rendezvous.metrics import request_path, response
from perseid.rendezvous.protocol import (
    FROM_CLIENT,
    MAGIC,
    MAX_CLIENT_FRAME,
    VERSION,
    Address,
    AskBack,
    AskMissing,
    Back,
    Beat,
    Call,
    Challenge,
    Departure,
    Filter,
    Frame,
    FrameReader,
    Invite,
    Leave,
    Missing,
    Observed,
    Probe,
    Proof,
    ProtocolError,
    Refusal,
    Refused,
    Register,
    Relay,
    RelayReady,
    Superseded,
    TellNat,
    Want,
    Welcome,
    decode,
    pack_frame,
)
from perseid.rendezvous.registry import Job, Member, Refusing
from perseid.rendezvous.relay import Pair

if TYPE_CHECKING:
    from perseid.rendezvous.server import Server

SMALL_JOB = 64
"""Members up to which news are told at once; larger jobs are told in batches."""
BATCH_SECONDS_A_MEMBER = 20e-6
"""A batch waits this long for each member to be told, so that telling stays a part of the work."""
MAX_BATCH_SECONDS = 0.05
"""Longest wait of a batch."""
BACK_SECONDS = 1.0
"""Time for connecting back to a worker."""
BEAT_FRAME = Beat(0).pack()[:5]
"""Header of a heartbeat: the one frame that is answered without being decoded."""

log = logging.getLogger("perseid.rendezvous")


@dataclass(slots=True)
class Opening:
    """A connection whose role is not known, or not proved, yet."""

    data: bytes = b""
    reader: FrameReader | None = None
    hello: Register | Relay | None = None
    raw: bytes = b""
    """The opening frame as it came, for the proof."""
    nonce: bytes = b""


class Role:
    """Base of the roles: the server they belong to, and refusing."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def refuse(self, connection: Connection, code: Refusal, reason: str) -> None:
        """Say no and close."""
        counters = self.server.counters
        if code is Refusal.KEY:
            counters.refused_key += 1
        elif code is Refusal.LIMIT:
            counters.refused_limit += 1
        else:
            counters.refused_other += 1
        log.info("refused", extra={"data": {"from": connection.host, "code": code.name}})
        connection.write(Refused(code, reason).pack())
        self.server.hello_deadlines.add(connection, self.server.now())
        connection.finish()

    def malformed(self, connection: Connection, error: Exception) -> None:
        """Close a connection that speaks no protocol of ours; its bytes are not logged."""
        self.server.counters.malformed += 1
        log.info("malformed", extra={"data": {"from": connection.host, "why": str(error)}})
        connection.close()


class OpeningRole(Role):
    """Tells the protocols apart by their first bytes, and lets workers prove their key."""

    def received(self, connection: Connection, data: bytes) -> None:
        """Collect the opening."""
        state = connection.state
        if not isinstance(state, Opening):
            state = connection.state = Opening()
        try:
            if state.reader is not None:
                self._frames(connection, state, state.reader.feed(data))
                return
            state.data += data
            if state.data.startswith(MAGIC):
                state.reader = FrameReader(MAX_CLIENT_FRAME)
                self._frames(connection, state, state.reader.feed(state.data[len(MAGIC) :]))
            elif not MAGIC.startswith(state.data):
                self.server.tcpunch.first_bytes(connection, state.data)
        except ProtocolError as error:
            self._close(connection)
            self.malformed(connection, error)

    def ended(self, connection: Connection) -> None:
        """It said nothing, or only half of it."""
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        self.server.hello_deadlines.drop(connection)

    def _frames(
        self, connection: Connection, state: Opening, frames: list[tuple[int, bytes]]
    ) -> None:
        for index, (kind, body) in enumerate(frames):
            if connection.handler is not self:
                members = self.server.members
                if connection.handler is members:
                    members.frames(connection, frames[index:])
                return
            if connection.closing or connection.closed:
                return
            self._frame(connection, state, kind, body)

    def _frame(self, connection: Connection, state: Opening, kind: int, body: bytes) -> None:
        frame = decode(FROM_CLIENT, kind, body)
        version = getattr(frame, "version", VERSION)
        if version != VERSION:
            reason = f"this server speaks version {VERSION}, not {version}"
            self.refuse(connection, Refusal.VERSION, reason)
        elif isinstance(frame, Proof) and state.hello is not None:
            self._proved(connection, state, frame)
        elif state.hello is not None and not isinstance(frame, Beat):
            raise ProtocolError(f"a {type(frame).__name__} instead of a proof")
        elif isinstance(frame, Register | Relay):
            self._hello(connection, state, frame, pack_frame(kind, body))
        elif isinstance(frame, Probe):
            connection.write(self.server.members.observed(connection).pack())
        elif isinstance(frame, Beat):
            connection.write(frame.pack())
        else:
            raise ProtocolError(f"a {type(frame).__name__} before a registration")

    def _hello(
        self, connection: Connection, state: Opening, hello: Register | Relay, raw: bytes
    ) -> None:
        if self.server.config.secret is None:
            self._admit(connection, state, hello, bytes(32))
            return
        state.hello, state.raw, state.nonce = hello, raw, auth.fresh_nonce()
        connection.write(Challenge(state.nonce).pack())

    def _proved(self, connection: Connection, state: Opening, proof: Proof) -> None:
        hello, secret = state.hello, self.server.config.secret
        if hello is None or secret is None:
            raise ProtocolError("a proof that was not asked for")
        key = auth.job_key(secret, hello.job)
        if not auth.same(auth.client_proof(key, state.raw, state.nonce), proof.mac):
            self.refuse(connection, Refusal.KEY, "the job key is wrong")
            return
        self._admit(connection, state, hello, auth.server_proof(key, state.raw, state.nonce))

    def _admit(
        self, connection: Connection, state: Opening, hello: Register | Relay, mac: bytes
    ) -> None:
        if isinstance(hello, Register):
            self.server.members.admit(connection, hello, mac, state.reader)
        else:
            self.server.relaying.admit(connection, hello, mac)


@dataclass(slots=True)
class Joined:
    """A registered worker's connection."""

    member: Member
    reader: FrameReader
    backs: int = 0
    """Times that it asked to be connected back to."""


class MemberRole(Role):
    """Registered workers: addresses, losses, heartbeats."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._watched: set[Connection] = set()
        self._scheduled: set[int] = set()

    def observed(self, connection: Connection) -> Observed:
        """What this server sees of a connection."""
        address = Address(connection.host, connection.port)
        keyed = self.server.config.secret is not None
        return Observed(address, self.server.http_port, keyed)

    def admit(
        self, connection: Connection, hello: Register, mac: bytes, reader: FrameReader | None
    ) -> None:
        """Register a worker that has proved its key."""
        server = self.server
        if server.draining and hello.job not in server.registry.jobs:
            self.refuse(connection, Refusal.DRAINING, "this server is going down")
            return
        public = Address(connection.host, connection.port)
        try:
            member, replaced = server.registry.register(hello, public, connection)
        except Refusing as refusal:
            self.refuse(connection, refusal.code, refusal.reason)
            return
        for old in replaced:
            self._supersede(old, hello.generation)
        if hello.heartbeat:
            member.heartbeat = max(member.heartbeat, server.config.min_heartbeat)
        server.hello_deadlines.drop(connection)
        server.counters.registrations += 1
        connection.handler = self
        connection.state = Joined(member, reader or FrameReader(MAX_CLIENT_FRAME))
        self._watched.add(connection)
        member.deadline = server.now() + member.heartbeat
        relay, beat = server.config.relay, round(member.heartbeat * 1000)
        connection.write(Welcome(public, mac, relay, server.http_port, beat).pack())
        self._schedule(member.job)

    def _supersede(self, old: Member, generation: int) -> None:
        self.server.counters.replaced += 1
        connection = old.handle
        if isinstance(connection, Connection):
            self._watched.discard(connection)
            connection.write(Superseded(generation).pack())
            self.server.hello_deadlines.add(connection, self.server.now())
            connection.finish()

    def received(self, connection: Connection, data: bytes) -> None:
        """Frames of a registered worker."""
        state = connection.state
        if connection.closing or not isinstance(state, Joined):
            return
        state.member.deadline = self.server.now() + state.member.heartbeat
        if len(data) == 9 and data.startswith(BEAT_FRAME) and not state.reader.rest:
            connection.write(data)
            return
        try:
            self.frames(connection, state.reader.feed(data))
        except ProtocolError as error:
            self._gone(connection, Departure.CLOSED)
            self.malformed(connection, error)

    def frames(self, connection: Connection, frames: list[tuple[int, bytes]]) -> None:
        """Handle complete frames."""
        state = connection.state
        for kind, body in frames:
            if connection.closed or connection.closing or not isinstance(state, Joined):
                return
            self._frame(connection, state, decode(FROM_CLIENT, kind, body))

    def _frame(self, connection: Connection, state: Joined, frame: Frame) -> None:
        member = state.member
        if isinstance(frame, Beat):
            connection.write(frame.pack())
        elif isinstance(frame, Want):
            member.interest = merged(member.interest, frame.ranges, member.job.world)
            connection.write(member.job.known(frame.ranges))
        elif isinstance(frame, AskMissing):
            connection.write(Missing(member.job.missing()).pack())
        elif isinstance(frame, TellNat):
            self.server.registry.update_nat(member, frame.nat)
            self._schedule(member.job)
        elif isinstance(frame, Call):
            self._call(member, frame.ranks)
        elif isinstance(frame, AskBack):
            self._connect_back(connection, state)
        elif isinstance(frame, Leave):
            self._gone(connection, Departure.LEFT)
            connection.close()
        else:
            raise ProtocolError(f"a {type(frame).__name__} after the registration")

    @staticmethod
    def _call(member: Member, ranks: tuple[int, ...]) -> None:
        message = Call((member.rank,)).pack()
        for rank in ranks:
            other = member.job.members.get(rank)
            if other is not None and isinstance(other.handle, Connection):
                other.handle.write(member_frame(member) + message)

    def ended(self, connection: Connection) -> None:
        """The process died, or its network."""
        self._gone(connection, Departure.CLOSED)

    def _gone(self, connection: Connection, why: Departure) -> None:
        self._watched.discard(connection)
        self.server.hello_deadlines.drop(connection)
        state = connection.state
        if not isinstance(state, Joined) or not self.server.registry.remove(state.member, why):
            return
        counters = self.server.counters
        if why is Departure.LEFT:
            counters.left += 1
        elif why is Departure.SILENT:
            counters.lost_silent += 1
        else:
            counters.lost_closed += 1
        member = state.member
        if why is not Departure.LEFT:
            data = {"job": member.job.name, "rank": member.rank, "why": why.name}
            log.info("rank lost", extra={"data": data})
            self.server.relaying.cut(member)
        self._schedule(member.job)

    def sweep(self, now: float, grace: float) -> None:
        """Give up those whose heartbeat stopped; ``grace``: seconds the server itself slept."""
        silent: list[Connection] = []
        for connection in self._watched:
            state = connection.state
            if not isinstance(state, Joined) or not state.member.heartbeat:
                continue
            if grace:
                state.member.deadline += grace
            if state.member.deadline < now:
                silent.append(connection)
        for connection in silent:
            self._gone(connection, Departure.SILENT)
            connection.close()

    def tell_all(self, message: bytes) -> None:
        """The same to every registered worker."""
        for connection in list(self._watched):
            connection.write(message)

    def _schedule(self, job: Job) -> None:
        if id(job) in self._scheduled:
            return
        self._scheduled.add(id(job))
        loop, many = self.server.loop, len(job.members)
        if many <= SMALL_JOB:
            loop.call_soon(self._flush, job)
        else:
            delay = min(MAX_BATCH_SECONDS, many * BATCH_SECONDS_A_MEMBER)
            loop.call_later(delay, self._flush, job)

    def _flush(self, job: Job) -> None:
        self._scheduled.discard(id(job))
        for member, message in job.flush():
            if isinstance(member.handle, Connection):
                member.handle.write(message)

    def _connect_back(self, connection: Connection, state: Joined) -> None:
        state.backs += 1
        if state.backs > 3:
            raise ProtocolError("too many requests to connect back")
        target = Address(connection.host, connection.port)

        def told(result: Filter) -> None:
            connection.write(Back(result).pack())

        ConnectBack(self.server, target, connection.sock.family, told)


def member_frame(member: Member) -> bytes:
    """``Peers`` with one record, so that who is called knows the caller's address."""
    return member.job.known((range(member.rank, member.rank + 1),))


def merged(have: tuple[range, ...], more: tuple[range, ...], world: int) -> tuple[range, ...]:
    """The union of two interests, as few ranges, cut at the world's size."""
    spans = sorted((part.start, min(part.stop, world)) for part in (*have, *more) if part)
    union: list[range] = []
    for start, stop in spans:
        if union and start <= union[-1].stop:
            union[-1] = range(union[-1].start, max(stop, union[-1].stop))
        elif start < stop:
            union.append(range(start, stop))
    return tuple(union)


class ConnectBack:
    """One connection from a free port to a worker's public address: is it open to strangers?"""

    def __init__(
        self,
        server: Server,
        target: Address,
        family: socket.AddressFamily | int,
        told: Callable[[Filter], None],
    ) -> None:
        self._poller, self._told = server.poller, told
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._sock.connect_ex((target.host, target.port))
        self._poller.add(self._sock.fileno(), self, select.EPOLLOUT)
        self._timer = server.loop.call_later(BACK_SECONDS, self._done, Filter.FILTERED)

    def on_event(self, mask: int) -> None:
        """Connected, or an error."""
        failed = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._done(Filter.FILTERED if failed else Filter.OPEN)

    def _done(self, result: Filter) -> None:
        if self._sock.fileno() >= 0:
            self._timer.cancel()
            self._poller.remove(self._sock.fileno())
            self._sock.close()
            self._told(result)


@dataclass(slots=True)
class AtRelay:
    """A connection that waits for the other end of its pair."""

    key: tuple[str, int, int, int]
    """Job, generation, lower and higher rank."""
    rank: int


class RelayRole(Role):
    """Joins the two ends of a pair."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._waiting: dict[tuple[str, int, int, int], Connection] = {}
        self._members: dict[Pair, tuple[Member, Member]] = {}

    def admit(self, connection: Connection, hello: Relay, mac: bytes) -> None:
        """Take one end; the other is invited, or waits already."""
        server = self.server
        mine = server.registry.find(hello.job, hello.generation, hello.rank)
        other = server.registry.find(hello.job, hello.generation, hello.peer)
        if not server.config.relay:
            self.refuse(connection, Refusal.RELAY, "this server relays nothing")
        elif mine is None or mine.instance != hello.instance or other is None:
            self.refuse(connection, Refusal.RELAY, "one of the two ranks is not registered")
        else:
            self._take(connection, hello, mac, mine, other)

    def _take(
        self, connection: Connection, hello: Relay, mac: bytes, mine: Member, other: Member
    ) -> None:
        low, high = sorted((hello.rank, hello.peer))
        key = (hello.job, hello.generation, low, high)
        self.server.hello_deadlines.drop(connection)
        public = Address(connection.host, connection.port)
        connection.write(Welcome(public, mac, True).pack())
        connection.handler = self
        connection.state = AtRelay(key, hello.rank)
        waiting = self._waiting.get(key)
        state = waiting.state if waiting else None
        if waiting is not None and isinstance(state, AtRelay) and state.rank != hello.rank:
            del self._waiting[key]
            self.server.relay_deadlines.drop(waiting)
            self._join(waiting, connection, (mine, other))
            return
        if waiting is not None:
            waiting.close()
        self._waiting[key] = connection
        self.server.relay_deadlines.add(connection, self.server.now())
        if isinstance(other.handle, Connection):
            other.handle.write(member_frame(mine) + Invite(hello.rank).pack())

    def _join(self, one: Connection, two: Connection, members: tuple[Member, Member]) -> None:
        ready = RelayReady().pack()
        one.write(ready)
        two.write(ready)
        if one.closed or two.closed:
            one.close()
            two.close()
            return
        server = self.server
        socks = (one.detach(), two.detach())
        pair = Pair(server.loop, server.poller, socks, server.throttle, self._pair_ended)
        server.relays.add(pair)
        server.counters.relay_pairs += 1
        self._members[pair] = members

    def _pair_ended(self, pair: Pair) -> None:
        self.server.relays.discard(pair)
        self._members.pop(pair, None)
        self.server.counters.relay_bytes += pair.passed

    def cut(self, member: Member) -> None:
        """End the streams of a lost member."""
        for pair in [pair for pair, ends in self._members.items() if member in ends]:
            pair.close()

    def received(self, connection: Connection, data: bytes) -> None:
        """Nothing may be sent before ``RelayReady``."""
        self.ended(connection)
        self.malformed(connection, ProtocolError("bytes before the relay was ready"))

    def ended(self, connection: Connection) -> None:
        """It gave up waiting."""
        self.server.relay_deadlines.drop(connection)
        state = connection.state
        if isinstance(state, AtRelay) and self._waiting.get(state.key) is connection:
            del self._waiting[state.key]

    def expired(self, connection: Connection) -> None:
        """The other end did not come."""
        self.ended(connection)
        if not connection.closed:
            self.refuse(connection, Refusal.RELAY, "the other rank did not come to the relay")


class TcpunchRole(Role):
    """Clients of the TCPunch protocol, both versions."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._pairings: tcpunch.Pairings[Connection] = tcpunch.Pairings()

    def __len__(self) -> int:
        return len(self._pairings)

    def first_bytes(self, connection: Connection, data: bytes) -> None:
        """The first bytes that are not our own protocol's."""
        if not self.server.config.tcpunch:
            self._reject(connection, tcpunch.TcpunchError("TCPunch clients are not served here"))
            return
        if ":" in connection.host:
            self._reject(connection, tcpunch.TcpunchError("TCPunch knows IPv4 only"))
            return
        connection.handler = self
        connection.state = b""
        self.received(connection, data)

    def received(self, connection: Connection, data: bytes) -> None:
        """More of a request; bytes after it are ignored."""
        if not isinstance(connection.state, bytes):
            return
        connection.state += data
        try:
            version = tcpunch.reads_as(connection.state)
        except tcpunch.TcpunchError as error:
            self._reject(connection, error)
            return
        if version == 2:
            self._request(connection, connection.state)
        elif version == 1:
            loop = self.server.loop
            loop.call_later(tcpunch.GRACE, self._settled, connection, len(connection.state))

    def _settled(self, connection: Connection, length: int) -> None:
        raw = connection.state
        if not connection.closed and isinstance(raw, bytes) and len(raw) == length:
            self._request(connection, raw)

    def _request(self, connection: Connection, raw: bytes) -> None:
        own = Address(connection.host, connection.port)
        try:
            if len(raw) == tcpunch.REQUEST_BYTES:
                request = tcpunch.parse_v2(raw)
            else:
                request = tcpunch.parse_v1(raw)
        except tcpunch.TcpunchError as error:
            if len(raw) == tcpunch.REQUEST_BYTES:
                connection.write(tcpunch.pack_v2(tcpunch.Status.ERROR, own, None, ""))
            self._reject(connection, error)
            return
        if request.version == 2 and not request.token:
            request = tcpunch.Request(2, request.name, tcpunch.new_token())
        self.server.hello_deadlines.drop(connection)
        self._offer(connection, own, request)

    def _offer(self, connection: Connection, own: Address, request: tcpunch.Request) -> None:
        if self.server.draining:
            connection.close()
            return
        connection.state = request
        if request.version == 1:
            connection.write(tcpunch.pack_v1(own))
        comer = tcpunch.Waiter(request, connection, self.server.now())
        partner, ousted = self._pairings.offer(comer, lambda other: other.alive())
        if ousted is not None:
            self.server.counters.tcpunch_dead_waiters += 1
            ousted.handle.close()
        if partner is not None:
            self.server.counters.tcpunch_pairs += 1
            self._pair(partner, comer)
        elif request.version == 2:
            waiting = tcpunch.pack_v2(tcpunch.Status.WAITING, own, None, request.token)
            connection.write(waiting)

    @staticmethod
    def _pair(one: tcpunch.Waiter[Connection], two: tcpunch.Waiter[Connection]) -> None:
        for me, other in ((one, two), (two, one)):
            own = Address(me.handle.host, me.handle.port)
            peer = Address(other.handle.host, other.handle.port)
            if me.request.version == 1:
                me.handle.write(tcpunch.pack_v1(peer))
            else:
                paired = tcpunch.Status.PAIRED
                me.handle.write(tcpunch.pack_v2(paired, own, peer, me.request.token))
        one.handle.finish()
        two.handle.finish()

    def _reject(self, connection: Connection, error: tcpunch.TcpunchError) -> None:
        self.server.hello_deadlines.drop(connection)
        self.malformed(connection, error)

    def ended(self, connection: Connection) -> None:
        """A waiter died: it will not be handed out."""
        self.server.hello_deadlines.drop(connection)
        if isinstance(connection.state, tcpunch.Request):
            self._pairings.withdraw(connection.state, connection)

    def expire(self, now: float) -> None:
        """Send away those that waited too long."""
        for waiter in self._pairings.older_than(now - self.server.config.waiting_seconds):
            connection = waiter.handle
            if waiter.request.version == 2:
                own = Address(connection.host, connection.port)
                timeout = tcpunch.Status.TIMEOUT
                connection.write(tcpunch.pack_v2(timeout, own, None, waiter.request.token))
            connection.finish()


class HttpRole(Role):
    """Health, metrics, and probes on the second port."""

    def received(self, connection: Connection, data: bytes) -> None:
        """Collect a request or a probe."""
        if connection.closing:
            return
        state = connection.state
        if not isinstance(state, Opening):
            state = connection.state = Opening()
        state.data += data
        try:
            if state.data.startswith(MAGIC[: len(state.data)]):
                self._probe(connection, state)
                return
            path = request_path(state.data)
        except ValueError as error:
            self.server.counters.malformed += 1
            connection.write(response(400, f"{error}\n"))
            connection.finish()
            return
        if path is not None:
            connection.write(self._answer(path))
            connection.finish()

    def _probe(self, connection: Connection, state: Opening) -> None:
        for kind, body in FrameReader(64).feed(state.data[len(MAGIC) :]):
            decode({Probe.KIND: Probe.unpack}, kind, body)
            connection.write(self.server.members.observed(connection).pack())
            connection.finish()

    def _answer(self, path: str) -> bytes:
        server = self.server
        if path in ("/healthz", "/health"):
            return response(200, "ok\n")
        if path == "/readyz":
            return response(503, "draining\n") if server.draining else response(200, "ready\n")
        if path == "/metrics":
            return response(200, server.metrics(), "text/plain; version=0.0.4; charset=utf-8")
        return response(404, "try /healthz, /readyz or /metrics\n")

    def ended(self, connection: Connection) -> None:
        """Gone."""
        self.server.hello_deadlines.drop(connection)
