"""A worker's registration: blocking calls for any thread, no asyncio.

The registration's own thread keeps the control connection (heartbeats, notices, registering again
after a broken connection) and makes the connections to peers; the calls wait for it, each with a
deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from perseid.errors import (
    BadInputError,
    ClosedError,
    NoPathError,
    PeerLostError,
    RendezvousTimeoutError,
    RendezvousUnreachableError,
)
from perseid.rendezvous.client.connections import register
from perseid.rendezvous.client.membership import Membership
from perseid.rendezvous.client.peer_table import DEPARTURE_TEXT, Notice
from perseid.rendezvous.net.endpoint import Endpoint
from perseid.rendezvous.protocol import (
    DepartureReason,
    MissingRequest,
    NatBehavior,
    PeerRecord,
    Register,
    auth,
)
from perseid.rendezvous.protocol.liveness import (
    LINK_SECONDS,
    SILENCE_SECONDS,
    LossTimeouts,
    pack_silence,
)
from perseid.rendezvous.protocol.wire import MAX_JOB_BYTES, MAX_WORLD, Address, to_ranges
from perseid.rendezvous.punch.links import Link

ANSWER_SECONDS = 5.0
"""Time for the server to say who is missing, once that is an error."""
SMALL_WORLD = 64
"""Worlds up to this size are sent all addresses as they come, without asking."""


class Client(Membership):
    """One worker's registration with a rendezvous server; a context manager.

    Use ``Client.register``. Links that were handed out belong to the caller and outlive it.
    """

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
        silence_timeout: float = SILENCE_SECONDS,
        link_timeout: float = LINK_SECONDS,
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
        silence_timeout
            Seconds without a sign of life after which this worker counts as lost, although its
            host answers; 0: only when its connection ends.
        link_timeout
            Seconds without any answer of the server's host after which the connection counts as
            cut, and is made anew.
        transport
            ``auto``, ``direct`` or ``relay``.
        deadline
            Seconds for the whole registration.

        Raises
        ------
        BadInputError
            A rank outside the world, an empty or over-long job name, an unknown transport.
        RendezvousUnreachableError, RendezvousRefusedError, JobKeyRefusedError
            No server answered in time, or it said no.
        """
        endpoint = server if isinstance(server, Endpoint) else Endpoint.parse(server)
        if interest is not None:
            ranges = to_ranges(interest)
        else:
            ranges = (range(world_size),) if world_size <= SMALL_WORLD else ()
        timeouts = LossTimeouts(link=link_timeout, silence=silence_timeout)
        hello = Register(
            job,
            rank,
            world_size,
            generation,
            auth.fresh_instance(),
            auth.fresh_nonce(),
            pack_silence(timeouts.silence),
            interest=ranges,
        )
        _check(hello, transport)
        end = time.monotonic() + deadline
        opened = register(endpoint, hello, key, end)
        return cls(endpoint, key, opened, transport, timeouts.link)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- what is known -----------------------------------------------------------------------

    @property
    def world_size(self) -> int:
        """Number of ranks of the job."""
        return self._hello.world

    @property
    def port(self) -> int:
        """The local port of the registration: peers dial it, and are dialled from it."""
        return self._port

    @property
    def nat(self) -> NatBehavior:
        """The kind of NAT, as far as it is known yet."""
        return self._nat

    @property
    def public(self) -> Address | None:
        """This worker's address as the server sees it."""
        me = self._punch.self_peer
        return me.public if me else None

    def lost(self) -> Mapping[int, str]:
        """Ranks that were lost and have not registered again, with the reason."""
        with self._table.changed:
            return dict(self._table.lost)

    def failures(self) -> Mapping[int, str]:
        """What ranks that gave up reported, by rank."""
        with self._table.changed:
            return dict(self._table.failures)

    def report_failure(self, report: bytes) -> None:
        """Tell all other ranks why this one gives up: at most `MAX_REPORT_BYTES` of UTF-8.

        A server of version 0.1 takes no reports; then nothing is sent.
        """
        self._loop.call_threadsafe(lambda: self._report(report))

    def left(self) -> frozenset[int]:
        """Ranks that said goodbye and have not registered again."""
        with self._table.changed:
            return frozenset(self._table.left)

    def transports(self) -> dict[int, str]:
        """Which way each pair took, by rank: ``direct`` or ``relay``."""
        with self._table.changed:
            return dict(self._table.transports)

    def peers(self) -> dict[int, PeerRecord]:
        """What the server told of the others so far."""
        with self._table.changed:
            return dict(self._table.peers)

    def subscribe(self, call: Callable[[Notice], None]) -> None:
        """Be called with each notice, in the registration's thread: return quickly, never wait."""
        self._table.subscribe(call)

    # --- what waits --------------------------------------------------------------------------

    def wait_complete(self, deadline: float) -> None:
        """Wait until all ranks are, or once were, registered.

        A rank that was quick may have left again; one that was lost is in ``lost()``.

        Raises
        ------
        RendezvousTimeoutError
            Not all came within ``deadline`` seconds; ``missing`` names the ranks, without those
            that had come and gave up.
        ReplacedError, ClosedError, RendezvousRefusedError
            The registration is over.
        """
        with self._table.changed:
            if self._wait(lambda: self._table.complete, deadline):
                return
        missing = self._ask_missing()
        if missing == []:  # the last one came in this moment
            return
        gave_up = self.left()
        missing = [rank for rank in missing or () if rank not in gave_up] or missing
        many, names = (
            str(len(missing or ())) if missing else "Some",
            "which, the server did not say",
        )
        if missing:
            names = ", ".join(map(str, missing[:20])) + (", …" if len(missing) > 20 else "")
        raise RendezvousTimeoutError(
            f"{many} of {self.world_size} ranks of job {self._hello.job!r} did not "
            f"register within {deadline:.3g} s: {names}; see whether those workers started.",
            missing or (),
        )

    def _ask_missing(self) -> list[int] | None:
        """None: a server on a busy machine does not say in time."""
        try:
            return self.missing(ANSWER_SECONDS)
        except RendezvousUnreachableError:
            return None

    def missing(self, deadline: float = 5.0) -> list[int]:
        """Ranks that are not registered now, as the server says.

        Raises
        ------
        RendezvousUnreachableError
            The server did not answer within ``deadline`` seconds.
        """
        with self._table.changed:
            self._table.missing = None
            self._send_soon(MissingRequest())
            if not self._wait(lambda: self._table.missing is not None, deadline):
                raise RendezvousUnreachableError(
                    f"The rendezvous at {self._endpoint} did not answer within {deadline:g} s."
                )
            return list(self._table.missing or ())

    def connect(self, ranks: Iterable[int], deadline: float) -> dict[int, Link]:
        """Connections to peers, made in parallel; those that exist already are given at once.

        Both ends may ask, or one alone: the other's thread answers by itself.

        Raises
        ------
        PeerLostError
            One of them is lost.
        NoPathError
            Neither a direct connection nor a relay could be had to some.
        RendezvousTimeoutError
            Some were not reached within ``deadline`` seconds; ``missing`` names them.
        ReplacedError, ClosedError, RendezvousRefusedError
            The registration is over.
        """
        wanted = sorted(set(ranks) - {self.rank})
        outside = [rank for rank in wanted if not 0 <= rank < self.world_size]
        if outside:
            raise BadInputError(f"Rank {outside[0]} is not in a world of {self.world_size} ranks.")
        with self._table.changed:
            todo = [rank for rank in wanted if rank not in self._table.links]
            for rank in todo:
                self._table.failed.pop(rank, None)
        if todo:
            self._loop.call_threadsafe(lambda: self._start(todo))
        return self._collect(wanted, deadline)

    def _start(self, ranks: list[int]) -> None:
        for rank in ranks:
            self._punch.start(rank)

    def _collect(self, wanted: list[int], deadline: float) -> dict[int, Link]:
        table = self._table

        def gone(rank: int) -> bool:
            return rank in table.lost or (rank in table.unreachable and rank not in table.links)

        def settled() -> bool:
            return any(gone(r) or r in table.failed for r in wanted) or all(
                r in table.links for r in wanted
            )

        with table.changed:
            in_time = self._wait(settled, deadline)
            for rank in wanted:
                if gone(rank):
                    reason = table.lost.get(rank, DEPARTURE_TEXT[DepartureReason.LEFT])
                    raise PeerLostError(f"Rank {rank} is lost: {reason}.", rank)
            failed = {rank: table.failed[rank] for rank in wanted if rank in table.failed}
            if failed:
                first = min(failed)
                raise NoPathError(
                    f"Ranks {sorted(failed)} cannot be reached (rank {first}: {failed[first]}); "
                    "go through the store.",
                    failed,
                )
            if not in_time:
                late = [rank for rank in wanted if rank not in table.links]
                raise RendezvousTimeoutError(
                    f"Ranks {late} were not reached within {deadline:g} s.", late
                )
            table.handed_out.update(wanted)
            return {rank: table.links[rank] for rank in wanted}

    def _wait(self, ready: Callable[[], bool], deadline: float) -> bool:
        table = self._table

        def over() -> bool:
            return ready() or table.closed or table.fatal is not None

        table.changed.wait_for(over, deadline)
        if ready():
            return True
        if table.fatal is not None:
            raise table.fatal
        if table.closed:
            raise ClosedError(f"The registration of rank {self.rank} is closed.")
        return False

    def close(self, goodbye: bool = True) -> None:
        """Say goodbye; links that were handed out stay open, those nobody took are closed.

        Without a goodbye the others are told that this rank is lost.
        """
        table = self._table
        with table.changed:
            if table.closed:
                return
            table.closed = True
            table.changed.notify_all()
        self._loop.call_threadsafe(lambda: self._leave(goodbye))
        self._loop.stop()
        with table.changed:
            for link in table.links.values():
                table.close_unless_handed_out(link)

    def close_in_child(self) -> None:
        """After a fork, in the child: close its copies of all sockets, without a word to anybody.

        The registration stays the parent's.
        """
        self._table.closed = True
        self._loop.close_in_child()
        for link in self._table.links.values():
            link.sock.close()


def _check(hello: Register, transport: str) -> None:
    job, world = hello.job.encode(), hello.world
    if not 0 < world <= MAX_WORLD:
        raise BadInputError(f"A job has 1 to {MAX_WORLD} ranks, not {world}.")
    if not 0 <= hello.rank < world:
        raise BadInputError(f"Rank {hello.rank} is not in a world of {world} ranks.")
    if not 0 < len(job) <= MAX_JOB_BYTES:
        raise BadInputError(f"A job's name has 1 to {MAX_JOB_BYTES} bytes, not {len(job)}.")
    if not 0 <= hello.generation < 1 << 32:
        raise BadInputError(f"A generation is 0 to 4294967295, not {hello.generation}.")
    if transport not in ("auto", "direct", "relay"):
        raise BadInputError(f"The transport is auto, direct or relay, not {transport!r}.")
