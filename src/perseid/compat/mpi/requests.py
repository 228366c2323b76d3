"""Requests: wait for or test one or more operations that are under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from perseid.comm.helper_thread import Operation
from perseid.comm.shared_world import SharedGroup
from perseid.compat.mpi.constants import UNDEFINED
from perseid.compat.mpi.exceptions import failure
from perseid.compat.mpi.message_status import Status


class Request:
    """An operation that was begun, like ``mpi4py.MPI.Request``.

    Parameters
    ----------
    request
        Request whose operation is shared; None for ``REQUEST_NULL``.
    """

    def __init__(self, request: Request | None = None) -> None:
        self._handle: _Handle = _Handle() if request is None else request._handle

    @classmethod
    def begun(
        cls,
        group: SharedGroup | None,
        operation: Operation | None,
        finish: Callable[[Status], Any] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Request:
        """Create the request of an operation that is under way.

        Parameters
        ----------
        group
            The group whose thread advances the operation; None if nothing is left to do.
        operation
            The operation to wait for; None if it is already done.
        finish
            Called once it is done; fills the status and returns the received object.
        cancel
            Cancels the operation, if that is still possible; returns whether it was.
        """
        # Not the constructor, whose one argument programs know from mpi4py.
        made = cls()
        made._handle = _Handle(True, group, operation, finish, cancel)
        return made

    def __bool__(self) -> bool:
        return self._handle.active

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Request):
            return False
        # All completed requests equal REQUEST_NULL.
        return self._handle is other._handle or not (self or other)

    def __hash__(self) -> int:
        return id(self._handle)

    # --- One request -------------------------------------------------------------------------

    def wait(self, status: Status | None = None) -> Any:
        """Wait until the operation is done; return the received object, if any."""
        return self._handle.wait(status)

    def Wait(self, status: Status | None = None) -> bool:
        """Wait until the operation is done."""
        self._handle.wait(status)
        return True

    def test(self, status: Status | None = None) -> tuple[bool, Any]:
        """Whether the operation is done, and the received object, if any."""
        if not self._handle.test():
            return False, None
        return True, self._handle.wait(status)

    def Test(self, status: Status | None = None) -> bool:
        """Whether the operation is done."""
        return self.test(status)[0]

    def Get_status(self, status: Status | None = None) -> bool:
        """Whether the operation is done; unlike `Test`, this keeps the request active."""
        return self._handle.test(status)

    get_status = Get_status

    def Cancel(self) -> None:
        """Cancel a receive if no message has arrived for it yet."""
        if not self:
            raise failure("ERR_REQUEST", "MPI.REQUEST_NULL cannot be canceled.")
        self._handle.cancel()

    cancel = Cancel

    def Free(self) -> None:
        """Release the request; its operation goes on."""
        self._handle.active = False

    # --- Several requests --------------------------------------------------------------------

    @classmethod
    def waitall(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> list[Any]:
        """Wait until all are done; return the received objects, with None for other requests."""
        found = [Status() for _ in requests]
        values = [request._handle.wait(one) for request, one in zip(requests, found, strict=True)]
        _tell(statuses, found)
        return values

    @classmethod
    def Waitall(cls, requests: Sequence[Request], statuses: list[Status] | None = None) -> bool:
        """Wait until all requests are done."""
        cls.waitall(requests, statuses)
        return True

    @classmethod
    def testall(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[bool, list[Any] | None]:
        """Whether all are done, and the received objects if they are."""
        if not all(request._handle.test() for request in requests):
            return False, None
        return True, cls.waitall(requests, statuses)

    @classmethod
    def Testall(cls, requests: Sequence[Request], statuses: list[Status] | None = None) -> bool:
        """Whether all requests are done."""
        return cls.testall(requests, statuses)[0]

    @classmethod
    def waitany(cls, requests: Sequence[Request], status: Status | None = None) -> tuple[int, Any]:
        """Wait until one is done; return its index (``UNDEFINED`` if none is active) and object."""
        index = _first_done(requests, wait=True)
        if index is None:
            _none(status)
            return UNDEFINED, None
        return index, requests[index]._handle.wait(status)

    @classmethod
    def Waitany(cls, requests: Sequence[Request], status: Status | None = None) -> int:
        """Wait until one is done; return its index."""
        return cls.waitany(requests, status)[0]

    @classmethod
    def testany(
        cls, requests: Sequence[Request], status: Status | None = None
    ) -> tuple[int, bool, Any]:
        """The index of a request that is done, whether there is one, and its object."""
        if not any(requests):
            _none(status)
            return UNDEFINED, True, None
        # A test also advances the operations, or a polling program would never see an end.
        index = _first_done(requests, wait=False)
        if index is None:
            return UNDEFINED, False, None
        return index, True, requests[index]._handle.wait(status)

    @classmethod
    def Testany(cls, requests: Sequence[Request], status: Status | None = None) -> tuple[int, bool]:
        """The index of a request that is done, and whether there is one."""
        return cls.testany(requests, status)[:2]

    @classmethod
    def waitsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """Wait until one is done; return the indices and objects of all that are done, or None if
        none is active."""
        if any(requests):
            _first_done(requests, wait=True)
        return cls.testsome(requests, statuses)

    @classmethod
    def Waitsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> list[int] | None:
        """Wait until one is done; return the indices of all that are done."""
        return cls.waitsome(requests, statuses)[0]

    @classmethod
    def testsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """The indices and objects of all that are done; None if none is active."""
        if not any(requests):
            return None, None
        # Tested once, then waited for: what completes in between is reported by the next call.
        done = [i for i, request in enumerate(requests) if request and request._handle.test()]
        found = [Status() for _ in done]
        values = [requests[i]._handle.wait(one) for i, one in zip(done, found, strict=True)]
        _tell(statuses, found)
        return done, values

    @classmethod
    def Testsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> list[int] | None:
        """The indices of all that are done; None if none is active."""
        return cls.testsome(requests, statuses)[0]


class _Handle:
    """An operation, which several `Request` objects may share."""

    def __init__(
        self,
        active: bool = False,
        group: SharedGroup | None = None,
        operation: Operation | None = None,
        finish: Callable[[Status], Any] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> None:
        self.active = active
        self.group, self.operation = group, operation
        self._finish, self._cancel = finish, cancel
        self._cancelled = False
        self._kept: tuple[Any, Status] | None = None

    @property
    def done(self) -> bool:
        """Whether there is nothing left to wait for."""
        return not self.active or self._cancelled or self.operation is None or self.operation.done

    def test(self, status: Status | None = None) -> bool:
        """Whether the operation is done; the request stays active."""
        if not self.done:
            assert self.group is not None
            assert self.operation is not None
            self.group.test(self.operation)
        if self.done and status is not None:
            _copy(self._ending()[1], status)
        return self.done

    def wait(self, status: Status | None) -> Any:
        """Wait until the operation is done; return the received object, if any."""
        if not self.done:
            assert self.group is not None
            assert self.operation is not None
            self.group.wait(self.operation)
        value, found = self._ending()
        # A completed request is MPI.REQUEST_NULL from then on.
        self.active = False
        if status is not None:
            _copy(found, status)
        return value

    def _ending(self) -> tuple[Any, Status]:
        if not self.active:
            return None, Status()
        # Kept, because `Get_status` may be called before `Wait`, and an object is unpickled only
        # once.
        if self._kept is None:
            found = Status()
            value = None
            if self._finish is not None and not self._cancelled:
                value = self._finish(found)
            # Programs ask the status, not the request, whether a cancel succeeded.
            found.cancelled = self._cancelled
            self._kept = value, found
        return self._kept

    def cancel(self) -> None:
        """Cancel the operation, if that is still possible."""
        self._cancelled = self._cancelled or (self._cancel is not None and self._cancel())


def _first_done(requests: Sequence[Request], wait: bool) -> int | None:
    """The index of the first request that is done; None if none is."""
    active = [request._handle for request in requests if request]
    under_way = [handle for handle in active if not handle.done]
    # If one is already done, the network need not be polled.
    if under_way and len(under_way) == len(active):
        group = under_way[0].group
        assert group is not None
        if wait:
            group.wait_any([h.operation for h in under_way if h.operation is not None])
        elif under_way[0].operation is not None:
            group.test(under_way[0].operation)
    for index, request in enumerate(requests):
        if request and request._handle.done:
            return index
    return None


def _none(status: Status | None) -> None:
    if status is not None:
        status.fill()


def _copy(found: Status, status: Status) -> None:
    status.fill(found.source, found.tag, found.count)
    status.cancelled = found.cancelled


def _tell(statuses: list[Status] | None, found: list[Status]) -> None:
    """Fill a list of statuses; as in mpi4py, it is extended if it is too short."""
    if statuses is None:
        return
    for status, one in zip(statuses, found, strict=False):
        _copy(one, status)
    if isinstance(statuses, list):
        statuses.extend(found[len(statuses) :])


REQUEST_NULL = Request()


def both(sending: Request, receiving: Request) -> Request:
    """One request for a message in each direction, with the status of the received message."""
    handles = sending._handle, receiving._handle
    group = handles[0].group or handles[1].group

    def finish(status: Status) -> None:
        # Both have ended by now; waiting raises their errors.
        sending.Wait()
        receiving.Wait(status)

    return Request.begun(group, _Pair(*handles), finish)


class _Pair:
    """Two operations combined into one."""

    def __init__(self, first: _Handle, second: _Handle) -> None:
        self._handles = first, second

    @property
    def done(self) -> bool:
        """Whether both operations are done."""
        return all(handle.done for handle in self._handles)
