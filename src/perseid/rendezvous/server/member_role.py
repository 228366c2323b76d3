"""Registered workers: sends them addresses and losses, and watches their heartbeats."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from perseid.rendezvous.liveness import pack_silence
from perseid.rendezvous.protocol import (
    FROM_CLIENT,
    ConnectRequest,
    ControlFrame,
    DepartureReason,
    Deregister,
    FailureReport,
    Heartbeat,
    MissingRanks,
    MissingRequest,
    NatFiltering,
    NatReport,
    RankFailure,
    ReachabilityRequest,
    ReachabilityResult,
    RefusalCode,
    Register,
    Subscribe,
    Superseded,
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
from perseid.rendezvous.server.client_connection import READ_BACKLOG, ClientConnection
from perseid.rendezvous.server.context import ServerContext
from perseid.rendezvous.server.reachability import ReachabilityCheck
from perseid.rendezvous.server.registry import Job, Member, RegistryRefusalError
from perseid.rendezvous.server.role import Role

SMALL_JOB = 64
"""Up to this number of members a job's updates are sent at once; in larger jobs, in batches."""
BATCH_SECONDS_PER_MEMBER = 20e-6
"""Delay of a batch for each member that it is sent to, so that sending cannot use all the time."""
MAX_BATCH_SECONDS = 0.05
"""Longest delay of a batch."""
DEREGISTRATION_BATCH_SECONDS = 0.25
"""Delay of a batch of deregistrations in a larger job. If n ranks ended together and each was
reported at once, n x n messages would be sent while some ranks still work."""
MAX_REACHABILITY_REQUESTS = 3
"""For each connection; a worker asks once."""
HEARTBEAT_BYTES = len(Heartbeat().pack())
HEARTBEAT_HEADER = Heartbeat().pack()[:5]
"""Type and length of a heartbeat: the one frame that is answered without being decoded."""

log = logging.getLogger("perseid.rendezvous")


@dataclass(slots=True)
class MemberState:
    """State of a registered worker's connection."""

    member: Member
    reader: FrameReader
    reachability_requests: int = 0
    """How often it asked whether it can be reached."""
    deferred: list[tuple[int, bytes]] | None = None
    """Frames that are handled once the client has taken earlier answers."""

    def idle(self) -> bool:
        """Whether nothing of an earlier frame is left to be read or handled."""
        return not self.deferred and not self.reader.unfinished


