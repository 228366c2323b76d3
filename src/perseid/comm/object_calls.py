"""The communicator's lower-case methods: they pickle any object, without copying its large buffers.

Each method raises the errors that ``Communicator`` lists, and ``BadInputError`` for a wrong
argument, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import get_ident
from typing import Any

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
from perseid.comm.frames import OBJECT, FrameKind
from perseid.comm.objects import dumps, loads
from perseid.comm.ops import SUM, Op, as_op
from perseid.comm.ports import ObjectPort
from perseid.errors import BadInputError


class ObjectCalls(ArrayCalls):
    """The object methods of a communicator; a base class of ``Communicator``."""

    # --- one to one --------------------------------------------------------------------------

    @guarded
    def send(self, value: Any, dest: int, tag: int = 0) -> None:
        """Send an object; returns once the kernel has taken all of it, on its way to the peer:
        ``comm.send("x", dest=1, tag=7)``."""
        # Pickled before the call begins: an object that cannot be pickled leaves nothing half sent.
        tag, blob = arguments.tag("tag", tag), dumps(value)
        channel = self._peer("dest", dest)
        self._progress.send_blob(channel, self._group.point(OBJECT), tag, blob)

    @guarded
    def recv(self, source: int, tag: int | None = None) -> Any:
        """Receive an object; without a tag, the next one: ``comm.recv(source=0, tag=7)``."""
        step = 0 if tag is None else arguments.tag("tag", tag)
        channel = self._peer("source", source)
        point = self._group.point(OBJECT)
        blob = self._progress.receive(channel, point, step, tag is None)
        return loads(blob.parts, blob.pieces[0])

    @guarded
    def sendrecv(
        self, value: Any, dest: int, source: int, sendtag: int = 0, recvtag: int | None = None
    ) -> Any:
        """Send one object and receive another at the same time, without blocking each other.

        A rank may exchange with itself, so that a ring of one works:
        ``comm.sendrecv("x", (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size)``.
        """
        sendtag = arguments.tag("sendtag", sendtag)
        step = 0 if recvtag is None else arguments.tag("recvtag", recvtag)
        blob = dumps(value)
        dest, source = arguments.whole("dest", dest), arguments.whole("source", source)
        if dest == source == self.rank:
            return loads(blob.parts, blob.flat())
        out, back = self._peer("dest", dest), self._peer("source", source)
        point = self._group.point(OBJECT)
        pending = PendingReceive(point, step, None, recvtag is None)
        blob = self._progress.exchange(out, point, sendtag, blob, back, pending)
        return loads(blob.parts, blob.pieces[0])

    # --- objects -----------------------------------------------------------------------------

    def barrier(self) -> None:
        """Wait until every rank has called it: ``comm.barrier()``."""
        engine = self._engine
        if engine.owner != get_ident() or engine.failure.error is not None:
            engine.enter()
        try:
            call = self._group.call(FrameKind.BARRIER)
            if engine.oversubscribed:
                barrier.tree(call)
            else:
                barrier.dissemination(call)
        except BaseException as error:
            engine.interruption, engine.owner = error, None
            engine.end_interrupted()
            raise

    def bcast(self, value: Any = None, root: int = 0) -> Any:
        """Return the root's object on every rank: ``comm.bcast({"seed": 1}, root=0)``."""
        engine = self._engine
        if engine.owner != get_ident() or engine.failure.error is not None:
            engine.enter()
        group = self._group
        if type(root) is not int or not 0 <= root < group.size:
            root = self._root(root)
        mine = dumps(value) if group.rank == root else None
        try:
            blob = bcast.blob(group.call(FrameKind.BCAST, root), mine, root)
            return value if mine is not None else loads(blob.parts, blob.pieces[0])
        except BaseException as error:
            engine.interruption, engine.owner = error, None
            engine.end_interrupted()
            raise

    @guarded
    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """All ranks' objects in rank order on the root, None on the others: ``comm.gather(3)``."""
        root, mine = self._root(root), dumps(value)
        blobs = gather.blobs(self._group.call(FrameKind.GATHER, root), mine, root)
        if blobs is None:
            return None
        # This rank's own object is returned as it is, without pickling and unpickling.
        return [
            value if rank == root else loads(blob.parts, blob.flat())
            for rank, blob in enumerate(blobs)
        ]

    @guarded
    def allgather(self, value: Any) -> list[Any]:
        """All ranks' objects in rank order, on every rank: ``comm.allgather(comm.rank)``."""
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
        """Give each rank one of the root's objects: ``comm.scatter(list(range(comm.size)))``."""
        root = self._root(root)
        # All objects are pickled before any is sent: one that cannot be pickled stops nothing
        # halfway.
        given = self._one_each(values) if self.rank == root else None
        mine = None if given is None else [dumps(value) for value in given]
        blob = scatter.blobs(self._group.call(FrameKind.SCATTER, root), mine, root)
        if given is not None:
            return given[root]
        return loads(blob.parts, blob.flat())

    @guarded
    def reduce(self, value: Any, op: AnyOp = SUM, root: int = 0) -> Any:
        """Combine all ranks' objects on the root; None on the others: ``comm.reduce(1.5, MAX)``."""
        op, root = as_op(op), self._root(root)
        mine = op.operand(value)
        call = self._group.call(FrameKind.REDUCE, root, op.code)
        # Objects such as lists depend on the order, which a tree from another root would change.
        algorithm = reduce.by_rank if op.tree else reduce.strict
        return algorithm(ObjectPort(call, op), mine, root)

    def allreduce(self, value: Any, op: AnyOp = SUM) -> Any:
        """Combine all ranks' objects; every rank gets the same result: ``comm.allreduce(1)``.

        A plain function is applied strictly in rank order. Use ``Op.custom`` with
        ``commutative=True, associative=True`` to have it evaluated as a tree, which is faster.
        """
        engine = self._engine
        if engine.owner != get_ident() or engine.failure.error is not None:
            engine.enter()
        op = op if type(op) is Op else as_op(op)
        mine = op.operand(value) if op.converts else value
        try:
            call = self._group.call(FrameKind.ALLREDUCE, -1, op.code)
            return self._small(op)(ObjectPort(call, op), mine)
        except BaseException as error:
            engine.interruption, engine.owner = error, None
            engine.end_interrupted()
            raise

    @guarded
    def reduce_scatter(self, values: Sequence[Any], op: AnyOp = SUM) -> Any:
        """Combine the i-th objects of all ranks' lists on rank i:
        ``comm.reduce_scatter([1] * comm.size)``."""
        op = as_op(op)
        mine = [dumps(op.operand(value)) for value in self._one_each(values)]
        call = self._group.call(FrameKind.REDUCE_SCATTER, -1, op.code)
        return reduce_scatter.objects(call, mine, op)

    @guarded
    def alltoall(self, values: Sequence[Any]) -> list[Any]:
        """Send the i-th object to rank i; returns what all ranks sent to this one, in rank order:
        ``comm.alltoall(["x"] * comm.size)``."""
        mine = [dumps(value) for value in self._one_each(values)]
        blobs = alltoall.blobs(self._group.call(FrameKind.ALLTOALL), mine)
        return [loads(blob.parts, blob.flat()) for blob in blobs]

    @guarded
    def scan(self, value: Any, op: AnyOp = SUM) -> Any:
        """Combine the objects of ranks 0 to this one: ``comm.scan(1)``."""
        op = as_op(op)
        mine = op.operand(value)
        port = ObjectPort(self._group.call(FrameKind.SCAN, -1, op.code), op)
        return (scan.doubling if op.tree else scan.chain)(port, mine)[0]

    @guarded
    def exscan(self, value: Any, op: AnyOp = SUM) -> Any:
        """Combine the objects of all lower ranks; None on rank 0: ``comm.exscan(1)``."""
        op = as_op(op)
        mine = op.operand(value)
        port = ObjectPort(self._group.call(FrameKind.EXSCAN, -1, op.code), op)
        return (scan.doubling if op.tree else scan.chain)(port, mine)[1]

    # --- helpers -----------------------------------------------------------------------------

    def _one_each(self, values: Sequence[Any] | None) -> list[Any]:
        given = [] if values is None else arguments.items("values", values)
        if len(given) != self.world_size:
            have = "none" if values is None else str(len(given))
            raise BadInputError(
                f"rank {self.rank} must give one value for each of {self.world_size} ranks, "
                f"not {have}"
            )
        return given
