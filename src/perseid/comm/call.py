"""One collective call in progress: what its algorithm sends and receives.

Algorithms know ranks of the group, steps and bytes; they never see a socket. All frames of one call
bear its signature.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from perseid.comm.channel import JOINED_BYTES, MAX_PIECES, Want
from perseid.comm.frames import HEADER_BYTES, header
from perseid.comm.objects import Blob, Buffer, dumps, loads
from perseid.comm.ops import Op
from perseid.comm.outgoing import swap

if TYPE_CHECKING:
    from perseid.comm.channel import Channel
    from perseid.comm.group import Group

T = TypeVar("T")
Array = np.ndarray[Any, np.dtype[Any]]
_NOWHERE = memoryview(bytearray())


class Call:
    """A collective call of one group.

    ``rank`` and all peers are numbers within the group; ``step`` tells the frames of one pair of
    ranks apart.
    """

    __slots__ = ("channels", "group", "rank", "signature", "size")

    def __init__(self, group: Group, signature: bytes) -> None:
        self.group = group
        self.rank = group.rank
        self.size = group.size
        self.signature = signature
        self.channels: list[Any] = group.channels
        """By rank of the group; None where ``need`` has made none yet."""

    def need(self, peers: Iterable[int]) -> None:
        """Connect to these peers, in parallel, before the first byte is sent."""
        channels = self.channels
        missing = [peer for peer in peers if channels[peer] is None and peer != self.rank]
        if missing:
            self.group.connect(missing)

    def _channel(self, peer: int) -> Channel:
        return self.channels[peer] or self.group.connect_one(peer)

    def send(self, peer: int, data: Buffer, step: int = 0) -> None:
        """Send bytes whose number the receiver knows."""
        self._channel(peer).send(self.signature, step, data)

    def receive_into(self, peer: int, into: memoryview, step: int = 0) -> None:
        """Receive exactly as many bytes as ``into`` has."""
        self._channel(peer).receive_into(self.signature, step, into)

    def send_blob(self, peer: int, blob: Blob, step: int = 0) -> None:
        """Send a payload of any length."""
        self._channel(peer).send_blob(self.signature, step, blob)

    def receive_blob(self, peer: int, step: int = 0) -> Blob:
        """Receive a payload of any length."""
        frame = self._channel(peer).receive(self.signature, step)
        return Blob(frame.parts, [frame.body], len(frame.body))

    def swap(
        self,
        peer: int,
        data: Buffer,
        source: int,
        into: memoryview,
        step: int = 0,
        back_step: int | None = None,
    ) -> None:
        """Send to one peer and receive from another (or the same) at once.

        ``back_step`` is the step of what is received, where it differs.
        """
        out, back = self._channel(peer), self._channel(source)
        size = len(data)
        back_step = step if back_step is None else back_step
        if size <= JOINED_BYTES:
            out.send(self.signature, step, data)
            back.receive_into(self.signature, back_step, into)
            return
        head = header(self.signature, step, 0, size)
        want = Want(self.signature, back_step, into)
        swap(out, [head, data], HEADER_BYTES + size, back, want)

    def swap_blob(self, peer: int, blob: Blob, source: int, step: int = 0) -> Blob:
        """`swap` of payloads of any length."""
        out, back = self._channel(peer), self._channel(source)
        if blob.nbytes <= JOINED_BYTES:
            out.send_blob(self.signature, step, blob)
            frame = back.receive(self.signature, step)
        else:
            head = header(self.signature, step, blob.parts, blob.nbytes)
            want = Want(self.signature, step, None)
            pieces: list[Buffer] = [head, *blob.pieces]
            if len(pieces) > MAX_PIECES:
                pieces = [head, blob.flat()]
            frame = swap(out, pieces, HEADER_BYTES + blob.nbytes, back, want)
        return Blob(frame.parts, [frame.body], len(frame.body))


class Port(Generic[T]):
    """How an algorithm of a reduction moves and combines values, whatever they are."""

    def __init__(self, call: Call, op: Op) -> None:
        self.call, self.op = call, op

    def begin(self, value: T) -> T:
        """What this rank's value is gathered in: the value itself is never changed."""
        raise NotImplementedError

    def send(self, peer: int, value: T, step: int = 0) -> None:
        """Send a value."""
        raise NotImplementedError

    def receive(self, peer: int, step: int = 0) -> T:
        """Receive a value."""
        raise NotImplementedError

    def take(self, peer: int, value: T, step: int = 0) -> T:
        """Receive a value in place of one that is no longer needed."""
        raise NotImplementedError

    def fold(self, peer: int, value: T, step: int = 0) -> T:
        """``value`` combined with a peer's, which is of higher ranks; ``value`` is used up."""
        raise NotImplementedError

    def trade(self, peer: int, value: T, lower: bool, step: int = 0) -> T:
        """Both peers' values combined, on both; ``lower``: the peer is of lower ranks."""
        raise NotImplementedError

    def swap(self, peer: int, value: T, source: int, step: int = 0) -> T:
        """Send a value to one peer, receive one from another (or the same)."""
        raise NotImplementedError

    def combine(self, left: T, right: T) -> T:
        """One value of two; both may be destroyed. ``left`` is of the lower ranks."""
        raise NotImplementedError

    def copy(self, value: T) -> T:
        """A value that may be destroyed while this one is kept."""
        raise NotImplementedError


