"""Collectives for objects (lower case) and buffers (upper case), also in the background."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from perseid.comm import Communicator
from perseid.comm.ops import Array
from perseid.compat.mpi import buffers
from perseid.compat.mpi.buffers import IN_PLACE
from perseid.compat.mpi.handle import HasGroup
from perseid.compat.mpi.reductions import OPS, Op
from perseid.compat.mpi.requests import Request

SUM = OPS["SUM"]
Job = Callable[[Communicator], Any]
"""A collective with checked arguments; it takes the communicator that makes the call."""


class ObjectCollectives(HasGroup):
    """The collectives of a communicator for arbitrary objects."""

    def _now(self, job: Job) -> Any:
        group = self._group
        # Calls of several threads take turns, as THREAD_MULTIPLE promises.
        with group.turn():
            return job(group.calls)

    def _later(self, job: Job) -> Request:
        group = self._group
        # In the group's own thread and communicator, so that it cannot mix with blocking calls.
        running = group.start(job)
        return Request.begun(group, running, lambda status: running.result())

    def Barrier(self) -> None:
        """Return when every rank has called this."""
        self._now(lambda calls: calls.barrier())

    barrier = Barrier

    def Ibarrier(self) -> Request:
        """Begin a barrier."""
        return self._later(lambda calls: calls.barrier())

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """Return the root's object on every rank."""
        root = self._root(root)
        return self._now(lambda calls: calls.bcast(obj, root))

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        """Return every rank's object in rank order on the root, and None elsewhere."""
        root = self._root(root)
        found: list[Any] | None = self._now(lambda calls: calls.gather(sendobj, root))
        return found

    def scatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> Any:
        """Return this rank's object from the list on the root."""
        root = self._root(root)
        values = None if sendobj is None else list(sendobj)
        return self._now(lambda calls: calls.scatter(values, root))

    def allgather(self, sendobj: Any) -> list[Any]:
        """Return every rank's object in rank order, on every rank."""
        found: list[Any] = self._now(lambda calls: calls.allgather(sendobj))
        return found

    def alltoall(self, sendobj: Sequence[Any]) -> list[Any]:
        """Send the i-th object to rank i; return the objects that the ranks sent to this one."""
        found: list[Any] = self._now(lambda calls: calls.alltoall(list(sendobj)))
        return found

    def reduce(self, sendobj: Any, op: Op = SUM, root: int = 0) -> Any:
        """Return the reduction of all objects on the root, and None elsewhere."""
        root, ours = self._root(root), op.for_objects()
        return self._now(lambda calls: calls.reduce(sendobj, ours, root))

    def allreduce(self, sendobj: Any, op: Op = SUM) -> Any:
        """Return the reduction of all objects, on every rank."""
        ours = op.for_objects()
        return self._now(lambda calls: calls.allreduce(sendobj, ours))

    def scan(self, sendobj: Any, op: Op = SUM) -> Any:
        """Return the reduction of the objects of ranks 0 to this one."""
        ours = op.for_objects()
        return self._now(lambda calls: calls.scan(sendobj, ours))

    def exscan(self, sendobj: Any, op: Op = SUM) -> Any:
        """Return the reduction of the objects of all lower ranks, and None on rank 0."""
        ours = op.for_objects()
        return self._now(lambda calls: calls.exscan(sendobj, ours))