class MemberRole(Role):
    """Serves registered workers.

    Parameters
    ----------
    on_lost
        Called with each member that is gone without deregistration.
    """

    def __init__(self, context: ServerContext, on_lost: Callable[[Member], None]) -> None:
        super().__init__(context)
        self._on_lost = on_lost
        self._connections: set[ClientConnection] = set()
        self._pending_jobs: list[Job] = []

    def admit(
        self, connection: ClientConnection, hello: Register, mac: bytes, reader: FrameReader | None
    ) -> None:
        """Register a worker that has proved its key."""
        context = self.context
        # A job that has begun may be completed even while the server shuts down.
        if context.draining and hello.job not in context.registry.jobs:
            self.refuse(connection, RefusalCode.DRAINING, "this server is shutting down")
            return
        public = Address(connection.host, connection.port)
        try:
            member, replaced = context.registry.register(hello, public, connection)
        except RegistryRefusalError as refusal:
            self.refuse(connection, refusal.code, refusal.reason)
            return
        for old in replaced:
            self._supersede(old, hello.generation)
        if hello.heartbeat:
            # A client that asks for a millisecond would be lost at the first hiccup of the network.
            member.heartbeat = max(member.heartbeat, context.config.min_heartbeat)
        context.hello_deadlines.drop(connection)
        context.counters.registrations += 1
        connection.handler = self
        connection.state = MemberState(member, reader or FrameReader(MAX_CLIENT_FRAME))
        self._connections.add(connection)
        member.deadline = context.clock.now() + member.heartbeat
        relay, silence = context.config.relay, pack_silence(member.heartbeat)
        connection.write(Welcome(public, mac, relay, context.probe_port, silence, True).pack())
        self._schedule(member.job)

    def _supersede(self, old: Member, generation: int) -> None:
        self.context.counters.replaced += 1
        connection = old.handle
        if isinstance(connection, ClientConnection):
            # Before writing: a write can fail and end the connection, which must not count as a
            # loss then.
            connection.state = None
            self._connections.discard(connection)
            connection.write(Superseded(generation).pack())
            self.context.restart_deadline(connection)
            connection.finish()

    def received(self, connection: ClientConnection, data: bytes) -> None:
        """Decode and handle what a registered worker sent."""
        state = connection.state
        if connection.closing or not isinstance(state, MemberState):
            return
        # Whatever a worker sends is a sign of life.
        state.member.deadline = self.context.clock.now() + state.member.heartbeat
        # Heartbeats are nearly all of the traffic of a quiet server: 2,000 ranks send hundreds a
        # second.
        if len(data) == HEARTBEAT_BYTES and data.startswith(HEARTBEAT_HEADER) and state.idle():
            connection.write(data)
            return
        try:
            frames = state.reader.feed(data)
        except ProtocolError as error:
            self._malformed(connection, error)
        else:
            self.handle(connection, frames)

    def handle(self, connection: ClientConnection, frames: list[tuple[int, bytes]]) -> None:
        """Handle complete frames; while a client does not take its answers, its frames wait."""
        state = connection.state
        if not isinstance(state, MemberState):
            return
        if state.deferred:
            frames, state.deferred = state.deferred + frames, None
        try:
            for index, (kind, body) in enumerate(frames):
                # An earlier frame of the same packet may have ended or replaced the registration.
                if connection.closed or connection.closing or connection.state is not state:
                    return
                # The client asks faster than it reads the answers. Waiting here bounds what is kept
                # for it.
                if connection.backlog >= READ_BACKLOG:
                    state.deferred = frames[index:]
                    return
                self._frame(connection, state, decode(FROM_CLIENT, kind, body))
        except ProtocolError as error:
            self._malformed(connection, error)

    def progressed(self, connection: ClientConnection) -> None:
        """Continue with deferred frames; a client that takes its answers is alive."""
        state = connection.state
        if isinstance(state, MemberState):
            state.member.deadline = self.context.clock.now() + state.member.heartbeat
            if state.deferred:
                self.handle(connection, [])

    def _malformed(self, connection: ClientConnection, error: ProtocolError) -> None:
        self._departed(connection, DepartureReason.CLOSED)
        self.malformed(connection, error)

    def _frame(self, connection: ClientConnection, state: MemberState, frame: ControlFrame) -> None:
        member = state.member
        if isinstance(frame, Heartbeat):
            connection.write(frame.pack())
        elif isinstance(frame, Subscribe):
            member.interest = merge_ranges(member.interest, frame.ranges, member.job.world)
            connection.write(member.job.peers_in(frame.ranges))
        elif isinstance(frame, MissingRequest):
            self._flush_pending()  # first the departures: those ranks were not missing
            connection.write(MissingRanks(member.job.missing()).pack())
        elif isinstance(frame, NatReport):
            self.context.registry.update_nat(member, frame.nat)
            self._schedule(member.job)
        elif isinstance(frame, ConnectRequest):
            self._forward_connect_request(member, frame.ranks)
        elif isinstance(frame, ReachabilityRequest):
            self._check_reachability(connection, state)
        elif isinstance(frame, FailureReport):
            self._forward_failure(connection, member, frame.report)
        elif isinstance(frame, Deregister):
            self._departed(connection, DepartureReason.LEFT)
            connection.close()
        else:
            raise ProtocolError(f"a {type(frame).__name__} after the registration")

    @staticmethod
    def _forward_connect_request(member: Member, ranks: tuple[int, ...]) -> None:
        # With the sender's address: the peer may never have subscribed to it.
        message = member.as_peers() + ConnectRequest((member.rank,)).pack()
        for rank in dict.fromkeys(ranks):
            other = member.job.members.get(rank)
            if other is not None and isinstance(other.handle, ClientConnection):
                other.handle.write(message)

    @staticmethod
    def _forward_failure(connection: ClientConnection, member: Member, report: bytes) -> None:
        if not report:
            member.hears_failures = True
            # An empty report of the asker itself marks the end of what was known when it asked.
            asked = RankFailure(member.rank, member.instance, b"").pack()
            connection.write(b"".join(member.job.failures) + asked)
            return
        message = member.job.add_failure(member, report)
        for other in member.job.members.values():
            if other.hears_failures and isinstance(other.handle, ClientConnection):
                other.handle.write(message)

    def ended(self, connection: ClientConnection) -> None:
        """The connection ended without deregistration: the process died, or its network."""
        self._departed(connection, DepartureReason.CLOSED)

    def _departed(self, connection: ClientConnection, why: DepartureReason) -> None:
        self._connections.discard(connection)
        self.context.hello_deadlines.drop(connection)
        state, connection.state = connection.state, None
        # Breaks the cycle of member, connection and state, so that they are freed at once.
        if not isinstance(state, MemberState) or not self.context.registry.remove(
            state.member, why
        ):
            return
        counters = self.context.counters
        if why is DepartureReason.LEFT:
            counters.left += 1
        elif why is DepartureReason.SILENT:
            counters.lost_silent += 1
        else:
            counters.lost_closed += 1
        member = state.member
        if why is not DepartureReason.LEFT:
            if log.isEnabledFor(logging.INFO):
                data = {"job": member.job.name, "rank": member.rank, "why": why.name}
                log.info("rank lost", extra={"data": data})
            self._on_lost(member)
        self._schedule(member.job, peaceful=why is DepartureReason.LEFT)

    def sweep(self, now: float, grace: float) -> None:
        """Declare silent members lost.

        Parameters
        ----------
        grace
            Seconds for which the server itself was stopped; all deadlines move by as much.
        """
        silent: list[ClientConnection] = []
        for connection in self._connections:
            state = connection.state
            if not isinstance(state, MemberState) or not state.member.heartbeat:
                continue
            # The whole process was stopped (a suspended machine, say), so nobody's heartbeat was
            # read.
            if grace:
                state.member.deadline += grace
            if state.member.deadline < now:
                silent.append(connection)
        # In a second loop: ending one changes the set that the first loop walks over.
        for connection in silent:
            self._departed(connection, DepartureReason.SILENT)
            connection.close()

    def broadcast(self, message: bytes) -> None:
        """Send a message to every registered worker."""
        for connection in list(self._connections):
            connection.write(message)

    def _schedule(self, job: Job, *, peaceful: bool = False) -> None:
        many = len(job.members)
        # Everything until the scheduled flush goes into the same message.
        if job.scheduled or not many:
            return
        job.scheduled = True
        # After this round of events: registrations that arrived together are answered together.
        if many <= SMALL_JOB:
            if not self._pending_jobs:
                self.context.poller.call_soon(self._flush_pending)
            self._pending_jobs.append(job)
        else:
            delay = min(MAX_BATCH_SECONDS, many * BATCH_SECONDS_PER_MEMBER)
            if peaceful:
                delay = DEREGISTRATION_BATCH_SECONDS
            self.context.clock.call_later(delay, self._flush, job)

    def _flush_pending(self) -> None:
        jobs, self._pending_jobs = self._pending_jobs, []
        for job in jobs:
            self._flush(job)

    def _flush(self, job: Job) -> None:
        job.scheduled = False
        for member, message in job.flush():
            if isinstance(member.handle, ClientConnection):
                member.handle.write(message)

    def _check_reachability(self, connection: ClientConnection, state: MemberState) -> None:
        state.reachability_requests += 1
        if state.reachability_requests > MAX_REACHABILITY_REQUESTS:
            raise ProtocolError("too many reachability requests")
        # Only the address that the request came from: no client can have the server connect
        # elsewhere.
        target = Address(connection.host, connection.port)

        def report(result: NatFiltering) -> None:
            connection.write(ReachabilityResult(result).pack())

        context = self.context
        ReachabilityCheck(context.poller, context.clock, target, connection.sock.family, report)
