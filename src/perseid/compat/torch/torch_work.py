"""Work objects, with which torch waits for an operation, tests it, or chains another to it.

A failed operation raises wherever its result is requested. torch's own
``_create_work_from_future`` does not do that: its ``wait`` returns True.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from perseid.comm.background import Background
from perseid.comm.lane import ReceiveMessage, Send
from perseid.comm.shared_world import SharedGroup, payload
from perseid.compat.torch.tensors import bits, copied, in_place
from perseid.errors import BadInputError, RendezvousTimeoutError

Tensors = Sequence[Any]


_torch: Any = dist
_Work: Any = _torch._Work
"""Typed as Any, since torch's annotations do not match the methods that it calls."""


class CallWork(_Work):  # type: ignore[misc]
    """The work of a collective.

    Parameters
    ----------
    job
        The call that is under way.
    tensors
        The tensors that it fills.
    """

    def __init__(self, job: Background[None], tensors: Tensors) -> None:
        super().__init__()
        self._job, self._tensors = job, list(tensors)

    def is_completed(self) -> bool:
        """Whether the call has ended."""
        return self._job.done

    def is_success(self) -> bool:
        """Whether the call has ended without an error."""
        return self._job.done and self._job.error is None

    def exception(self) -> BaseException | None:
        """The error of the call; None if there is none."""
        return self._job.error

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Wait until the call is done; raises its error."""
        # A timeout of 0 is torch's default and means none.
        if not self._job.join(timeout.total_seconds() or None):
            seconds = timeout.total_seconds()
            raise RendezvousTimeoutError(f"A collective took longer than {seconds:g} s.")
        self._job.result()
        return True

    def synchronize(self) -> None:
        self.wait()

    def result(self) -> list[Any]:
        """Wait for the call and return its tensors."""
        self.wait()
        return self._tensors

    def get_future(self) -> Any:
        """A future of the tensors, which fails if the call fails."""
        begun: Any = torch.futures.Future()

        def outcome(_: Any) -> Any:
            self._job.result()
            return self._tensors

        # torch's C++ code takes an exception that is set on a future for a value; only one that a
        # callback raises is an error.
        found = begun.then(outcome)
        self._job.then(lambda: begun.set_result(None))
        return found


class MessageWork(_Work):  # type: ignore[misc]
    """The work of a message between two ranks.

    Parameters
    ----------
    group
        The group that the message belongs to.
    operation
        The send or receive that is under way.
    tensor
        The tensor that is sent or received into.
    """

    def __init__(self, group: SharedGroup, operation: Send | ReceiveMessage, tensor: Any) -> None:
        super().__init__()
        self._group, self._operation, self._tensor = group, operation, tensor
        self._taken = False

    def is_completed(self) -> bool:
        """Whether the message is done; advances it if not."""
        return self._group.test(self._operation)

    def is_success(self) -> bool:
        """Like `is_completed`, which raises the error of a failed message."""
        return self.is_completed()

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Wait until the message is done; raises its error."""
        self._group.wait(self._operation)
        self._take()
        return True

    def synchronize(self) -> None:
        self.wait()

    def result(self) -> list[Any]:
        """Wait for the message and return its tensor."""
        self.wait()
        return [self._tensor]

    def _source_rank(self) -> int:
        assert isinstance(self._operation, ReceiveMessage)
        return self._group.source_of(self._operation)

    source_rank = _source_rank

    def get_future(self) -> Any:
        """A future of the tensor, which is done when the message is done."""
        begun: Any = torch.futures.Future()

        def outcome(_: Any) -> Any:
            self.wait()
            return [self._tensor]

        found = begun.then(outcome)
        begun.set_result(None)
        return found

    def _take(self) -> None:
        """Copy a received message to its tensor."""
        if self._taken or not isinstance(self._operation, ReceiveMessage):
            return
        # Once only: torch may call wait, result and the future of one message.
        self._taken = True
        frame, tensor = self._operation.frame, self._tensor
        assert frame is not None
        size = tensor.numel() * tensor.element_size()
        # torch has no partial receives: another size means that the two ranks disagree.
        if len(frame.body) != size:
            raise BadInputError(
                f"A message of {len(frame.body)} bytes came from rank {self._source_rank()} for a "
                f"tensor of {size}."
            )
        if in_place(tensor):
            payload(frame, room(tensor))
        else:
            copy = copied(tensor)
            payload(frame, room(copy))
            tensor.detach().copy_(copy)


def room(tensor: Any) -> memoryview:
    """The memory of a tensor that is `in_place`."""
    array = bits(tensor)
    # A memoryview of an empty array cannot be cast.
    return array.view("u1").data if array.size else memoryview(bytearray())


def done(tensors: Tensors, call: Callable[[], None]) -> CallWork:
    """The work of a call that is made here and now."""
    # The same class as for calls in the background, so that torch sees no difference.
    job: Background[None] = Background(lambda _: call())
    job.run(None)  # type: ignore[arg-type]  # no communicator is needed
    job.end()
    return CallWork(job, tensors)
