"""torch's process group over a group of our ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from perseid.comm import Communicator
from perseid.comm.objects import Blob
from perseid.comm.ops import Array, Op
from perseid.comm.shared_world import SharedGroup
from perseid.compat.torch import tensors as convert
from perseid.compat.torch.torch_work import CallWork, MessageWork, room
from perseid.errors import BadInputError

Tensor = Any
Call = Callable[[Communicator], None]
Lists = Sequence[Sequence[Tensor]]


_ProcessGroup: Any = dist.ProcessGroup
"""Its annotations have several forms of each call; torch uses the one with options."""


class ProcessGroupPerseid(_ProcessGroup):  # type: ignore[misc]
    """What ``torch.distributed`` calls.

    Parameters
    ----------
    group
        The ranks.
    leave
        Called when the group is destroyed.
    """

    def __init__(self, group: SharedGroup, leave: Callable[[], None]) -> None:
        super().__init__(group.rank, group.size)
        self._group, self._leave = group, leave
        self._name = self._desc = ""

    # --- what it is --------------------------------------------------------------------------

    def getBackendName(self) -> str:
        """The name that it is registered under."""
        return "perseid"

    def getRank(self) -> int:
        """The number of this process in the group."""
        return self._group.rank

    def getSize(self) -> int:
        """How many ranks the group has."""
        return self._group.size

    rank, size = getRank, getSize

    def getGroupName(self) -> str:
        """The name that torch gave it."""
        return self._name

    def setGroupName(self, name: str) -> None:
        """Torch names it."""
        self._name = name

    _set_group_name = setGroupName

    @property
    def group_name(self) -> str:
        """The name that torch gave it."""
        return self._name

    def getGroupDesc(self) -> str:
        """What torch calls it for people."""
        return self._desc

    def setGroupDesc(self, desc: str) -> None:
        """Torch describes it."""
        self._desc = desc

    _set_group_desc = setGroupDesc

    @property
    def group_desc(self) -> str:
        """What torch calls it for people."""
        return self._desc

    @property
    def _device_types(self) -> list[Any]:
        return [torch.device("cpu")]

    def shutdown(self) -> None:
        """Leave; ``destroy_process_group`` calls it."""
        self._leave()

    def abort(self) -> None:
        """Leave without waiting for anybody."""
        self._group.world.close(InterruptedError("its process group was aborted"))

    # --- help --------------------------------------------------------------------------------

    def _begin(self, options: Any, filled: Sequence[Tensor], call: Call) -> CallWork:
        """Make a call: at once if torch waits for it anyway, else in the group's thread."""
        at_once = options is not None and not getattr(options, "asyncOp", True)

        def quiet(comm: Communicator) -> None:
            with np.errstate(all="ignore"):  # torch says nothing of overflows either
                call(comm)

        job = self._group.now(quiet) if at_once else self._group.start(quiet)
        return CallWork(job, filled)

    def _reduced(self, tensors: Sequence[Tensor], op: Any) -> Call:
        """The reduction of tensors, each in place."""
        convert.check(tensors)
        ours, mean = convert.reduction(op, tensors)
        size = self._group.size

        def call(comm: Communicator) -> None:
            for tensor in tensors:
                array = convert.numbers(tensor)
                comm.Allreduce(array, array, ours)
                if mean:
                    convert.divide(array, size)
                if not convert.shares_numbers(tensor):
                    convert.put_numbers(array, tensor)

        return call

    # --- collectives -------------------------------------------------------------------------

    def broadcast(self, tensors: Sequence[Tensor], opts: Any = None) -> CallWork:
        """The root's tensors on every rank."""
        convert.check(tensors)
        root = 0 if opts is None else opts.rootRank
        mine = self._group.rank == root

        def call(comm: Communicator) -> None:
            for tensor in tensors:
                if mine:
                    comm.Bcast(convert.given(tensor), root)
                else:
                    convert.filled(tensor, lambda array: comm.Bcast(array, root))

        return self._begin(opts, tensors, call)

    def allreduce(self, tensors: Sequence[Tensor], opts: Any = None) -> CallWork:
        """All ranks' tensors as one, in place."""
        op = dist.ReduceOp.SUM if opts is None else opts.reduceOp
        return self._begin(opts, tensors, self._reduced(tensors, op))

    def allreduce_coalesced(self, tensors: Sequence[Tensor], opts: Any = None) -> CallWork:
        """`allreduce` of several tensors in as few messages as they have types."""
        convert.check(tensors)
        op = dist.ReduceOp.SUM if opts is None else opts.reduceOp
        kinds = {tensor.dtype for tensor in tensors}

        def call(comm: Communicator) -> None:
            for dtype in sorted(kinds, key=str):
                alike = [tensor for tensor in tensors if tensor.dtype == dtype]
                joined = torch.cat([tensor.detach().reshape(-1) for tensor in alike])
                self._reduced([joined], op)(comm)
                at = 0
                for tensor in alike:
                    part = joined[at : at + tensor.numel()]
                    tensor.detach().copy_(part.view(tensor.shape))
                    at += tensor.numel()

        return self._begin(opts, tensors, call)

    def reduce(self, tensors: Sequence[Tensor], opts: Any) -> CallWork:
        """All ranks' tensors as one, in place on the root."""
        convert.check(tensors)
        ours, mean = convert.reduction(opts.reduceOp, tensors)
        root, size = opts.rootRank, self._group.size

        def call(comm: Communicator) -> None:
            for tensor in tensors:
                array = convert.numbers(tensor)
                into = array if comm.rank == root else None
                comm.Reduce(array, into, ours, root)
                if into is not None:
                    if mean:
                        convert.divide(into, size)
                    if not convert.shares_numbers(tensor):
                        convert.put_numbers(into, tensor)

        return self._begin(opts, tensors, call)

    def allgather(self, outputs: Lists, inputs: Sequence[Tensor], opts: Any = None) -> CallWork:
        """Every rank's tensor in a list on every rank."""
        for output in outputs:
            convert.check(output)
        convert.check(inputs)

        def call(comm: Communicator) -> None:
            for output, tensor in zip(outputs, inputs, strict=True):
                counts = [one.numel() for one in output]
                into = np.empty(sum(counts), convert.given(tensor).dtype)
                comm.Allgather(convert.given(tensor), into, counts)
                convert.spread(into, output)

        return self._begin(opts, [one for output in outputs for one in output], call)

    def all_gather_single(self, output: Tensor, tensor: Tensor, opts: Any = None) -> CallWork:
        """Every rank's tensor one behind the other in one tensor."""
        return self.all_gather_single_coalesced([output], [tensor], opts)

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> CallWork:
        """The same of several tensors."""
        convert.check([*outputs, *inputs])

        def call(comm: Communicator) -> None:
            for output, tensor in zip(outputs, inputs, strict=True):
                mine = convert.given(tensor)
                if np.may_share_memory(mine, convert.given(output)):
                    mine = mine.copy()
                convert.filled(output, _gathering(comm, mine))

        return self._begin(opts, outputs, call)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def allgather_coalesced(
        self, outputs: Lists, inputs: Sequence[Tensor], opts: Any = None
    ) -> CallWork:
        """Every rank's list of tensors in a list on every rank."""
        transposed = [[output[i] for output in outputs] for i in range(len(inputs))]
        return self.allgather(transposed, inputs, opts)

    def reduce_scatter(self, outputs: Sequence[Tensor], inputs: Lists, opts: Any) -> CallWork:
        """Of every rank's list the i-th tensors as one on rank i."""
        convert.check(outputs)
        for one in inputs:
            convert.check(one)
        reduction = convert.reduction(opts.reduceOp, outputs)

        def call(comm: Communicator) -> None:
            for output, parts in zip(outputs, inputs, strict=True):
                array = np.concatenate([convert.numbers(part) for part in parts])
                _scatter_sum(comm, array, output, reduction, [part.numel() for part in parts])

        return self._begin(opts, outputs, call)

    def reduce_scatter_single(self, output: Tensor, tensor: Tensor, opts: Any) -> CallWork:
        """The reduction of all ranks' tensors, the i-th part of it on rank i."""
        return self.reduce_scatter_single_coalesced([output], [tensor], opts)

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any
    ) -> CallWork:
        """The same of several tensors."""
        convert.check([*outputs, *inputs])
        reduction = convert.reduction(opts.reduceOp, outputs)

        def call(comm: Communicator) -> None:
            for output, tensor in zip(outputs, inputs, strict=True):
                counts = [output.numel()] * comm.size
                _scatter_sum(comm, convert.numbers(tensor), output, reduction, counts)

        return self._begin(opts, outputs, call)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def alltoall(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> CallWork:
        """The i-th tensor to rank i, and what each rank had for this one."""
        convert.check([*outputs, *inputs])
        counts, places = ([one.numel() for one in tensors] for tensors in (inputs, outputs))

        def call(comm: Communicator) -> None:
            mine = np.concatenate([convert.given(tensor) for tensor in inputs])
            into = np.empty(sum(places), mine.dtype)
            comm.Alltoall(mine, into, counts, places)
            convert.spread(into, outputs)

        return self._begin(opts, outputs, call)

    def all_to_all_single(
        self,
        output: Tensor,
        tensor: Tensor,
        output_splits: Sequence[int],
        input_splits: Sequence[int],
        opts: Any = None,
    ) -> CallWork:
        """The i-th part of each rank's tensor to rank i, cut along its first dimension."""
        convert.check([output, tensor])
        size = self._group.size
        counts, places = (
            convert.counts(tensor, input_splits, size),
            convert.counts(output, output_splits, size),
        )

        def call(comm: Communicator) -> None:
            mine = convert.given(tensor)
            convert.filled(output, lambda into: comm.Alltoall(mine, into, counts, places))

        return self._begin(opts, [output], call)

    alltoall_base = all_to_all_single

    def gather(self, outputs: Lists, inputs: Sequence[Tensor], opts: Any) -> CallWork:
        """Every rank's tensor in a list on the root."""
        convert.check(inputs)
        root = opts.rootRank

        def call(comm: Communicator) -> None:
            mine = convert.given(inputs[0])
            into = np.empty(mine.size * comm.size, mine.dtype) if comm.rank == root else None
            comm.Gather(mine, into, root)
            if into is not None:
                convert.spread(into, outputs[0])

        return self._begin(opts, outputs[0] if outputs else [], call)

    def scatter(self, outputs: Sequence[Tensor], inputs: Lists, opts: Any) -> CallWork:
        """One of the root's tensors for each rank."""
        convert.check(outputs)
        root = opts.rootRank

        def call(comm: Communicator) -> None:
            array = None
            if comm.rank == root:
                array = np.concatenate([convert.given(one) for one in inputs[0]])
            convert.filled(outputs[0], lambda into: comm.Scatter(array, into, root))

        return self._begin(opts, outputs, call)

    def barrier(self, opts: Any = None) -> CallWork:
        """Return when every rank has come."""
        return self._begin(opts, [], lambda comm: comm.barrier())

    # --- messages ----------------------------------------------------------------------------

    def send(self, tensors: Sequence[Tensor], rank: int, tag: int = 0) -> MessageWork:
        """Begin to send a tensor."""
        tensor = _only(tensors)
        tensor = tensor if convert.in_place(tensor) else convert.copied(tensor)
        data = room(tensor)
        sent = self._group.start_send(Blob(0, [data], len(data)), rank, tag)
        return MessageWork(self._group, sent, tensor)

    def recv(self, tensors: Sequence[Tensor], rank: int, tag: int = 0) -> MessageWork:
        """Begin to receive a tensor."""
        return self._receive(_only(tensors), rank, tag)

    def recv_anysource(self, tensors: Sequence[Tensor], tag: int = 0) -> MessageWork:
        """Begin to receive a tensor from whichever rank sends one."""
        return self._receive(_only(tensors), None, tag)

    def _receive(self, tensor: Tensor, rank: int | None, tag: int) -> MessageWork:
        into = room(tensor) if convert.in_place(tensor) else None
        return MessageWork(self._group, self._group.post(rank, tag, into), tensor)


def _only(tensors: Sequence[Tensor]) -> Tensor:
    convert.check(tensors)
    if len(tensors) != 1:
        raise BadInputError(f"A message is one tensor, not {len(tensors)}.")
    return tensors[0]


def _gathering(comm: Communicator, mine: Array) -> Callable[[Array], None]:
    return lambda into: comm.Allgather(mine, into)


def _scatter_sum(
    comm: Communicator, array: Array, output: Tensor, reduction: tuple[Op, bool], counts: list[int]
) -> None:
    """The reduction of all ranks' arrays, this rank's part of it into a tensor."""
    op, mean = reduction
    shared = convert.shares_numbers(output)
    into = convert.numbers(output) if shared else np.empty(output.numel(), array.dtype)
    comm.Reduce_scatter(array, into, op, counts)
    if mean:
        convert.divide(into, comm.size)
    if not shared:
        convert.put_numbers(into, output)
