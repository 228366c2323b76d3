"""The communicator's upper-case methods: they send and receive the memory of NumPy arrays.

Elements may be bool, integers, floats or complex numbers; an array that is received into must be
contiguous. Each method raises the errors that ``Communicator`` lists, and ``BadInputError`` for an
array that does not fit, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

import numpy as np

from perseid.comm import arguments, arrays
from perseid.comm.arguments import MAX_TAG, MIN_TAG
from perseid.comm.call_guard import guarded
from perseid.comm.channel import Channel, PendingReceive
from perseid.comm.collectives import (
    allgather,
    allreduce,
    alltoall,
    bcast,
    gather,
    reduce,
    reduce_scatter,
    scan,
    scatter,
)
from perseid.comm.frames import FrameKind
from perseid.comm.group import Group
from perseid.comm.ops import SUM, Array, Combine, Op, as_op
from perseid.comm.ports import ArrayPort, Port
from perseid.errors import BadInputError

AnyOp = Op | str | Combine


class ArrayCalls:
    """The array methods of a communicator; a base class of ``Communicator``."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._engine = group.engine
        self._progress = group.progress

    @property
    def group(self) -> Group:
        """Ranks and connections of the communicator, for libraries that build on it."""
        return self._group

    @property
    def rank(self) -> int:
        """This rank's number, from 0 to ``world_size - 1``."""
        return self._group.rank

    @property
    def world_size(self) -> int:
        """Number of ranks in the communicator; ``size`` is the same, as in mpi4py."""
        return self._group.size

    size = world_size

    # --- one to one --------------------------------------------------------------------------

    def Send(self, array: Array, dest: int, tag: int = 0) -> None:
        """Send an array's memory: ``comm.Send(np.ones(4), dest=1)``."""
        # The most frequent calls repeat the code of `guarded`: its wrapper costs 6 % of this one.
        engine = self._engine
        if engine.owner != get_ident() or engine.failure.error is not None:
            engine.enter()
        # Everything about the arguments is checked before the first byte is sent, so that a wrong
        # call leaves the communicator usable.
        data, code = arrays.payload(array)
        if type(tag) is not int or not MIN_TAG <= tag <= MAX_TAG:
            tag = arguments.tag("tag", tag)
        group = self._group
        known = type(dest) is int and 0 <= dest < group.size
        channel = (group.channels[dest] if known else None) or self._peer("dest", dest)
        try:
            signature = group.points.get(code) or group.point(code)
            self._progress.send(channel, signature, tag, data)
        except BaseException as error:
            engine.interruption, engine.owner = error, None
            engine.end_interrupted()
            raise

    def Recv(self, array: Array, source: int, tag: int = 0) -> None:
        """Receive into an array of the size and type that was sent:
        ``comm.Recv(np.empty(4), source=0)``."""
        engine = self._engine
        if engine.owner != get_ident() or engine.failure.error is not None:
            engine.enter()
        into, code = arrays.to_receive(array)
        if type(tag) is not int or not MIN_TAG <= tag <= MAX_TAG:
            tag = arguments.tag("tag", tag)
        group = self._group
        known = type(source) is int and 0 <= source < group.size
        channel = (group.channels[source] if known else None) or self._peer("source", source)
        try:
            signature = group.points.get(code) or group.point(code)
            self._progress.receive_into(channel, signature, tag, into)
        except BaseException as error:
            engine.interruption, engine.owner = error, None
            engine.end_interrupted()
            raise

    @guarded
    def Sendrecv(
        self,
        array: Array,
        dest: int,
        into: Array,
        source: int,
        sendtag: int = 0,
        recvtag: int = 0,
    ) -> None:
        """Send one array and receive another at the same time; both may be the same memory:
        ``comm.Sendrecv(np.ones(4), 1 - comm.rank, np.empty(4), 1 - comm.rank)``."""
        place, place_code = arrays.to_receive(into)
        data, code = arrays.to_send(arrays.without_overlap(array, into))
        sendtag, recvtag = arguments.tag("sendtag", sendtag), arguments.tag("recvtag", recvtag)
        dest, source = arguments.whole("dest", dest), arguments.whole("source", source)
        # A message to oneself needs no connection.
        if dest == source == self.rank:
            arrays.like(into, array)[...] = array
            return
        out, back = self._peer("dest", dest), self._peer("source", source)
        pending = PendingReceive(self._group.point(place_code), recvtag, place)
        signature, blob = self._group.point(code), arrays.blob(data)
        self._progress.exchange(out, signature, sendtag, blob, back, pending)

    # --- collectives -------------------------------------------------------------------------

    @guarded
    def Bcast(self, array: Array, root: int = 0) -> None:
        """Copy the root's array into that of every rank: ``comm.Bcast(np.ones(4), root=0)``."""
        root = self._root(root)
        send = self._group.rank == root
        data, code = arrays.to_send(array) if send else arrays.to_receive(array)
        call = self._group.call(FrameKind.BCAST, root, 0, code, array.size)
        bcast.into(call, data, root)

    @guarded
    def Gather(
        self,
        array: Array,
        into: Array | None = None,
        root: int = 0,
        counts: Sequence[int] | None = None,
    ) -> None:
        """Join the arrays of all ranks, in rank order, in ``into`` on the root:
        ``comm.Gather(np.ones(4), np.empty(4 * comm.size), root=0)``.

        Parameters
        ----------
        counts
            Number of elements that each rank sends. Needed only if the numbers differ, and then on
            all ranks.
        """
        root = self._root(root)
        data, code = arrays.to_send(arrays.without_overlap(array, into))
        counts = self._counts(counts, array)
        parts = None
        if self.rank == root:
            parts = arrays.places(into, array.dtype, counts or [array.size] * self.world_size)
        # The signature carries the number of elements, which all ranks compare. If the parts differ
        # in size, each rank's number is its own, so 0 is sent instead.
        count = 0 if counts else array.size
        call = self._group.call(FrameKind.GATHER, root, 0, code, count)
        # Small parts travel up a tree in bundles; large ones, or parts of different sizes,
        # directly.
        if counts or len(data) >= gather.LARGE_BYTES:
            gather.straight(call, data, parts, root)
            return
        blobs = gather.blobs(call, arrays.blob(data), root)
        if parts is not None and blobs is not None:
            for part, blob in zip(parts, blobs, strict=True):
                part[:] = blob.pieces[0]

    @guarded
    def Scatter(
        self,
        array: Array | None,
        into: Array,
        root: int = 0,
        counts: Sequence[int] | None = None,
    ) -> None:
        """Give each rank its part of the root's array, in ``into``; ``counts`` as in ``Gather``:
        ``comm.Scatter(np.ones(4 * comm.size), np.empty(4))``."""
        root = self._root(root)
        place, code = arrays.to_receive(into)
        counts = self._counts(counts, into)
        parts = None
        if self.rank == root:
            parts = arrays.parts(
                arrays.without_overlap(array, into),
                into.dtype,
                counts or [into.size] * self.world_size,
            )
        call = self._group.call(FrameKind.SCATTER, root, 0, code, 0 if counts else into.size)
        if counts or len(place) >= gather.LARGE_BYTES:
            scatter.straight(call, parts, place, root)
            return
        blobs = None if parts is None else [arrays.blob(part) for part in parts]
        place[:] = scatter.blobs(call, blobs, root).pieces[0]

    @guarded
    def Allgather(self, array: Array, into: Array, counts: Sequence[int] | None = None) -> None:
        """Join the arrays of all ranks, in rank order, in ``into`` on every rank:
        ``comm.Allgather(np.ones(4), np.empty(4 * comm.size))``."""
        data, code = arrays.to_send(arrays.without_overlap(array, into))
        counts = self._counts(counts, array)
        parts = arrays.places(into, array.dtype, counts or [array.size] * self.world_size)
        call = self._group.call(FrameKind.ALLGATHER, -1, 0, code, 0 if counts else array.size)
        if counts or len(data) >= allgather.LARGE_BYTES:
            parts[call.rank][:] = data
            allgather.ring(call, parts)
            return
        if call.size <= allgather.STRAIGHT_RANKS:
            allgather.straight(call, data, parts)
            return
        for part, blob in zip(parts, allgather.blobs(call, arrays.blob(data)), strict=True):
            part[:] = blob.pieces[0]

    @guarded
    def Reduce(
        self, array: Array, into: Array | None = None, op: AnyOp = SUM, root: int = 0
    ) -> None:
        """Combine the arrays of all ranks element by element, in ``into`` on the root:
        ``comm.Reduce(np.ones(4), np.empty(4), root=0)``."""
        root = self._root(root)
        op, code = arrays.reducible(as_op(op), array)
        if self.rank == root:
            into = arrays.like(into, array)
        call = self._group.call(FrameKind.REDUCE, root, op.code, code, array.size)
        mine = op.operand(np.ascontiguousarray(array))
        # Ranks other than the root reduce in memory of their own: their ``into`` must not change.
        place = np.empty_like(mine) if into is None or self.rank != root else into
        algorithm = reduce.tree if op.tree else reduce.strict
        result = algorithm(ArrayPort(call, op, place), mine, root)
        if result is not None and result is not place:
            place[...] = result

    def Allreduce(self, array: Array, into: Array, op: AnyOp = SUM) -> None:
        """Combine the arrays of all ranks element by element, in ``into`` on every rank:
        ``comm.Allreduce(np.ones(4), np.empty(4))``.

        ``into`` may be ``array`` itself.
        """
        engine = self._engine
        if engine.owner != get_ident() or engine.failure.error is not None:
            engine.enter()
        op = op if type(op) is Op else as_op(op)
        code = arrays.matching(op, array, into)
        # Without a call for all operations but the two logical ones.
        mine = op.operand(array) if op.logical else array
        try:
            call = self._group.call(FrameKind.ALLREDUCE, -1, op.code, code, array.size)
            ufunc = op.ufunc if op.tree else None
            # Three algorithms: a large array is divided among the ranks; ranks that share cores
            # exchange as few messages as possible; all others take the fewest rounds.
            large = array.nbytes >= allreduce.LARGE_BYTES
            if large and ufunc is not None and allreduce.divided(array.nbytes, call.size):
                allreduce.large(call, op, mine, into)
            elif ufunc is not None and engine.oversubscribed:
                allreduce.in_place(call, ufunc, mine, into)
            else:
                result = self._small(op)(ArrayPort(call, op, into), np.ascontiguousarray(mine))
                if result is not into:
                    into[...] = result
        except BaseException as error:
            engine.interruption, engine.owner = error, None
            engine.end_interrupted()
            raise

    @guarded
    def Reduce_scatter(
        self, array: Array, into: Array, op: AnyOp = SUM, counts: Sequence[int] | None = None
    ) -> None:
        """Combine the arrays of all ranks element by element; each rank gets its part in ``into``:
        ``comm.Reduce_scatter(np.ones(4 * comm.size), np.empty(4))``."""
        op, code = arrays.reducible(as_op(op), array)
        arrays.to_receive(into)
        counts = self._counts(counts, into) or [into.size] * self.world_size
        cut = arrays.pieces(op.operand(array), into.dtype, counts)
        call = self._group.call(FrameKind.REDUCE_SCATTER, -1, op.code, code, array.size)
        reduce_scatter.into(call, cut, into.reshape(-1), op)

    @guarded
    def Alltoall(
        self,
        array: Array,
        into: Array,
        counts: Sequence[int] | None = None,
        into_counts: Sequence[int] | None = None,
    ) -> None:
        """Send the i-th part of each rank's array to rank i, which joins them in rank order:
        ``comm.Alltoall(np.ones(4 * comm.size), np.empty(4 * comm.size))``.

        Parameters
        ----------
        counts, into_counts
            Number of elements sent to, and received from, each rank. Needed only if the parts
            differ in size; then both are given on all ranks.
        """
        size = self.world_size
        code = arrays.to_send(array)[1]
        arrays.to_receive(into)
        array = arrays.without_overlap(array, into)
        equal = counts is None and into_counts is None
        if equal and (array.size % size or into.size != array.size):
            raise BadInputError(
                f"Alltoall of {array.size} into {into.size} elements among {size} ranks: both "
                "must be the same multiple of the number of ranks"
            )
        counts = self._whole_counts("counts", counts) or [array.size // size] * size
        into_counts = self._whole_counts("into_counts", into_counts) or [into.size // size] * size
        if counts[self.rank] != into_counts[self.rank]:
            raise BadInputError(
                f"a rank gives itself {counts[self.rank]} elements and takes "
                f"{into_counts[self.rank]} of them: the sizes of the parts must agree on all ranks"
            )
        parts = arrays.parts(np.ascontiguousarray(array), array.dtype, counts)
        places = arrays.parts(into, array.dtype, into_counts)
        call = self._group.call(FrameKind.ALLTOALL, -1, 0, code, array.size if equal else 0)
        alltoall.into(call, parts, places)

    @guarded
    def Scan(self, array: Array, into: Array, op: AnyOp = SUM) -> None:
        """Combine the arrays of ranks 0 to this one: ``comm.Scan(np.ones(4), np.empty(4))``."""
        into[...] = self._scan(FrameKind.SCAN, array, into, op)[0]

    @guarded
    def Exscan(self, array: Array, into: Array, op: AnyOp = SUM) -> None:
        """Combine the arrays of all lower ranks; on rank 0 ``into`` stays unchanged:
        ``comm.Exscan(np.ones(4), np.empty(4))``."""
        before = self._scan(FrameKind.EXSCAN, array, into, op)[1]
        if before is not None:
            into[...] = before

    def _scan(
        self, kind: FrameKind, array: Array, into: Array, op: AnyOp
    ) -> tuple[Array, Array | None]:
        op, code = arrays.reducible(as_op(op), array)
        arrays.like(into, array)
        mine = op.operand(np.ascontiguousarray(array))
        port = ArrayPort(self._group.call(kind, -1, op.code, code, array.size), op, mine)
        return (scan.doubling if op.tree else scan.chain)(port, mine)

    # --- helpers -----------------------------------------------------------------------------

    def _small(self, op: Op) -> Callable[[Port[Any], Any], Any]:
        """The algorithm for an allreduce of small values."""
        if not op.tree:
            return allreduce.strict
        return allreduce.tree if self._group.engine.oversubscribed else allreduce.doubling

    def _counts(self, counts: Sequence[int] | None, mine: Array) -> list[int] | None:
        """The checked number of elements of each rank; None if all ranks have the same number."""
        whole = self._whole_counts("counts", counts)
        if whole is not None and whole[self.rank] != mine.size:
            raise BadInputError(
                f"counts={whole} must give the elements of each of {self.world_size} ranks, and "
                f"rank {self.rank} has {mine.size}"
            )
        return whole

    def _whole_counts(self, name: str, counts: Sequence[int] | None) -> list[int] | None:
        """One number of elements for each rank, from 0; None if no numbers were given."""
        if counts is None:
            return None
        whole = [arguments.whole(name, count) for count in arguments.items(name, counts)]
        if len(whole) != self.world_size or min(whole) < 0:
            raise BadInputError(
                f"{name}={whole} must give the elements of each of {self.world_size} ranks"
            )
        return whole

    def _root(self, root: int) -> int:
        """The root as a whole number, after checking that it is a rank of the group."""
        if type(root) is not int:
            root = arguments.whole("root", root)
        if not 0 <= root < self._group.size:
            raise BadInputError(f"root {root} is not in a communicator of {self._group.size} ranks")
        return root

    def _peer(self, name: str, rank: int) -> Channel:
        """The channel to the rank that an argument names; the call counts as begun from here on."""
        group = self._group
        if type(rank) is not int:
            rank = arguments.whole(name, rank)
        found = group.channels[rank] if 0 <= rank < group.size else None
        channel = found or group.connect_one(rank)
        # An exception from here on may lose bytes of a message: `guarded` compares this number.
        self._engine.begun += 1
        return channel
