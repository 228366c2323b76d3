"""How a reduction moves and combines values, which may be objects or arrays.

Each algorithm is written only once, for a `Port`.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np

from perseid.comm.channel import Channel
from perseid.comm.group import Call
from perseid.comm.objects import dumps, loads
from perseid.comm.ops import Array, Op
from perseid.comm.socket_channel import JOINED_BYTES

T = TypeVar("T")
_NOWHERE = memoryview(bytearray())


class Port(Generic[T]):
    """Moves and combines the values of a reduction, whatever their type."""

    def __init__(self, call: Call, op: Op) -> None:
        self.call, self.op = call, op

    def begin(self, value: T) -> T:
        """Make a copy of this rank's value to accumulate in; the value itself never changes."""
        raise NotImplementedError

    def send(self, peer: int, value: T, step: int = 0) -> None:
        raise NotImplementedError

    def receive(self, peer: int, step: int = 0) -> T:
        raise NotImplementedError

    def take(self, peer: int, value: T, step: int = 0) -> T:
        """Receive a value, if possible into the memory of ``value``, which is no longer needed."""
        raise NotImplementedError

    def recv_reduce(self, peer: int, value: T, step: int = 0) -> T:
        """Receive a value of higher ranks and combine ``value`` with it; ``value`` is consumed."""
        raise NotImplementedError

    def exchange_reduce(self, peer: int, value: T, lower: bool, step: int = 0) -> T:
        """Exchange values and combine them on both sides.

        ``lower`` says whether the peer's value stands for lower ranks.
        """
        raise NotImplementedError

    def exchange(self, peer: int, value: T, source: int, step: int = 0) -> T:
        """Send a value to one peer while receiving one from another (or the same)."""
        raise NotImplementedError

    def combine(self, left: T, right: T) -> T:
        """Combine two values, which may both be overwritten; ``left`` stands for lower ranks."""
        raise NotImplementedError

    def copy(self, value: T) -> T:
        """A copy that may be overwritten while the value is kept."""
        raise NotImplementedError


class ObjectPort(Port[Any]):
    """A port for objects, which are pickled."""

    def begin(self, value: Any) -> Any:
        """Return the value itself: functions for objects make new ones."""
        return value

    def send(self, peer: int, value: Any, step: int = 0) -> None:
        self.call.send_blob(peer, dumps(value), step)

    def receive(self, peer: int, step: int = 0) -> Any:
        blob = self.call.receive_blob(peer, step)
        return loads(blob.parts, blob.pieces[0])

    def take(self, peer: int, value: Any, step: int = 0) -> Any:
        return self.receive(peer, step)

    def recv_reduce(self, peer: int, value: Any, step: int = 0) -> Any:
        """Combine by the operation's function for objects."""
        return self.op.function(value, self.receive(peer, step))

    def exchange_reduce(self, peer: int, value: Any, lower: bool, step: int = 0) -> Any:
        """Combine by the operation's function for objects."""
        other = self.exchange(peer, value, peer, step)
        return self.op.function(other, value) if lower else self.op.function(value, other)

    def exchange(self, peer: int, value: Any, source: int, step: int = 0) -> Any:
        blob = self.call.exchange_blob(peer, dumps(value), source, step)
        return loads(blob.parts, blob.pieces[0])

    def combine(self, left: Any, right: Any) -> Any:
        """Combine by the operation's function for objects."""
        return self.op.function(left, right)

    def copy(self, value: Any) -> Any:
        """Return the value itself: functions for objects make new ones."""
        return value


def array_bytes(array: Array) -> memoryview:
    """The bytes of a contiguous array, which share its memory."""
    if not array.size:
        return memoryview(bytearray())
    if array.dtype.kind == "c":  # memoryview cannot cast complex numbers
        return array.reshape(-1).view(np.uint8).data
    return array.data.cast("B")


class ArrayPort(Port[Array]):
    """A port for contiguous arrays of the type and shape of ``place``, where results accumulate."""

    def __init__(self, call: Call, op: Op, place: Array) -> None:
        self.call, self.op, self.place = call, op, place
        self._channels, self._signature = call.channels, call.signature
        self._progress = call.group.progress
        self._small = place.nbytes <= JOINED_BYTES
        self._spare: Array | None = None
        self._result: Array | None = None
        self._room = _NOWHERE

    def begin(self, value: Array) -> Array:
        """Copy the value to the place of the result, unless it is there already."""
        if value is not self.place:
            self.place[...] = value
        return self.place

    def send(self, peer: int, value: Array, step: int = 0) -> None:
        """Send the array's bytes."""
        # Small arrays are copied behind their header anyway; bytes are then the cheaper operand.
        data = value.tobytes() if self._small else array_bytes(value)
        self._progress.send(self._channel(peer), self._signature, step, data)

    def receive(self, peer: int, step: int = 0) -> Array:
        """Receive into a new array."""
        return self.take(peer, np.empty_like(self.place), step)

    def take(self, peer: int, value: Array, step: int = 0) -> Array:
        """Receive into the array."""
        self._progress.receive_into(self._channel(peer), self._signature, step, array_bytes(value))
        return value

    def recv_reduce(self, peer: int, value: Array, step: int = 0) -> Array:
        other = self._received()
        self._progress.receive_into(self._channel(peer), self._signature, step, self._room)
        self.op.arrays(value, other, value)
        return value

    def exchange_reduce(self, peer: int, value: Array, lower: bool, step: int = 0) -> Array:
        """Exchange and combine into other memory of this call."""
        other = self._received()
        self.call.exchange(peer, array_bytes(value), peer, self._room, step)
        result, self._result = self._result, None
        if result is None:
            result = np.empty_like(self.place)
        # Into memory that is neither operand: NumPy takes another code path if the output is the
        # left operand, and then picks the sign of another one of two NaNs. Both ranks must get
        # exactly the same bits.
        self.op.arrays(*((other, value) if lower else (value, other)), result)
        # The two arrays change roles: the next round writes into the one that is free now.
        self._result = value
        return result

    def _channel(self, peer: int) -> Channel:
        return self._channels[peer] or self.call.group.connect_one(peer)

    def _received(self) -> Array:
        """Memory that receives a peer's value.

        It is reused for NumPy's own operations only: a user's function may keep its arguments.
        """
        if self._spare is None or self.op.ufunc is None:
            self._spare = np.empty_like(self.place)
            self._room = array_bytes(self._spare)
        return self._spare

    def exchange(self, peer: int, value: Array, source: int, step: int = 0) -> Array:
        into = np.empty_like(self.place)
        self.call.exchange(peer, array_bytes(value), source, array_bytes(into), step)
        return into

    def combine(self, left: Array, right: Array) -> Array:
        self.op.arrays(left, right, left)
        return left

    def copy(self, value: Array) -> Array:
        return value.copy()