class Collectives(ObjectCollectives):
    """The collectives of a communicator for buffers."""

    # --- Each call as a job ------------------------------------------------------------------

    def _bcast(self, buf: Any, root: int) -> Job:
        root = self._root(root)
        array = buffers.simple(buf, writable=self._group.rank != root)
        return lambda calls: calls.Bcast(array, root)

    def _gather(self, sendbuf: Any, recvbuf: Any, root: int) -> Job:
        root, group = self._root(root), self._group
        into = None
        if group.rank == root:
            into = buffers.blocks(recvbuf, group.size, writable=True)
        # On the root, IN_PLACE means that its part is already where it belongs.
        if _in_place(sendbuf) and into is not None:
            array = into.reshape(group.size, -1)[root]
        else:
            array = buffers.simple(sendbuf)
        if into is not None:
            into = _exactly("recvbuf", into, array.size * group.size)
        return lambda calls: calls.Gather(array, into, root)

    def _scatter(self, sendbuf: Any, recvbuf: Any, root: int) -> Job:
        root, group = self._root(root), self._group
        array = buffers.blocks(sendbuf, group.size) if group.rank == root else None
        if _in_place(recvbuf) and array is not None:
            into = np.empty(array.size // group.size, array.dtype)
        else:
            into = buffers.simple(recvbuf, writable=True)
        if array is not None:
            # As everywhere in MPI, a message may be shorter than the buffer that receives it.
            into = _exactly("recvbuf", into, array.size // group.size)
        return lambda calls: calls.Scatter(array, into, root)

    def _allgather(self, sendbuf: Any, recvbuf: Any) -> Job:
        group = self._group
        into = buffers.blocks(recvbuf, group.size, writable=True)
        if _in_place(sendbuf):
            array = into.reshape(group.size, -1)[group.rank]
        else:
            array = buffers.simple(sendbuf)
        into = _exactly("recvbuf", into, array.size * group.size)
        return lambda calls: calls.Allgather(array, into)

    def _alltoall(self, sendbuf: Any, recvbuf: Any) -> Job:
        group = self._group
        into = buffers.blocks(recvbuf, group.size, writable=True)
        array = into if sendbuf is IN_PLACE else buffers.blocks(sendbuf, group.size)
        into = _exactly("recvbuf", into, array.size)
        return lambda calls: calls.Alltoall(array, into)

    def _gatherv(self, sendbuf: Any, recvbuf: Any, root: int) -> Job:
        root, group = self._root(root), self._group
        places = None
        if group.rank == root:
            places = buffers.parts(recvbuf, group.size, writable=True)
        if _in_place(sendbuf) and places is not None:
            array = places[root]
        else:
            array = buffers.simple(sendbuf)
        # As objects, since arrays of different lengths do not fit one buffer.
        return lambda calls: _put(calls.gather(array, root), places)

    def _scatterv(self, sendbuf: Any, recvbuf: Any, root: int) -> Job:
        root, group = self._root(root), self._group
        arrays = buffers.parts(sendbuf, group.size) if group.rank == root else None
        if _in_place(recvbuf) and arrays is not None:
            into = np.empty_like(arrays[root])
        else:
            into = buffers.simple(recvbuf, writable=True)
        return lambda calls: _put([calls.scatter(arrays, root)], [into])

    def _allgatherv(self, sendbuf: Any, recvbuf: Any) -> Job:
        group = self._group
        places = buffers.parts(recvbuf, group.size, writable=True)
        array = places[group.rank] if _in_place(sendbuf) else buffers.simple(sendbuf)
        return lambda calls: _put(calls.allgather(array), places)

    def _alltoallv(self, sendbuf: Any, recvbuf: Any) -> Job:
        group = self._group
        places = buffers.parts(recvbuf, group.size, writable=True)
        arrays = places if sendbuf is IN_PLACE else buffers.parts(sendbuf, group.size)
        return lambda calls: _put(calls.alltoall(arrays), places)

    def _reduce(self, sendbuf: Any, recvbuf: Any, op: Op, root: int) -> Job:
        root, group = self._root(root), self._group
        into = buffers.simple(recvbuf, writable=True) if group.rank == root else None
        array = into if _in_place(sendbuf) and into is not None else buffers.simple(sendbuf)
        if into is not None:
            into = _exactly("recvbuf", into, array.size)
        ours = op.for_arrays(array.dtype)
        return lambda calls: calls.Reduce(array, into, ours, root)

    def _to_each(self, name: str, sendbuf: Any, recvbuf: Any, op: Op) -> Job:
        """Job for Allreduce, Scan or Exscan."""
        into = buffers.simple(recvbuf, writable=True)
        array = into if _in_place(sendbuf) else buffers.simple(sendbuf)
        into = _exactly("recvbuf", into, array.size)
        ours = op.for_arrays(array.dtype)

        def job(calls: Communicator) -> None:
            method = {"Allreduce": calls.Allreduce, "Scan": calls.Scan, "Exscan": calls.Exscan}
            method[name](array, into, ours)

        return job

    def _reduce_scatter(
        self, sendbuf: Any, recvbuf: Any, counts: Sequence[int] | None, op: Op
    ) -> Job:
        group, in_place = self._group, _in_place(sendbuf)
        into = buffers.simple(recvbuf, writable=True)
        # A copy, since the result overwrites the start of the same buffer.
        array = into.copy() if in_place else buffers.simple(sendbuf)
        if counts is None:
            mine = array.size // group.size if in_place else into.size
            known = None
        else:
            known = [int(count) for count in counts]
            mine = known[group.rank]
        into = _exactly("recvbuf", into, mine)
        ours = op.for_arrays(array.dtype)

        def job(calls: Communicator) -> None:
            # Without counts, each rank knows only the size of its own part.
            each = calls.allgather(mine) if known is None else known
            calls.Reduce_scatter(_exactly("sendbuf", array, sum(each)), into, ours, each)

        return job

    # --- Blocking calls ----------------------------------------------------------------------

    def Bcast(self, buf: Any, root: int = 0) -> None:
        """Copy the root's buffer into the buffer of every rank."""
        self._now(self._bcast(buf, root))

    def Gather(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> None:
        """Concatenate the buffers of all ranks in the root's buffer."""
        self._now(self._gather(sendbuf, recvbuf, root))

    def Scatter(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> None:
        """Distribute equal parts of the root's buffer to all ranks."""
        self._now(self._scatter(sendbuf, recvbuf, root))

    def Allgather(self, sendbuf: Any, recvbuf: Any) -> None:
        """Concatenate the buffers of all ranks in the buffer of every rank."""
        self._now(self._allgather(sendbuf, recvbuf))

    def Alltoall(self, sendbuf: Any, recvbuf: Any) -> None:
        """Send the i-th part of each rank's buffer to rank i."""
        self._now(self._alltoall(sendbuf, recvbuf))

    def Gatherv(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> None:
        """`Gather` with parts of different lengths: ``[array, counts, displacements, type]``."""
        self._now(self._gatherv(sendbuf, recvbuf, root))

    def Scatterv(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> None:
        """`Scatter` with parts of different lengths."""
        self._now(self._scatterv(sendbuf, recvbuf, root))

    def Allgatherv(self, sendbuf: Any, recvbuf: Any) -> None:
        """`Allgather` with parts of different lengths."""
        self._now(self._allgatherv(sendbuf, recvbuf))

    def Alltoallv(self, sendbuf: Any, recvbuf: Any) -> None:
        """`Alltoall` with parts of different lengths."""
        self._now(self._alltoallv(sendbuf, recvbuf))

    def Reduce(self, sendbuf: Any, recvbuf: Any, op: Op = SUM, root: int = 0) -> None:
        """Reduce the buffers of all ranks element by element into the root's buffer."""
        self._now(self._reduce(sendbuf, recvbuf, op, root))

    def Allreduce(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> None:
        """Reduce the buffers of all ranks element by element into every rank's buffer."""
        self._now(self._to_each("Allreduce", sendbuf, recvbuf, op))

    def Scan(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> None:
        """Reduce the buffers of ranks 0 to this one."""
        self._now(self._to_each("Scan", sendbuf, recvbuf, op))

    def Exscan(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> None:
        """Reduce the buffers of all lower ranks; the buffer of rank 0 is not changed."""
        self._now(self._to_each("Exscan", sendbuf, recvbuf, op))

    def Reduce_scatter(
        self, sendbuf: Any, recvbuf: Any, recvcounts: Sequence[int] | None = None, op: Op = SUM
    ) -> None:
        """Reduce the buffers of all ranks, and send ``recvcounts[i]`` elements to rank i."""
        self._now(self._reduce_scatter(sendbuf, recvbuf, recvcounts, op))

    def Reduce_scatter_block(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> None:
        """`Reduce_scatter` with equal parts."""
        self._now(self._reduce_scatter(sendbuf, recvbuf, None, op))

    # --- Calls in the background -------------------------------------------------------------

    def Ibcast(self, buf: Any, root: int = 0) -> Request:
        """Begin `Bcast`."""
        return self._later(self._bcast(buf, root))

    def Igather(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> Request:
        """Begin `Gather`."""
        return self._later(self._gather(sendbuf, recvbuf, root))

    def Iscatter(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> Request:
        """Begin `Scatter`."""
        return self._later(self._scatter(sendbuf, recvbuf, root))

    def Iallgather(self, sendbuf: Any, recvbuf: Any) -> Request:
        """Begin `Allgather`."""
        return self._later(self._allgather(sendbuf, recvbuf))

    def Ialltoall(self, sendbuf: Any, recvbuf: Any) -> Request:
        """Begin `Alltoall`."""
        return self._later(self._alltoall(sendbuf, recvbuf))

    def Igatherv(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> Request:
        """Begin `Gatherv`."""
        return self._later(self._gatherv(sendbuf, recvbuf, root))

    def Iscatterv(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> Request:
        """Begin `Scatterv`."""
        return self._later(self._scatterv(sendbuf, recvbuf, root))

    def Iallgatherv(self, sendbuf: Any, recvbuf: Any) -> Request:
        """Begin `Allgatherv`."""
        return self._later(self._allgatherv(sendbuf, recvbuf))

    def Ialltoallv(self, sendbuf: Any, recvbuf: Any) -> Request:
        """Begin `Alltoallv`."""
        return self._later(self._alltoallv(sendbuf, recvbuf))

    def Ireduce(self, sendbuf: Any, recvbuf: Any, op: Op = SUM, root: int = 0) -> Request:
        """Begin `Reduce`."""
        return self._later(self._reduce(sendbuf, recvbuf, op, root))

    def Iallreduce(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> Request:
        """Begin `Allreduce`."""
        return self._later(self._to_each("Allreduce", sendbuf, recvbuf, op))

    def Iscan(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> Request:
        """Begin `Scan`."""
        return self._later(self._to_each("Scan", sendbuf, recvbuf, op))

    def Iexscan(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> Request:
        """Begin `Exscan`."""
        return self._later(self._to_each("Exscan", sendbuf, recvbuf, op))

    def Ireduce_scatter(
        self, sendbuf: Any, recvbuf: Any, recvcounts: Sequence[int] | None = None, op: Op = SUM
    ) -> Request:
        """Begin `Reduce_scatter`."""
        return self._later(self._reduce_scatter(sendbuf, recvbuf, recvcounts, op))

    def Ireduce_scatter_block(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> Request:
        """Begin `Reduce_scatter_block`."""
        return self._later(self._reduce_scatter(sendbuf, recvbuf, None, op))


def _in_place(given: Any) -> bool:
    """Whether the other buffer of the call takes the place of this one."""
    return given is None or given is IN_PLACE


def _exactly(name: str, array: Array, size: int) -> Array:
    """The first `size` elements of a buffer.

    Raises
    ------
    ValueError
        The buffer has fewer elements.
    """
    if array.size < size:
        raise ValueError(f"{name} has {array.size} elements, but {size} are needed")
    return array[:size]


def _put(came: Sequence[Array] | None, places: Sequence[Array] | None) -> None:
    """Copy each received array to its destination."""
    if came is None or places is None:
        return
    for array, place in zip(came, places, strict=True):
        # The ranks' arguments are checked on arrival, because each rank knows only its own.
        if array.size > place.size or array.dtype != place.dtype:
            raise ValueError(
                f"{array.size} elements of {array.dtype} arrived for a buffer of {place.size} of "
                f"{place.dtype}"
            )
        place[: array.size] = array