class ObjectPort(Port[Any]):
    """Objects, pickled."""

    def begin(self, value: Any) -> Any:
        """Functions for objects make new ones."""
        return value

    def send(self, peer: int, value: Any, step: int = 0) -> None:
        """Pickle and send."""
        self.call.send_blob(peer, dumps(value), step)

    def receive(self, peer: int, step: int = 0) -> Any:
        """Receive and unpickle."""
        blob = self.call.receive_blob(peer, step)
        return loads(blob.parts, blob.pieces[0])

    def take(self, peer: int, value: Any, step: int = 0) -> Any:
        """Receive and unpickle."""
        return self.receive(peer, step)

    def fold(self, peer: int, value: Any, step: int = 0) -> Any:
        """By the operation's function for objects."""
        return self.op.function(value, self.receive(peer, step))

    def trade(self, peer: int, value: Any, lower: bool, step: int = 0) -> Any:
        """By the operation's function for objects."""
        other = self.swap(peer, value, peer, step)
        return self.op.function(other, value) if lower else self.op.function(value, other)

    def swap(self, peer: int, value: Any, source: int, step: int = 0) -> Any:
        """Both at once."""
        blob = self.call.swap_blob(peer, dumps(value), source, step)
        return loads(blob.parts, blob.pieces[0])

    def combine(self, left: Any, right: Any) -> Any:
        """By the operation's function for objects."""
        return self.op.function(left, right)

    def copy(self, value: Any) -> Any:
        """Functions for objects make new ones."""
        return value


def octets(array: Array) -> memoryview:
    """The bytes of a contiguous array, shared."""
    if not array.size:
        return memoryview(bytearray())
    if array.dtype.kind == "c":  # memoryview cannot cast complex numbers
        return array.reshape(-1).view(np.uint8).data
    return array.data.cast("B")


class ArrayPort(Port[Array]):
    """Contiguous arrays, all of the type and shape of ``place``, in which results are gathered."""

    def __init__(self, call: Call, op: Op, place: Array) -> None:
        self.call, self.op, self.place = call, op, place
        self._channels, self._signature = call.channels, call.signature
        self._small = place.nbytes <= JOINED_BYTES
        self._spare: Array | None = None
        self._result: Array | None = None
        self._room = _NOWHERE

    def begin(self, value: Array) -> Array:
        """In the place of the result."""
        if value is not self.place:
            self.place[...] = value
        return self.place

    def send(self, peer: int, value: Array, step: int = 0) -> None:
        """Send the array's bytes."""
        data = value.tobytes() if self._small else octets(value)
        self._channel(peer).send(self._signature, step, data)

    def receive(self, peer: int, step: int = 0) -> Array:
        """Receive into a new array."""
        return self.take(peer, np.empty_like(self.place), step)

    def take(self, peer: int, value: Array, step: int = 0) -> Array:
        """Receive into the array."""
        self._channel(peer).receive_into(self._signature, step, octets(value))
        return value

    def fold(self, peer: int, value: Array, step: int = 0) -> Array:
        """In place."""
        other = self._other()
        self._channel(peer).receive_into(self._signature, step, self._room)
        self.op.arrays(value, other, value)
        return value

    def trade(self, peer: int, value: Array, lower: bool, step: int = 0) -> Array:
        """Into other memory of this call."""
        other = self._other()
        self.call.swap(peer, octets(value), peer, self._room, step)
        result, self._result = self._result, None
        if result is None:
            result = np.empty_like(self.place)
        # Into memory that is neither operand: NumPy takes another path where it is the left one,
        # and of two NaNs another one's sign; both ranks must do exactly the same.
        self.op.arrays(*((other, value) if lower else (value, other)), result)
        self._result = value
        return result

    def _channel(self, peer: int) -> Channel:
        return self._channels[peer] or self.call.group.connect_one(peer)

    def _other(self) -> Array:
        """Where a peer's value is received: kept from message to message, for NumPy's own
        operations; a function of the user's may keep what it is given."""
        if self._spare is None or self.op.ufunc is None:
            self._spare = np.empty_like(self.place)
            self._room = octets(self._spare)
        return self._spare

    def swap(self, peer: int, value: Array, source: int, step: int = 0) -> Array:
        """Both at once."""
        into = np.empty_like(self.place)
        self.call.swap(peer, octets(value), source, octets(into), step)
        return into

    def combine(self, left: Array, right: Array) -> Array:
        """In place."""
        self.op.arrays(left, right, left)
        return left

    def copy(self, value: Array) -> Array:
        """A copy."""
        return value.copy()
