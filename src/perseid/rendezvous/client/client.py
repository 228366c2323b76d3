"""The client of the rendezvous: blocking calls, for use from any thread.

A background thread keeps the connection to the server and connects to peers (``membership``). The
calls here wait for its results, each with a deadline.
"""

from __future__ import annotations

import time
import warnings
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
from perseid.rendezvous.liveness import (
    LINK_SECONDS,
    LONGEST_WAIT,
    SILENCE_SECONDS,
    LossTimeouts,
    pack_silence,
)
from perseid.rendezvous.net.endpoint import Endpoint
from perseid.rendezvous.protocol import (
    DepartureReason,
    MissingRequest,
    NatBehavior,
    PeerRecord,
    Register,
    auth,
)
from perseid.rendezvous.protocol.wire import MAX_JOB_BYTES, MAX_WORLD, Address, to_ranges
from perseid.rendezvous.punch.links import Link

ANSWER_SECONDS = 5.0
"""Time for the server to say which ranks are missing, for the message of a time-out."""
SMALL_WORLD = 64
"""Up to this world size a worker asks for the addresses of all ranks when it registers."""


class Client(Membership):
    """One worker's registration with a rendezvous server; a context manager.

    Use ``Client.register``. Links that were handed out belong to the caller and outlive it.
    """

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
        certificate: str | None = None,
        deadline: float = 10.0,
    ) -> Client:
        """Register one rank of a job.

        Parameters
        ----------
        server
            ``HOST:PORT`` of the rendezvous. The name is resolved again for each attempt.
        job
            Name of the job, the same on all ranks.
        rank, world_size
            Rank of this worker, and number of ranks.
        key
            The job's key, 32 bytes (`job_key`); None if the server has no keys.
        generation
            Attempt of the whole job. Registering a newer one ends the older.
        interest
            Ranks whose addresses the server is to send as they register; None: all, up to a
            world size of ``SMALL_WORLD``. ``connect`` asks for what it needs.
        silence_timeout
            Seconds without a sign of life after which this worker counts as lost, although its
            host answers; 0: only when its connection ends.
        link_timeout
            Seconds without any answer of the server's host after which the connection counts as
            cut, and is made again.
        transport
            ``auto``, ``direct`` or ``relay``.
        certificate
            The job's certificate and private key (PEM): links to peers are encrypted and go to
            holders of the same one only. None: they are plain.
        deadline
            Seconds for the registration as a whole.

        Raises
        ------
        BadInputError
            The rank is outside the world, the job's name is empty or too long, or the transport
            is unknown.
        RendezvousUnreachableError, RendezvousRefusedError, JobKeyRefusedError
            No server answered in time, or it refused.

        Examples
        --------
        >>> from perseid.rendezvous import Client, EmbeddedServer
        >>> with EmbeddedServer() as server:
        ...     with Client.register(server.address, "job", 0, 1) as client:
        ...         client.wait_complete(5.0)
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
        held = None
        if certificate is not None:
            from perseid.rendezvous.net.tls import job_certificate

            held = job_certificate(certificate, key.hex() if key else "")
        end = time.monotonic() + min(deadline, LONGEST_WAIT)
        opened = register(endpoint, hello, key, end)
        return cls(endpoint, key, opened, transport, timeouts.link, held)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- state -----------------------------------------------------------------------

    @property
    def world_size(self) -> int:
        """Number of ranks of the job."""
        return self._hello.world

    @property
    def port(self) -> int:
        """Local port of the registration: peers dial it, and are dialed from it."""
        return self._port

    @property
    def nat(self) -> NatBehavior:
        """The NAT in front of this worker, as far as it is known yet."""
        return self._nat.behavior

    @property
    def public(self) -> Address | None:
        """This worker's address as the server sees it."""
        me = self._punch.self_peer
        return me.public if me else None

    def lost(self) -> Mapping[int, str]:
        """Lost ranks that have not registered again, with the reason."""
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
        """Ranks that deregistered and have not registered again."""
        with self._table.changed:
            return frozenset(self._table.left)

    def transports(self) -> dict[int, str]:
        """Transport of the link to each rank: ``direct`` or ``relay``."""
        with self._table.changed:
            return dict(self._table.transports)

    def ways(self) -> dict[int, str]:
        """Use `transports`: this is its name in version 0.1."""
        warnings.warn("Client.ways() is now Client.transports()", DeprecationWarning, stacklevel=2)
        return self.transports()

    def peers(self) -> dict[int, PeerRecord]:
        """The other ranks as the server has described them so far."""
        with self._table.changed:
            return dict(self._table.peers)

    def subscribe(self, call: Callable[[Notice], None]) -> None:
        """Call a function with each notice, in the background thread: it must return at once."""
        self._table.subscribe(call)

    # --- calls that wait --------------------------------------------------------------------------

    def wait_complete(self, deadline: float) -> None:
        """Wait until all ranks are, or once were, registered.

        A rank may have finished since; a lost one is in ``lost()``.

        Raises
        ------
        RendezvousTimeoutError
            Some did not register within ``deadline`` seconds. ``missing`` names them, without
            those that had registered and left.
        ReplacedError, ClosedError, RendezvousRefusedError
            The registration has ended.
        """
        with self._table.changed:
            if self._wait(lambda: self._table.complete, deadline):
                return
        missing = self._ask_missing()
        # The time is over here, but only the server knows whether the last rank has come meanwhile.
        if missing == []:  # the last one registered just now
            return
        left = self.left()
        missing = [rank for rank in missing or () if rank not in left] or missing or []
        if missing:
            named = ", ".join(map(str, missing[:20])) + (", …" if len(missing) > 20 else "")
            which = f"{len(missing)} of {self.world_size} ranks ({named})"
        else:
            which = f"Some of {self.world_size} ranks (the server did not say which)"
        raise RendezvousTimeoutError(
            f"{which} of job {self._hello.job!r} did not register within {deadline:.3g} s; "
            "check whether those workers started.",
            missing,
        )

    def _ask_missing(self) -> list[int] | None:
        """The missing ranks; None if the server is too busy to answer in time."""
        try:
            return self.missing(ANSWER_SECONDS)
        except RendezvousUnreachableError:
            return None

    def missing(self, deadline: float = 5.0) -> list[int]:
        """Ask the server which ranks are not registered.

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
        """Connect to peers in parallel; links that exist already are returned as they are.

        One end of a pair may call this, or both: the other's background thread answers by itself.

        Raises
        ------
        PeerLostError
            One of the ranks is lost.
        NoPathError
            Some ranks can be reached neither directly nor through the relay.
        RendezvousTimeoutError
            Some ranks were not reached within ``deadline`` seconds; ``missing`` names them.
        ReplacedError, ClosedError, RendezvousRefusedError
            The registration has ended.
        """
        wanted = sorted(set(ranks) - {self.rank})
        outside = [rank for rank in wanted if not 0 <= rank < self.world_size]
        if outside:
            raise BadInputError(f"Rank {outside[0]} is not in a world of {self.world_size} ranks.")
        with self._table.changed:
            todo = [rank for rank in wanted if rank not in self._table.links]
            for rank in todo:
                # Asked for again, so tried again: networks recover.
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
            # A rank that finished may have left a link with data behind, which is still good.
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
                    "use the object store as transport.",
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

        table.changed.wait_for(over, min(deadline, LONGEST_WAIT))
        if ready():
            return True
        if table.fatal is not None:
            raise table.fatal
        if table.closed:
            raise ClosedError(f"The registration of rank {self.rank} is closed.")
        return False

    def close(self, goodbye: bool = True) -> None:
        """Deregister and end the background thread; links that were handed out stay open.

        Parameters
        ----------
        goodbye
            Whether this rank is done. Otherwise the others learn that it is lost.
        """
        table = self._table
        with table.changed:
            if table.closed:
                return
            table.closed = True
            table.changed.notify_all()
        # The loop's thread owns the sockets, so it says goodbye; `stop` waits until it has.
        self._loop.call_threadsafe(lambda: self._leave(goodbye))
        self._loop.stop()
        with table.changed:
            for link in table.links.values():
                table.close_unless_handed_out(link)

    def close_in_child(self) -> None:
        """Close a forked child's copies of all sockets; the registration stays the parent's."""
        self._table.closed = True
        self._loop.close_in_child()
        for link in self._table.links.values():
            link.sock.close()


def _check(hello: Register, transport: str) -> None:
    job, world = hello.job.encode(errors="surrogatepass"), hello.world
    if not 0 < world <= MAX_WORLD:
        raise BadInputError(f"A job must have 1 to {MAX_WORLD} ranks, not {world}.")
    if not 0 <= hello.rank < world:
        raise BadInputError(f"Rank {hello.rank} is not in a world of {world} ranks.")
    if not 0 < len(job) <= MAX_JOB_BYTES or job.decode(errors="ignore") != hello.job:
        raise BadInputError(
            f"The name of a job must have 1 to {MAX_JOB_BYTES} bytes in UTF-8, not {len(job)} "
            f"({hello.job[:40]!r})."
        )
    if not 0 <= hello.generation < 1 << 32:
        raise BadInputError(f"generation must be 0 to 4294967295, not {hello.generation}.")
    if transport not in ("auto", "direct", "relay"):
        raise BadInputError(f"transport must be auto, direct or relay, not {transport!r}.")
