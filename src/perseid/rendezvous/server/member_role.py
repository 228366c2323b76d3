"""Registered workers: addresses, losses, heartbeats."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

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
    Refusal,
    Register,
    Superseded,
    TellNat,
    Want,
    Welcome,
    decode,
)
from perseid.rendezvous.protocol.wire import (
    MAX_CLIENT_FRAME,
    Address,
    FrameReader,
    ProtocolError,
    merge_ranges,
)
from perseid.rendezvous.server.connection import Connection
from perseid.rendezvous.server.context import ServerContext
from perseid.rendezvous.server.reachability import ReachabilityCheck
from perseid.rendezvous.server.registry import Job, Member, Refusing
from perseid.rendezvous.server.role import Role

SMALL_JOB = 64
"""Members up to which news are told at once; larger jobs are told in batches."""
BATCH_SECONDS_A_MEMBER = 20e-6
"""A batch waits this long for each member to be told, so that telling stays a part of the work."""
MAX_BATCH_SECONDS = 0.05
"""Longest wait of a batch."""
LEFT_SECONDS = 0.25
"""A batch of peaceful goodbyes in a larger job waits this long: n ranks that end together would
else be told n x n times while some still work."""
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
    """Serves registered workers.

    Parameters
    ----------
    on_lost
        Called with each member that is gone without a goodbye.
    """

    def __init__(self, context: ServerContext, on_lost: Callable[[Member], None]) -> None:
        super().__init__(context)
        self._on_lost = on_lost
        self._watched: set[Connection] = set()
        self._to_tell: list[Job] = []

    def admit(
        self, connection: Connection, hello: Register, mac: bytes, reader: FrameReader | None
    ) -> None:
        """Register a worker that has proved its key."""
        context = self.context
        if context.draining and hello.job not in context.registry.jobs:
            self.refuse(connection, Refusal.DRAINING, "this server is going down")
            return
        public = Address(connection.host, connection.port)
        try:
            member, replaced = context.registry.register(hello, public, connection)
        except Refusing as refusal:
            self.refuse(connection, refusal.code, refusal.reason)
            return
        for old in replaced:
            self._supersede(old, hello.generation)
        if hello.heartbeat:
            member.heartbeat = max(member.heartbeat, context.config.min_heartbeat)
        context.hello_deadlines.drop(connection)
        context.counters.registrations += 1
        connection.handler = self
        connection.state = Joined(member, reader or FrameReader(MAX_CLIENT_FRAME))
        self._watched.add(connection)
        member.deadline = context.clock.now() + member.heartbeat
        relay, beat = context.config.relay, round(member.heartbeat * 1000)
        connection.write(Welcome(public, mac, relay, context.probe_port, beat).pack())
        self._schedule(member.job)

    def _supersede(self, old: Member, generation: int) -> None:
        self.context.counters.replaced += 1
        connection = old.handle
        if isinstance(connection, Connection):
            connection.state = None
            self._watched.discard(connection)
            connection.write(Superseded(generation).pack())
            self.context.restart_deadline(connection)
            connection.finish()

    def received(self, connection: Connection, data: bytes) -> None:
        """Frames of a registered worker."""
        state = connection.state
        if connection.closing or not isinstance(state, Joined):
            return
        state.member.deadline = self.context.clock.now() + state.member.heartbeat
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
            member.interest = merge_ranges(member.interest, frame.ranges, member.job.world)
            connection.write(member.job.known(frame.ranges))
        elif isinstance(frame, AskMissing):
            self._tell_news()  # first who has left: those did come
            connection.write(Missing(member.job.missing()).pack())
        elif isinstance(frame, TellNat):
            self.context.registry.update_nat(member, frame.nat)
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
                other.handle.write(member.as_peers() + message)

    def ended(self, connection: Connection) -> None:
        """The process died, or its network."""
        self._gone(connection, Departure.CLOSED)

    def _gone(self, connection: Connection, why: Departure) -> None:
        self._watched.discard(connection)
        self.context.hello_deadlines.drop(connection)
        state, connection.state = connection.state, None
        # Member, connection and this state held each other: now they are freed at once.
        if not isinstance(state, Joined) or not self.context.registry.remove(state.member, why):
            return
        counters = self.context.counters
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
            self._on_lost(member)
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
                self.context.poller.soon(self._tell_news)
            self._to_tell.append(job)
        else:
            soon = min(MAX_BATCH_SECONDS, many * BATCH_SECONDS_A_MEMBER)
            delay = LEFT_SECONDS if peaceful else soon
            self.context.clock.call_later(delay, self._flush, job)

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

        def report(result: Filter) -> None:
            connection.write(Back(result).pack())

        context = self.context
        ReachabilityCheck(context.poller, context.clock, target, connection.sock.family, report)
