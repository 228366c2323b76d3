"""The communicator: send, receive and collectives between the ranks of a job, as in mpi4py.

Lower-case methods take any object (pickled); upper-case methods take NumPy arrays, which are sent
without a copy and received in place.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from perseid.comm import arguments
from perseid.comm.call_guard import guarded
from perseid.comm.cost_model import Constants, Estimate
from perseid.comm.frames import FrameKind
from perseid.comm.group import Group
from perseid.comm.joining import (
    CALL_SECONDS,
    EXPECTED,
    JOIN_SECONDS,
    JoinRequest,
    environment_arguments,
)
from perseid.comm.object_calls import ObjectCalls
from perseid.comm.store_channel import ObjectStore
from perseid.linux import need_linux
from perseid.rendezvous import Endpoint, LossTimeouts


class Communicator(ObjectCalls):
    """A rank's membership in a group of ranks; a context manager.

    Make one with ``Communicator.join``, smaller ones of it with ``split``. It belongs to one
    thread. Every method may raise ``PeerLostError`` (a rank died, or stopped answering:
    ``join`` says after how long), ``MismatchedCollectiveError`` (ranks made different calls),
    ``RendezvousTimeoutError`` (a rank did not come within the deadline) and ``ClosedError``; after
    the first error every further call raises it.
    """

    def __init__(self, group: Group, *, owner: bool, choice: Estimate | None = None) -> None:
        super().__init__(group)
        self._owner = owner
        self.choice = choice
        """The transport that a hint chose, and what the model expects of it; None without one."""

    @classmethod
    def join(
        cls,
        job: str,
        rank: int,
        world_size: int,
        rendezvous: str | Endpoint | None = None,
        key: bytes | str | None = None,
        *,
        certificate: str | None = None,
        generation: int = 0,
        transport: str = "auto",
        hint: str | None = None,
        expects: tuple[str, float] = EXPECTED,
        constants: Constants | str | Path | None = None,
        deadline: float = JOIN_SECONDS,
        timeout: float = CALL_SECONDS,
        death_timeout: float = LossTimeouts.death,
        link_timeout: float = LossTimeouts.link,
        silence_timeout: float = LossTimeouts.silence,
        oversubscribed: bool = False,
        store: ObjectStore | None = None,
        prefix: str = "messages",
        wait: bool = True,
    ) -> Self:
        """Register with the rendezvous and wait until all ranks of the job have.

        Parameters
        ----------
        job
            Name of the job, the same on all ranks and of no other run.
        rank, world_size
            This worker's number, and how many there are.
        rendezvous
            ``HOST:PORT`` of the server; not needed in a world of one rank.
        key
            The job's key (32 bytes, or their 64 hexadecimal digits); None with an open server.
        certificate
            The job's certificate and private key, as `make_certificate` gives them, the same on all
            ranks: what ranks send each other is encrypted (TLS 1.3), also for the relay. None: it
            is plain. Objects in a store are not covered.
        generation
            Attempt of the whole job; a newer one ends the older.
        transport
            ``direct``, ``relay``, ``store``, or ``auto``: direct where it can be had, else the
            relay, else the store, if there is one. ``store`` alone needs no rendezvous; without one
            a lost rank is noticed by the ``timeout`` only.
        hint
            ``fast`` or ``cheap``: have the cost model choose the transport of the whole job, the
            one that takes the least time or money for what the job ``expects``, among the store
            (where one is given) and what ``transport`` allows. A pair that cannot connect so goes
            on to the next. Give all ranks the same ``hint``, ``expects`` and ``constants``.
        expects
            What the job mostly does: an operation (`perseid.comm.cost_model.OPERATIONS`) and the
            bytes that each rank contributes.
        constants
            The model's, or the file that ``perseid comm bench --constants`` wrote; None: those
            shipped, of AWS Lambda and S3.
        deadline
            Seconds until all ranks must have registered.
        timeout
            Seconds that one call may wait for another rank.
        death_timeout
            Seconds from the end of a rank's process until all others know. A fifth of it is how
            long a rank whose connection ended waits for the rendezvous to say who ended first.
        link_timeout
            Seconds without any answer of a rank's host after which it counts as lost: the host is
            dead, or the link is cut. It does not matter what the rank itself does.
        silence_timeout
            Seconds after which a rank counts as lost whose host answers while its process gives no
            sign of life, because it was stopped or is in one long call that holds the
            interpreter's lock; 0: never.
        oversubscribed
            Whether more ranks than cores run on each machine, the same on all ranks: small
            collectives then take few messages rather than few rounds.
        store, prefix
            Where pairs that cannot connect exchange their messages: below
            ``prefix/job/generation``. The job's name must then never have been used before, and
            only its ranks may be able to write there, for messages are unpickled.
        wait
            False: return when this rank is registered; the others may come as calls need them,
            within ``timeout``, or never.

        Raises
        ------
        BadInputError
            A rank outside the world, no rendezvous for a world of several, another hint than
            ``fast`` and ``cheap``.
        RendezvousUnreachableError, RendezvousRefusedError, JobKeyRefusedError
            No server answered, or it said no.
        RendezvousTimeoutError
            Not all ranks came; ``missing`` names them.
        """
        need_linux("The communicator")
        engine, choice = JoinRequest(
            job,
            rank,
            world_size,
            rendezvous,
            key,
            certificate,
            generation,
            transport,
            hint,
            expects,
            constants,
            deadline,
            timeout,
            LossTimeouts(death_timeout, link_timeout, silence_timeout),
            oversubscribed,
            store,
            prefix,
            wait,
        ).connect()
        return cls(Group(engine, 0, range(engine.world_size)), owner=True, choice=choice)

    @classmethod
    def from_environment(cls, **options: Any) -> Self:
        """The communicator of a program that ``perseid comm run`` started.

        Reads ``PERSEID_JOB``, ``PERSEID_RANK``, ``PERSEID_WORLD_SIZE``, ``PERSEID_RENDEZVOUS``,
        ``PERSEID_JOB_KEY``, ``PERSEID_JOB_CERTIFICATE``, ``PERSEID_OVERSUBSCRIBED`` and the three
        ``PERSEID_*_TIMEOUT``; ``options`` go to ``join``. Without them
        it is a world of one rank, so that a program also runs alone.
        """
        return cls.join(**{**environment_arguments(), **options})

    # --- what it is --------------------------------------------------------------------------

    @property
    def transports(self) -> Mapping[int, str]:
        """Transport to each rank that is connected so far: ``direct``, ``relay`` or ``store``."""
        group, found = self._group, self._engine.transports
        return {rank: found[world] for rank, world in enumerate(group.ranks) if world in found}

    @property
    def encrypted(self) -> bool:
        """Whether connections to other ranks are encrypted; objects in a store never are."""
        return self._engine.encrypted

    @property
    def routes(self) -> Mapping[int, str]:
        """Use `transports`: this is its name in version 0.1."""
        message = "Communicator.routes is now Communicator.transports"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.transports

    def __repr__(self) -> str:
        return f"<Communicator rank {self.rank} of {self.world_size}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Leave. With an error the other ranks are told that this one failed.

        Closing a communicator that came from ``split`` ends nothing: its connections are the
        world's.
        """
        if self._owner:
            self._group.engine.close(error)

    # --- smaller ones ------------------------------------------------------------------------

    @guarded
    def split(self, color: int | str | None, key: int = 0) -> Communicator | None:
        """A communicator of the ranks that gave the same color, ordered by key, then rank.

        None if the color is None: ``comm.split(comm.rank % 2, key=comm.rank)``.
        """
        group = self._group
        if not (color is None or isinstance(color, str)):
            color = arguments.whole("color", color)
        key = arguments.whole("key", key)
        told = self._allgather(FrameKind.SPLIT, (color, key, group.engine.next_comm))
        comm = max(following for _, _, following in told)
        group.engine.next_comm = comm + 1
        if color is None:
            return None
        mine = sorted((k, rank) for rank, (c, k, _) in enumerate(told) if c == color)
        ranks = [group.ranks[rank] for _, rank in mine]
        return Communicator(Group(group.engine, comm, ranks, group.progress), owner=False)
