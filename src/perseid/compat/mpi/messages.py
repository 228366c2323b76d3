"""Messages between two ranks: objects (lower case) and buffers (upper case)."""

from __future__ import annotations

import warnings
from typing import Any

from perseid.comm.lane import ReceiveMessage, Send
from perseid.comm.objects import Blob, dumps, loads
from perseid.comm.ops import Array
from perseid.comm.ports import array_bytes
from perseid.comm.shared_world import payload
from perseid.compat.mpi import buffers
from perseid.compat.mpi.constants import ANY_SOURCE, ANY_TAG, PROC_NULL
from perseid.compat.mpi.exceptions import failure
from perseid.compat.mpi.handle import HasGroup
from perseid.compat.mpi.message_status import Status
from perseid.compat.mpi.requests import Request, both


class Messages(HasGroup):
    """The point-to-point calls of a communicator."""

    # --- Objects -----------------------------------------------------------------------------

    def send(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Send an object."""
        self._send(dumps(obj), dest, tag)

    def ssend(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Send an object, and return once the receiver has posted its receive."""
        self._send(dumps(obj), dest, tag, answered=True)

    def bsend(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Send a copy of an object, without waiting for the receiver."""
        self.isend(obj, dest, tag)

    def isend(self, obj: Any, dest: int, tag: int = 0) -> Request:
        """Begin to send an object."""
        return self._begin_send(dumps(obj), dest, tag)

    ibsend = isend

    def issend(self, obj: Any, dest: int, tag: int = 0) -> Request:
        """Begin to send an object; done once the receiver has posted its receive."""
        return self._begin_send(dumps(obj), dest, tag, answered=True)

    def recv(
        self,
        buf: Any = None,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Any:
        """Receive an object."""
        _check_buf(buf)
        return self._receive(source, tag, None, status)

    def irecv(self, buf: Any = None, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Request:
        """Begin to receive an object."""
        _check_buf(buf)
        return self._begin_receive(source, tag, None)

    def sendrecv(
        self,
        sendobj: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Any:
        """Send one object and receive another at the same time."""
        # The receive first, so that two ranks which exchange messages never wait for each other.
        receiving = self.irecv(recvbuf, source, recvtag)
        sending = self.isend(sendobj, dest, sendtag)
        value = receiving.wait(status)
        sending.wait()
        return value

    # --- Buffers -----------------------------------------------------------------------------

    def Send(self, buf: Any, dest: int, tag: int = 0) -> None:
        """Send a buffer."""
        self._send(_blob(buffers.simple(buf)), dest, tag)

    Rsend = Send

    def Ssend(self, buf: Any, dest: int, tag: int = 0) -> None:
        """Send a buffer, and return once the receiver has posted its receive."""
        self._send(_blob(buffers.simple(buf)), dest, tag, answered=True)

    def Bsend(self, buf: Any, dest: int, tag: int = 0) -> None:
        """Send a copy of a buffer."""
        self.Ibsend(buf, dest, tag)

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> Request:
        """Begin to send a buffer, which must not change until the request is done."""
        return self._begin_send(_blob(buffers.simple(buf)), dest, tag)

    Irsend = Isend

    def Ibsend(self, buf: Any, dest: int, tag: int = 0) -> Request:
        """Begin to send a copy of a buffer."""
        return self._begin_send(_blob(buffers.simple(buf).copy()), dest, tag)

    def Issend(self, buf: Any, dest: int, tag: int = 0) -> Request:
        """Begin to send a buffer; done once the receiver has posted its receive."""
        return self._begin_send(_blob(buffers.simple(buf)), dest, tag, answered=True)

    def Recv(
        self,
        buf: Any,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        status: Status | None = None,
    ) -> None:
        """Receive into a buffer; a shorter message fills only its beginning."""
        self._receive(source, tag, buffers.simple(buf, writable=True), status)

    def Irecv(self, buf: Any, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Request:
        """Begin to receive into a buffer."""
        return self._begin_receive(source, tag, buffers.simple(buf, writable=True))

    def Sendrecv(
        self,
        sendbuf: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> None:
        """Send one buffer and receive into another at the same time."""
        self.Isendrecv(sendbuf, dest, sendtag, recvbuf, source, recvtag).Wait(status)

    def Isendrecv(
        self,
        sendbuf: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
    ) -> Request:
        """Begin to send one buffer and to receive into another."""
        # Checked before anything is begun, so that a wrong buffer leaves no pending receive.
        data = _blob(buffers.simple(sendbuf))
        receiving = self.Irecv(recvbuf, source, recvtag)
        return both(self._begin_send(data, dest, sendtag), receiving)

    def Sendrecv_replace(
        self,
        buf: Any,
        dest: int,
        sendtag: int = 0,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> None:
        """Send a buffer and receive into the same buffer."""
        self.Isendrecv_replace(buf, dest, sendtag, source, recvtag).Wait(status)

    def Isendrecv_replace(
        self,
        buf: Any,
        dest: int,
        sendtag: int = 0,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
    ) -> Request:
        """Begin to send a copy of a buffer and to receive into the buffer."""
        # A copy is sent, since the received message goes into the same memory.
        sending = self.Ibsend(buf, dest, sendtag)
        return both(sending, self.Irecv(buf, source, recvtag))

    # --- Arrived messages --------------------------------------------------------------------

    def Probe(
        self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> bool:
        """Wait until a message has arrived, which can then be received."""
        if source == PROC_NULL:
            return _no_message(status)
        found = self._group.wait_for_message(self._from(source), self._with(tag))
        if status is not None:
            status.fill(*found)
        return True

    probe = Probe

    def Iprobe(
        self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> bool:
        """Whether a message has arrived, which can then be received."""
        if source == PROC_NULL:
            return _no_message(status)
        found = self._group.probe(self._from(source), self._with(tag))
        if status is not None:
            status.fill(*(found or ()))
        return found is not None

    iprobe = Iprobe

    # --- Helpers -----------------------------------------------------------------------------

    def _send(self, blob: Blob, dest: int, tag: int, answered: bool = False) -> None:
        rank, tag = self._dest(dest), self._tag(tag)
        if rank is not None:
            self._group.send(blob, rank, tag, answered)

    def _receive(self, source: int, tag: int, into: Array | None, status: Status | None) -> Any:
        # Without one from the caller, a status is still needed for the error message.
        found = Status() if status is None else status
        if source == PROC_NULL:
            return found.fill(PROC_NULL)
        room = None if into is None else array_bytes(into)
        want = self._group.receive(self._from(source), self._with(tag), room)
        return self._received(want, room, found)

    def _begin_send(self, blob: Blob, dest: int, tag: int, answered: bool = False) -> Request:
        rank, tag = self._dest(dest), self._tag(tag)
        if rank is None:
            return Request.begun(None, None)
        sent: Send = self._group.start_send(blob, rank, tag, answered)
        return Request.begun(self._group, sent)

    def _begin_receive(self, source: int, tag: int, into: Array | None) -> Request:
        if source == PROC_NULL:
            # A receive from PROC_NULL is done at once, with an empty message.
            return Request.begun(None, None, lambda status: status.fill(PROC_NULL))
        group = self._group
        room = None if into is None else array_bytes(into)
        want = group.post(self._from(source), self._with(tag), room)

        def finish(status: Status) -> Any:
            return self._received(want, room, status)

        return Request.begun(group, want, finish, lambda: group.cancel(want))

    def _received(self, want: ReceiveMessage, room: memoryview | None, status: Status) -> Any:
        frame = want.frame
        assert frame is not None
        status.fill(self._group.source_of(want), frame.step, len(frame.body))
        if room is None:
            # An empty body comes from a buffer of no elements, not from a pickle.
            return loads(frame.parts, frame.body) if len(frame.body) else None
        # The message has been taken in any case, so the next one can follow.
        if payload(frame, room) > len(room):
            raise failure(
                "ERR_TRUNCATE",
                f"a message of {len(frame.body)} bytes came from rank {status.source} with tag "
                f"{status.tag}, but the buffer has {len(room)}.",
            )
        return None


def _check_buf(buf: Any) -> None:
    if buf is not None:
        # The warning that mpi4py gives.
        warnings.warn("the 'buf' argument is not needed", UserWarning, stacklevel=3)


def _blob(array: Array) -> Blob:
    data = array_bytes(array)
    return Blob(0, [data], len(data))


def _no_message(status: Status | None) -> bool:
    if status is not None:
        status.fill(PROC_NULL)
    return True
