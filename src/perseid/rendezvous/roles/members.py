"""Registered workers: addresses, losses, heartbeats."""

from __future__ import annotations

import logging
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perseid.rendezvous.connection import Connection
from perseid.rendezvous.protocol import (
    FROM_CLIENT,
    AskBack,
    AskMissing,
    Back,
    Beat,
    Call,
    Departure,
    Filter,
    Frame,
    Leave,
    Missing,
    Observed,
    Refusal,
    Register,
    Superseded,
    TellNat,
    Want,
    Welcome,
    decode,
)
from perseid.rendezvous.registry import Job, Member, Refusing
from perseid.rendezvous.wire import (
    MAX_CLIENT_FRAME,
    Address,
    FrameReader,
    ProtocolError,
)

if TYPE_CHECKING:
    from perseid.rendezvous.server import Server

from perseid.rendezvous.roles.base import Role

SMALL_JOB = 64
"""Members up to which news are told at once; larger jobs are told in batches."""
BATCH_SECONDS_A_MEMBER = 20e-6
"""A batch waits this long for each member to be told, so that telling stays a part of the work."""
MAX_BATCH_SECONDS = 0.05
"""Longest wait of a batch."""
LEFT_SECONDS = 0.25
"""A batch of peaceful goodbyes in a larger job waits this long: n ranks that end together would
else be told n x n times while some still work."""
BACK_SECONDS = 1.0
"""Time for connecting back to a worker."""
BEAT_FRAME = Beat(0).pack()[:5]
"""Header of a heartbeat: the one frame that is answered without being decoded."""

log = logging.getLogger("perseid.rendezvous")


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
        self._to_tell: list[Job] = []

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
            connection.state = None
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
            self._tell_news()  # first who has left: those did come
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
        state, connection.state = connection.state, None
        # Member, connection and this state held each other: now they are freed at once.
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
            if log.isEnabledFor(logging.INFO):
                data = {"job": member.job.name, "rank": member.rank, "why": why.name}
                log.info("rank lost", extra={"data": data})
            self.server.relaying.cut(member)
        self._schedule(member.job, peaceful=why is Departure.LEFT)

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

    def _schedule(self, job: Job, *, peaceful: bool = False) -> None:
        many = len(job.members)
        if job.scheduled or not many:
            return
        job.scheduled = True
        if many <= SMALL_JOB:
            if not self._to_tell:
                self.server.poller.soon(self._tell_news)
            self._to_tell.append(job)
        else:
            soon = min(MAX_BATCH_SECONDS, many * BATCH_SECONDS_A_MEMBER)
            delay = LEFT_SECONDS if peaceful else soon
            self.server.loop.call_later(delay, self._flush, job)

    def _tell_news(self) -> None:
        jobs, self._to_tell = self._to_tell, []
        for job in jobs:
            self._flush(job)

    def _flush(self, job: Job) -> None:
        job.scheduled = False
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
