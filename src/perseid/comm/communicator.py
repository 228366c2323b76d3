"""The communicator: send, receive and collectives between the ranks of a job, as in mpi4py.

Lower-case methods take any object (pickled); upper-case methods take NumPy arrays, which are sent
without a copy and received in place.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from perseid.comm import arguments
from perseid.comm.array_calls import AnyOp, ArrayCalls
from perseid.comm.call_guard import guarded
from perseid.comm.channel import PendingReceive
from perseid.comm.collectives import (
    allgather,
    alltoall,
    barrier,
    bcast,
    gather,
    reduce,
    reduce_scatter,
    scan,
    scatter,
)
from perseid.comm.cost_model import Constants, Estimate
from perseid.comm.frames import OBJECT, FrameKind
from perseid.comm.group import Group
from perseid.comm.joining import (
    CALL_SECONDS,
    EXPECTED,
    JOIN_SECONDS,
    JoinRequest,
    environment_arguments,
)
from perseid.comm.objects import dumps, loads
from perseid.comm.ops import SUM, as_op
from perseid.comm.ports import ObjectPort
from perseid.comm.store_channel import ObjectStore
from perseid.errors import BadInputError
from perseid.linux import need_linux
from perseid.rendezvous import Endpoint, LossTimeouts


class Communicator(ArrayCalls):
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

    # --- one to one --------------------------------------------------------------------------

    @guarded
    def send(self, value: Any, dest: int, tag: int = 0) -> None:
        """Send an object; returns once the peer's host or this one's kernel has it:
        ``comm.send("x", dest=1, tag=7)``."""
        tag, blob = arguments.tag("tag", tag), dumps(value)
        channel = self._peer("dest", dest)
        self._progress.send_blob(channel, self._group.point(OBJECT), tag, blob)

    @guarded
    def recv(self, source: int, tag: int | None = None) -> Any:
        """Receive an object, without a tag the next one: ``comm.recv(source=0, tag=7)``."""
        step = 0 if tag is None else arguments.tag("tag", tag)
        channel = self._peer("source", source)
        point = self._group.point(OBJECT)
        frame = self._progress.receive(channel, point, step, tag is None)
        return loads(frame.parts, frame.body)

    @guarded
    def sendrecv(
        self, value: Any, dest: int, source: int, sendtag: int = 0, recvtag: int | None = None
    ) -> Any:
        """Send one object and receive another at the same time; each rank may do both first.

        A rank may exchange with itself, so that a ring of one works:
        ``comm.sendrecv("x", (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size)``.
        """
        sendtag = arguments.tag("sendtag", sendtag)
        step = 0 if recvtag is None else arguments.tag("recvtag", recvtag)
        blob = dumps(value)
        if dest == source == self.rank:
            return loads(blob.parts, blob.flat())
        out, back = self._peer("dest", dest), self._peer("source", source)
        point = self._group.point(OBJECT)
        pending = PendingReceive(point, step, None, recvtag is None)
        frame = self._progress.exchange(out, point, sendtag, blob, back, pending)
        return loads(frame.parts, frame.body)

    # --- objects -----------------------------------------------------------------------------

    @guarded
    def barrier(self) -> None:
        """Return when every rank has come: ``comm.barrier()``."""
        call = self._group.call(FrameKind.BARRIER)
        if self._group.engine.oversubscribed:
            barrier.tree(call)
        else:
            barrier.dissemination(call)

    @guarded
    def bcast(self, value: Any = None, root: int = 0) -> Any:
        """The root's object on every rank: ``comm.bcast({"seed": 1}, root=0)``."""
        root = self._root(root)
        mine = dumps(value) if self.rank == root else None
        blob = bcast.blob(self._group.call(FrameKind.BCAST, root), mine, root)
        return value if mine is not None else loads(blob.parts, blob.flat())

    @guarded
    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """Every rank's object in rank order on the root, None elsewhere: ``comm.gather(3)``."""
        root, mine = self._root(root), dumps(value)
        blobs = gather.blobs(self._group.call(FrameKind.GATHER, root), mine, root)
        if blobs is None:
            return None
        return [
            value if rank == root else loads(blob.parts, blob.flat())
            for rank, blob in enumerate(blobs)
        ]

    @guarded
    def allgather(self, value: Any) -> list[Any]:
        """Every rank's object in rank order, on every rank: ``comm.allgather(comm.rank)``."""
        return self._allgather(FrameKind.ALLGATHER, value)

    def _allgather(self, kind: FrameKind, value: Any) -> list[Any]:
        mine = dumps(value)
        call = self._group.call(kind)
        blobs = allgather.blobs(call, mine)
        return [
            value if rank == call.rank else loads(blob.parts, blob.flat())
            for rank, blob in enumerate(blobs)
        ]

    @guarded
    def scatter(self, values: Sequence[Any] | None = None, root: int = 0) -> Any:
        """One of the root's objects for each rank: ``comm.scatter(list(range(comm.size)))``."""
        root = self._root(root)
        mine = [dumps(value) for value in self._one_each(values)] if self.rank == root else None
        blob = scatter.blobs(self._group.call(FrameKind.SCATTER, root), mine, root)
        if mine is not None:
            return self._one_each(values)[root]
        return loads(blob.parts, blob.flat())

    @guarded
    def reduce(self, value: Any, op: AnyOp = SUM, root: int = 0) -> Any:
        """All ranks' objects as one on the root, None elsewhere: ``comm.reduce(1.5, MAX)``."""
        op, root = as_op(op), self._root(root)
        call = self._group.call(FrameKind.REDUCE, root, op.code)
        algorithm = reduce.by_rank if op.tree else reduce.strict
        return algorithm(ObjectPort(call, op), op.operand(value), root)

    @guarded
    def allreduce(self, value: Any, op: AnyOp = SUM) -> Any:
        """All ranks' objects as one, the same on every rank: ``comm.allreduce(1)``.

        A plain function is taken strictly in rank order; give ``Op.custom`` with
        ``commutative=True, associative=True`` to have it evaluated as a tree.
        """
        op = as_op(op)
        call = self._group.call(FrameKind.ALLREDUCE, -1, op.code)
        return self._small(op)(ObjectPort(call, op), op.operand(value))

    @guarded
    def reduce_scatter(self, values: Sequence[Any], op: AnyOp = SUM) -> Any:
        """Of every rank's list the i-th objects as one on rank i:
        ``comm.reduce_scatter([1] * comm.size)``."""
        op = as_op(op)
        mine = [dumps(op.operand(value)) for value in self._one_each(values)]
        call = self._group.call(FrameKind.REDUCE_SCATTER, -1, op.code)
        return reduce_scatter.objects(call, mine, op)

    @guarded
    def alltoall(self, values: Sequence[Any]) -> list[Any]:
        """The i-th object to rank i, and what each had for this one in rank order:
        ``comm.alltoall(["x"] * comm.size)``."""
        mine = [dumps(value) for value in self._one_each(values)]
        blobs = alltoall.blobs(self._group.call(FrameKind.ALLTOALL), mine)
        return [loads(blob.parts, blob.flat()) for blob in blobs]

    @guarded
    def scan(self, value: Any, op: AnyOp = SUM) -> Any:
        """The objects of ranks 0 to this one as one: ``comm.scan(1)``."""
        op = as_op(op)
        port = ObjectPort(self._group.call(FrameKind.SCAN, -1, op.code), op)
        return (scan.doubling if op.tree else scan.chain)(port, op.operand(value))[0]

    @guarded
    def exscan(self, value: Any, op: AnyOp = SUM) -> Any:
        """The objects of the ranks before this as one, None on rank 0: ``comm.exscan(1)``."""
        op = as_op(op)
        port = ObjectPort(self._group.call(FrameKind.EXSCAN, -1, op.code), op)
        return (scan.doubling if op.tree else scan.chain)(port, op.operand(value))[1]

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

    # --- help --------------------------------------------------------------------------------

    def _one_each(self, values: Sequence[Any] | None) -> Sequence[Any]:
        if not (values is None or isinstance(values, (Sequence, np.ndarray))):
            raise BadInputError(f"values must be a list, not {arguments.shown(values)}")
        if values is None or len(values) != self.world_size:
            have = "none" if values is None else str(len(values))
            raise BadInputError(
                f"rank {self.rank} must give one value for each of {self.world_size} ranks, "
                f"not {have}"
            )
        return values
