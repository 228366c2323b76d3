"""Operations that are under way: wait for them or test them, one or many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from perseid.comm.shared_world import SharedGroup
from perseid.compat.mpi.constants import UNDEFINED
from perseid.compat.mpi.exceptions import failure
from perseid.compat.mpi.message_status import Status


class Operation(Protocol):
    """Something that is under way."""

    @property
    def done(self) -> bool:
        """Whether it has come to an end."""
        ...


class Request:
    """An operation that was begun, as ``mpi4py.MPI.Request``.

    Parameters
    ----------
    request
        One to share the operation of; None: ``REQUEST_NULL``.
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
        """An operation that is under way.

        Parameters
        ----------
        group
            The group whose thread moves it on; None if nothing is left to do.
        operation
            What is waited for; None: it is done.
        finish
            Called once it is done: fills the status and gives the object that was received.
        cancel
            Gives it up, if that is still possible.
        """
        made = cls()
        made._handle = _Handle(True, group, operation, finish, cancel)
        return made

    def __bool__(self) -> bool:
        return self._handle.active

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Request):
            return False
        return self._handle is other._handle or not (self or other)

    def __hash__(self) -> int:
        return id(self._handle)

    # --- one ---------------------------------------------------------------------------------

    def wait(self, status: Status | None = None) -> Any:
        """Return when it is done; the object, if one was received."""
        return self._handle.wait(status)

    def Wait(self, status: Status | None = None) -> bool:
        """Return when it is done."""
        self._handle.wait(status)
        return True

    def test(self, status: Status | None = None) -> tuple[bool, Any]:
        """Whether it is done, and the object, if one was received."""
        if not self._handle.test():
            return False, None
        return True, self._handle.wait(status)

    def Test(self, status: Status | None = None) -> bool:
        """Whether it is done."""
        return self.test(status)[0]

    def Get_status(self, status: Status | None = None) -> bool:
        """Whether it is done; unlike after `Test` it can be asked again."""
        return self._handle.test(status)

    get_status = Get_status

    def Cancel(self) -> None:
        """Give up a receive that nothing has come for yet."""
        if not self:
            raise failure("ERR_REQUEST", "MPI.REQUEST_NULL cannot be canceled.")
        self._handle.cancel()

    cancel = Cancel

    def Free(self) -> None:
        """Forget it; what was begun goes on."""
        self._handle.active = False

    # --- many --------------------------------------------------------------------------------

    @classmethod
    def waitall(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> list[Any]:
        """Return when all are done; the objects that were received, None for the others."""
        found = [Status() for _ in requests]
        values = [request._handle.wait(one) for request, one in zip(requests, found, strict=True)]
        _tell(statuses, found)
        return values

    @classmethod
    def Waitall(cls, requests: Sequence[Request], statuses: list[Status] | None = None) -> bool:
        """Return when all are done."""
        cls.waitall(requests, statuses)
        return True

    @classmethod
    def testall(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[bool, list[Any] | None]:
        """Whether all are done, and then the objects."""
        if not all(request._handle.test() for request in requests):
            return False, None
        return True, cls.waitall(requests, statuses)

    @classmethod
    def Testall(cls, requests: Sequence[Request], statuses: list[Status] | None = None) -> bool:
        """Whether all are done."""
        return cls.testall(requests, statuses)[0]

    @classmethod
    def waitany(cls, requests: Sequence[Request], status: Status | None = None) -> tuple[int, Any]:
        """Return when one is done: its index and object; ``UNDEFINED`` if none is under way."""
        index = _first_done(requests, wait=True)
        if index is None:
            _none(status)
            return UNDEFINED, None
        return index, requests[index]._handle.wait(status)

    @classmethod
    def Waitany(cls, requests: Sequence[Request], status: Status | None = None) -> int:
        """Return when one is done: its index."""
        return cls.waitany(requests, status)[0]

    @classmethod
    def testany(
        cls, requests: Sequence[Request], status: Status | None = None
    ) -> tuple[int, bool, Any]:
        """The index of one that is done, whether there is one, and its object."""
        if not any(requests):
            _none(status)
            return UNDEFINED, True, None
        index = _first_done(requests, wait=False)
        if index is None:
            return UNDEFINED, False, None
        return index, True, requests[index]._handle.wait(status)

    @classmethod
    def Testany(cls, requests: Sequence[Request], status: Status | None = None) -> tuple[int, bool]:
        """The index of one that is done, and whether there is one."""
        return cls.testany(requests, status)[:2]

    @classmethod
    def waitsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """Return when one is done: the indices and objects of all that are; None if none is under
        way."""
        if any(requests):
            _first_done(requests, wait=True)
        return cls.testsome(requests, statuses)

    @classmethod
    def Waitsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> list[int] | None:
        """Return when one is done: the indices of all that are."""
        return cls.waitsome(requests, statuses)[0]

    @classmethod
    def testsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """The indices and objects of those that are done; None if none is under way."""
        if not any(requests):
            return None, None
        done = [i for i, request in enumerate(requests) if request and request._handle.test()]
        found = [Status() for _ in done]
        values = [requests[i]._handle.wait(one) for i, one in zip(done, found, strict=True)]
        _tell(statuses, found)
        return done, values

    @classmethod
    def Testsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> list[int] | None:
        """The indices of those that are done."""
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
        """Whether there is nothing to wait for."""
        return not self.active or self._cancelled or self.operation is None or self.operation.done

    def test(self, status: Status | None = None) -> bool:
        """Whether it is done by now; the operation stays what it is."""
        if not self.done:
            assert self.group is not None
            assert self.operation is not None
            self.group.test(self.operation)
        if self.done and status is not None:
            _copy(self._ending()[1], status)
        return self.done

    def wait(self, status: Status | None) -> Any:
        """Return when it is done: the object that was received."""
        if not self.done:
            assert self.group is not None
            assert self.operation is not None
            self.group.wait(self.operation)
        value, found = self._ending()
        self.active = False
        if status is not None:
            _copy(found, status)
        return value

    def _ending(self) -> tuple[Any, Status]:
        if not self.active:
            return None, Status()
        # Kept, because `Get_status` may ask before `Wait` does, and an object is unpickled only
        # once.
        if self._kept is None:
            found = Status()
            value = None
            if self._finish is not None and not self._cancelled:
                value = self._finish(found)
            found.cancelled = self._cancelled
            self._kept = value, found
        return self._kept

    def cancel(self) -> None:
        """Cancel the operation, if that is still possible."""
        self._cancelled = self._cancelled or (self._cancel is not None and self._cancel())


def _first_done(requests: Sequence[Request], wait: bool) -> int | None:
    """The index of the first that is done; None if none is."""
    active = [request._handle for request in requests if request]
    under_way = [handle for handle in active if not handle.done]
    # One that is already done is the answer, without polling the network.
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
    """As mpi4py: a list of statuses is made as long as need be."""
    if statuses is None:
        return
    for status, one in zip(statuses, found, strict=False):
        _copy(one, status)
    if isinstance(statuses, list):
        statuses.extend(found[len(statuses) :])


REQUEST_NULL = Request()


def both(sending: Request, receiving: Request) -> Request:
    """One request for a message in each direction; its status is that of the received one."""
    handles = sending._handle, receiving._handle
    group = handles[0].group or handles[1].group

    def finish(status: Status) -> None:
        sending.Wait()
        receiving.Wait(status)

    return Request.begun(group, _Pair(*handles), finish)


class _Pair:
    """Two operations as one."""

    def __init__(self, first: _Handle, second: _Handle) -> None:
        self._handles = first, second

    @property
    def done(self) -> bool:
        """Whether both are."""
        return all(handle.done for handle in self._handles)
