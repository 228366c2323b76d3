"""torch's process group, implemented with a group of our ranks."""

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
"""Typed as Any: torch's annotations have several forms of each call, and it uses the one with
options."""


class ProcessGroupPerseid(_ProcessGroup):  # type: ignore[misc]
    """The process group whose methods ``torch.distributed`` calls.

    Parameters
    ----------
    group
        The ranks of the group.
    leave
        Called when the group is destroyed.
    """

    def __init__(self, group: SharedGroup, leave: Callable[[], None]) -> None:
        super().__init__(group.rank, group.size)
        self._group, self._leave = group, leave
        self._name = self._desc = ""

    # --- Properties --------------------------------------------------------------------------

    def getBackendName(self) -> str:
        """The name under which the backend is registered."""
        return "perseid"

    def getRank(self) -> int:
        """Rank of this process in the group."""
        return self._group.rank

    def getSize(self) -> int:
        """Number of ranks in the group."""
        return self._group.size

    rank, size = getRank, getSize

    def getGroupName(self) -> str:
        """The name that torch gave the group."""
        return self._name

    def setGroupName(self, name: str) -> None:
        """Set the name of the group; torch calls this."""
        self._name = name

    _set_group_name = setGroupName

    @property
    def group_name(self) -> str:
        """The name that torch gave the group."""
        return self._name

    def getGroupDesc(self) -> str:
        """The description that torch gave the group."""
        return self._desc

    def setGroupDesc(self, desc: str) -> None:
        """Set the description of the group; torch calls this."""
        self._desc = desc

    _set_group_desc = setGroupDesc

    @property
    def group_desc(self) -> str:
        """The description that torch gave the group."""
        return self._desc

    @property
    def _device_types(self) -> list[Any]:
        return [torch.device("cpu")]

    def shutdown(self) -> None:
        """Leave the group; ``destroy_process_group`` calls this."""
        self._leave()

    def abort(self) -> None:
        """Leave without waiting for other ranks."""
        self._group.world.close(InterruptedError("its process group was aborted"))

    # --- Helpers -----------------------------------------------------------------------------

    def _begin(self, options: Any, filled: Sequence[Tensor], call: Call) -> CallWork:
        """Make a call: here if torch waits for it anyway, otherwise in the group's thread."""
        # No thread is needed if the caller waits anyway.
        at_once = options is not None and not getattr(options, "asyncOp", True)
        job = self._group.now(call) if at_once else self._group.start(call)
        return CallWork(job, filled)

    def _reduced(self, tensors: Sequence[Tensor], op: Any) -> Call:
        """The call that reduces each of the tensors in place."""
        convert.check(tensors)
        ours, mean = convert.reduction(op, tensors)
        size = self._group.size

        @convert.quiet
        def call(comm: Communicator) -> None:
            for tensor in tensors:
                array = convert.numbers(tensor)
                comm.Allreduce(array, array, ours)
                if mean:
                    convert.divide(array, size)
                if not convert.shares_numbers(tensor):
                    convert.put_numbers(array, tensor)

        return call

    # --- Collectives -------------------------------------------------------------------------

    def broadcast(self, tensors: Sequence[Tensor], opts: Any = None) -> CallWork:
        """Copy the root's tensors to every rank."""
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
        """Reduce the tensors of all ranks, in place on every rank."""
        op = dist.ReduceOp.SUM if opts is None else opts.reduceOp
        return self._begin(opts, tensors, self._reduced(tensors, op))

    def allreduce_coalesced(self, tensors: Sequence[Tensor], opts: Any = None) -> CallWork:
        """Like `allreduce` for several tensors, with one reduction per type."""
        convert.check(tensors)
        op = dist.ReduceOp.SUM if opts is None else opts.reduceOp
        kinds = {tensor.dtype for tensor in tensors}

        def call(comm: Communicator) -> None:
            # In the same order on all ranks; dtypes themselves cannot be compared.
            for dtype in sorted(kinds, key=str):
                alike = [tensor for tensor in tensors if tensor.dtype == dtype]
                # One message instead of many: small messages cost mostly latency.
                joined = torch.cat([tensor.detach().reshape(-1) for tensor in alike])
                self._reduced([joined], op)(comm)
                at = 0
                for tensor in alike:
                    part = joined[at : at + tensor.numel()]
                    tensor.detach().copy_(part.view(tensor.shape))
                    at += tensor.numel()

        return self._begin(opts, tensors, call)

    def reduce(self, tensors: Sequence[Tensor], opts: Any) -> CallWork:
        """Reduce the tensors of all ranks, in place on the root."""
        convert.check(tensors)
        ours, mean = convert.reduction(opts.reduceOp, tensors)
        root, size = opts.rootRank, self._group.size

        @convert.quiet
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
        """Collect the tensors of all ranks in a list on every rank."""
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
        """Concatenate the tensors of all ranks in one tensor on every rank."""
        return self.all_gather_single_coalesced([output], [tensor], opts)

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> CallWork:
        """The same for several tensors."""
        convert.check([*outputs, *inputs])

        def call(comm: Communicator) -> None:
            for output, tensor in zip(outputs, inputs, strict=True):
                mine = convert.given(tensor)
                # torch allows the input to be a part of the output.
                if np.may_share_memory(mine, convert.given(output)):
                    mine = mine.copy()
                convert.filled(output, _gathering(comm, mine))

        return self._begin(opts, outputs, call)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def allgather_coalesced(
        self, outputs: Lists, inputs: Sequence[Tensor], opts: Any = None
    ) -> CallWork:
        """Collect the lists of tensors of all ranks in a list on every rank."""
        # torch's two calls nest their lists the other way round.
        transposed = [[output[i] for output in outputs] for i in range(len(inputs))]
        return self.allgather(transposed, inputs, opts)

    def reduce_scatter(self, outputs: Sequence[Tensor], inputs: Lists, opts: Any) -> CallWork:
        """Reduce the i-th tensors of all ranks' lists to rank i."""
        convert.check(outputs)
        for one in inputs:
            convert.check(one)
        reduction = convert.reduction(opts.reduceOp, outputs)

        @convert.quiet
        def call(comm: Communicator) -> None:
            for output, parts in zip(outputs, inputs, strict=True):
                # Our reduce-scatter takes one array with the parts of all ranks.
                array = np.concatenate([convert.numbers(part) for part in parts])
                _scatter_sum(comm, array, output, reduction, [part.numel() for part in parts])

        return self._begin(opts, outputs, call)

    def reduce_scatter_single(self, output: Tensor, tensor: Tensor, opts: Any) -> CallWork:
        """Reduce the tensors of all ranks, and leave the i-th part on rank i."""
        return self.reduce_scatter_single_coalesced([output], [tensor], opts)

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any
    ) -> CallWork:
        """The same for several tensors."""
        convert.check([*outputs, *inputs])
        reduction = convert.reduction(opts.reduceOp, outputs)

        @convert.quiet
        def call(comm: Communicator) -> None:
            for output, tensor in zip(outputs, inputs, strict=True):
                counts = [output.numel()] * comm.size
                _scatter_sum(comm, convert.numbers(tensor), output, reduction, counts)

        return self._begin(opts, outputs, call)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def alltoall(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> CallWork:
        """Send the i-th tensor to rank i, and receive one tensor from each rank."""
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
        """Send the i-th part of each rank's tensor, split along its first dimension, to rank i."""
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
        """Collect the tensors of all ranks in a list on the root."""
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
        """Send each rank one of the root's tensors."""
        convert.check(outputs)
        root = opts.rootRank

        def call(comm: Communicator) -> None:
            array = None
            if comm.rank == root:
                array = np.concatenate([convert.given(one) for one in inputs[0]])
            convert.filled(outputs[0], lambda into: comm.Scatter(array, into, root))

        return self._begin(opts, outputs, call)

    def barrier(self, opts: Any = None) -> CallWork:
        """Begin a barrier, which is done when every rank has called this."""
        return self._begin(opts, [], lambda comm: comm.barrier())

    # --- Messages ----------------------------------------------------------------------------

    def send(self, tensors: Sequence[Tensor], rank: int, tag: int = 0) -> MessageWork:
        """Begin to send a tensor."""
        tensor = _only(tensors)
        # The memory is sent as it is, so a strided tensor is copied first.
        tensor = tensor if convert.in_place(tensor) else convert.copied(tensor)
        data = room(tensor)
        sent = self._group.start_send(Blob(0, [data], len(data)), rank, tag)
        return MessageWork(self._group, sent, tensor)

    def recv(self, tensors: Sequence[Tensor], rank: int, tag: int = 0) -> MessageWork:
        """Begin to receive a tensor."""
        return self._receive(_only(tensors), rank, tag)

    def recv_anysource(self, tensors: Sequence[Tensor], tag: int = 0) -> MessageWork:
        """Begin to receive a tensor from any rank."""
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
    """Reduce the arrays of all ranks, and write this rank's part to a tensor."""
    op, mean = reduction
    shared = convert.shares_numbers(output)
    into = convert.numbers(output) if shared else np.empty(output.numel(), array.dtype)
    comm.Reduce_scatter(array, into, op, counts)
    if mean:
        convert.divide(into, comm.size)
    if not shared:
        convert.put_numbers(into, output)
