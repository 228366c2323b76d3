"""The communicator: send, receive and collectives between the ranks of a job, as in mpi4py.

Lower-case methods take any object, which is pickled; upper-case methods take NumPy arrays, which
are sent without a copy and received in place.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
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
from perseid.plaintext import html_table
from perseid.rendezvous import Endpoint, LossTimeouts


class Communicator(ObjectCalls):
    """A rank's membership in a group of ranks; a context manager.

    Make one with ``Communicator.join``, and smaller ones from it with ``split``. It belongs to one
    thread. Every method may raise ``PeerLostError`` (a rank died or stopped answering; ``join``
    says after how long), ``MismatchedCollectiveError`` (ranks made different calls),
    ``RendezvousTimeoutError`` (a rank did not make the call within the time limit) and
    ``ClosedError``. After the first such error, every further call raises it again.
    """

    def __init__(self, group: Group, *, owner: bool, choice: Estimate | None = None) -> None:
        super().__init__(group)
        self._owner = owner
        self.choice = choice
        """The transport that the cost model chose for the hint, with its expected time and price;
        None without a hint."""

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
            Name of the job: the same on all ranks, and not used by any other run.
        rank, world_size
            This worker's number, and the number of workers.
        rendezvous
            ``HOST:PORT`` of the server; not needed for a single rank.
        key
            The job's key (32 bytes, or their 64 hexadecimal digits); None if the server needs no
            key.
        certificate
            The job's certificate and private key from `make_certificate`, the same on all ranks.
            Connections between ranks are then encrypted end to end (TLS 1.3), also through the
            relay. None: they are not encrypted. Objects in a store are never encrypted by this.
        generation
            Number of the attempt at the whole job; a newer attempt ends the older one.
        transport
            ``direct``, ``relay``, ``store``, or ``auto``: direct if a pair can connect, otherwise
            the relay, otherwise the store if one is given. Only ``store`` works without a
            rendezvous; then only the ``timeout`` tells that a rank is lost.
        hint
            ``fast`` or ``cheap``: let the cost model choose the transport of the whole job, the one
            that takes the least time or money for what the job ``expects``. It chooses between the
            store (if one is given) and what ``transport`` allows. A pair that cannot connect that
            way uses the next one. Give all ranks the same ``hint``, ``expects`` and ``constants``.
        expects
            What the job mostly does: an operation (`perseid.comm.cost_model.OPERATIONS`) and the
            number of bytes that each rank contributes to it.
        constants
            Constants of the cost model, or a file that ``perseid comm bench --constants`` wrote.
            None: the built-in constants, which describe AWS Lambda and S3.
        deadline
            Seconds within which all ranks must have registered.
        timeout
            Seconds that one call may wait for another rank.
        death_timeout
            Seconds within which all others know that a rank's process has ended. A rank whose
            connection ended waits a fifth of this for the rendezvous to say which rank ended first.
        link_timeout
            Seconds without an answer from a rank's host after which the rank counts as lost: its
            host is dead, or the link is cut. What the rank itself does makes no difference.
        silence_timeout
            Seconds without a sign of life from a rank's process, while its host still answers,
            after which the rank counts as lost: it was stopped, or is in one long call that holds
            the interpreter's lock. 0: never.
        oversubscribed
            Whether each machine runs more ranks than it has cores; the same on all ranks. Small
            collectives are then optimized for few messages rather than few rounds.
        store, prefix
            Store in which pairs that cannot connect exchange their messages, below
            ``prefix/job/generation``. The job's name must then never have been used before. Nobody
            but the job's ranks may be able to write there, because messages are unpickled.
        wait
            Whether to wait for all ranks. False: return once this rank is registered; a call that
            needs another rank waits for it, at most for ``timeout``.

        Raises
        ------
        BadInputError
            A rank outside the world, several ranks without a rendezvous, or a hint other than
            ``fast`` and ``cheap``.
        RendezvousUnreachableError, RendezvousRefusedError, JobKeyRefusedError
            No server answered, or the server refused the registration.
        RendezvousTimeoutError
            Not all ranks registered in time; ``missing`` names those that did not.
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
            LossTimeouts(
                arguments.seconds("death_timeout", death_timeout),
                arguments.seconds("link_timeout", link_timeout),
                arguments.seconds("silence_timeout", silence_timeout),
            ),
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
        ``PERSEID_*_TIMEOUT``; ``options`` are passed to ``join`` and take precedence. Without these
        variables the world has one rank, so that a program also runs alone.
        """
        return cls.join(**{**environment_arguments(), **options})

    # --- properties, and the end -------------------------------------------------------------

    @property
    def transports(self) -> Mapping[int, str]:
        """Transport to each rank that is connected already: ``direct``, ``relay`` or ``store``."""
        group, found = self._group, self._engine.transports
        return {rank: found[world] for rank, world in enumerate(group.ranks) if world in found}

    @property
    def encrypted(self) -> bool:
        """Whether connections to other ranks are encrypted; objects in a store never are."""
        return self._engine.encrypted

    @property
    def routes(self) -> Mapping[int, str]:
        """Deprecated name of `transports`, from version 0.1."""
        message = "Communicator.routes is now Communicator.transports"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.transports

    def __repr__(self) -> str:
        return f"<Communicator rank {self.rank} of {self.world_size}>"

    def _repr_html_(self) -> str:
        rows = [("rank", self.rank), ("world size", self.world_size)]
        return html_table(("communicator", ""), rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Leave the job. With an error, the other ranks are told that this one failed.

        Closing a communicator that came from ``split`` does nothing: its connections belong to the
        communicator that it was split from.
        """
        if self._owner:
            self._group.engine.close(error)

    # --- splitting ---------------------------------------------------------------------------

    @guarded
    def split(self, color: int | str | None, key: int = 0) -> Communicator | None:
        """Make a communicator of the ranks that gave the same color, ordered by key, then by rank.

        Returns None if the color is None: ``comm.split(comm.rank % 2, key=comm.rank)``.
        """
        group = self._group
        if not (color is None or isinstance(color, str)):
            color = arguments.whole("color", color)
        key = arguments.whole("key", key)
        told = self._allgather(FrameKind.SPLIT, (color, key, group.engine.next_comm))
        # All ranks must agree on an id that none of them has used: the largest that any has seen
        # next.
        comm = max(following for _, _, following in told)
        group.engine.next_comm = comm + 1
        if color is None:
            return None
        # By key, then rank: every member computes the same order from the same list.
        mine = sorted((k, rank) for rank, (c, k, _) in enumerate(told) if c == color)
        ranks = [group.ranks[rank] for _, rank in mine]
        return Communicator(Group(group.engine, comm, ranks, group.progress), owner=False)
