"""The last resort of two ranks that cannot connect: messages as objects in a store.

Each message is one object below ``prefix``, numbered for each ordered pair of ranks; the receiver
polls for the next number and deletes what it has read. Slow, but it needs nothing besides the
store. Nothing here knows which store: whoever has ``put``, ``get`` and ``delete`` will do.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from perseid.comm.channel import Channel, Want
from perseid.comm.frames import (
    HEADER_BYTES,
    SIGNATURE_BYTES,
    TAIL,
    Frame,
    FrameError,
    Kind,
    Receiver,
    Signature,
)
from perseid.comm.objects import Blob, Buffer
from perseid.errors import NotFoundError

if TYPE_CHECKING:
    from perseid.comm.engine import Engine

FIRST_WAIT = 0.002
"""Seconds until a message that is not there yet is asked for again; doubled each time."""
LONGEST_WAIT = 0.1
"""Seconds between two such questions at most: each is a request that costs."""


class ObjectStore(Protocol):
    """What a store must offer; ``perseid.storage.Storage`` does."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole."""

    def get(self, key: str) -> bytes:
        """Read an object; raises `NotFoundError`."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those already gone do not matter."""


class StoreChannel(Channel):
    """Frames to and from one peer through a store.

    Parameters
    ----------
    rank
        The peer's rank in the world.
    store, prefix
        Where the messages of this job and generation lie; only its ranks may write there.
    """

    __slots__ = ("_from", "_read", "_store", "_to", "_wait", "_written")

    def __init__(self, rank: int, store: ObjectStore, prefix: str, engine: Engine) -> None:
        self.rank, self.engine, self.way = rank, engine, "store"
        self._store = store
        self._to = f"{prefix}/{engine.rank}-{rank}"
        self._from = f"{prefix}/{rank}-{engine.rank}"
        self._written = self._read = 0
        self._wait = FIRST_WAIT
        self.receiver = Receiver(staging=0)
        self.frames: deque[Frame] = deque()
        self.sending = self.closed = self.ended = False

    def send(self, signature: bytes, step: int, data: Buffer) -> None:
        """Write raw bytes as one object."""
        self._put(signature + TAIL.pack(step, 0, len(data)) + data)

    def send_blob(self, signature: bytes, step: int, blob: Blob) -> None:
        """Write the pieces of a payload as one object."""
        head = signature + TAIL.pack(step, blob.parts, blob.nbytes)
        self._put(b"".join([head, *blob.pieces]))

    def start(self, pieces: list[Buffer]) -> int:
        """Write a frame; all of it goes."""
        data = b"".join(pieces)
        self._put(data)
        return len(data)

    def _put(self, data: bytes) -> None:
        self.engine.check()
        self._write(data)

    def _write(self, data: bytes) -> None:
        self._store.put(f"{self._to}/{self._written:08d}", data)
        self._written += 1

    def control_frame(self, frame: bytes) -> None:
        """Write an ABORT or WAITING frame among the others."""
        self._write(frame)

    def receive_into(self, signature: bytes, step: int, into: memoryview) -> None:
        """Read raw bytes of exactly the length of ``into``."""
        self.wait(Want(signature, step, into))

    def receive(self, signature: bytes, step: int, any_step: bool = False) -> Frame:
        """Read a payload of any length."""
        return self.wait(Want(signature, step, None, any_step))

    def _straight(self, want: Want, into: memoryview) -> None:
        """Messages come as whole objects."""

    def pump(self, at_once: bool) -> bool:
        """Ask for the next message until it is there or the time of a tick is over."""
        end = time.monotonic() + self.engine.tick_seconds
        while not self._fetch():
            self.engine.check()
            if at_once or time.monotonic() + self._wait > end:
                return False
            time.sleep(self._wait)
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._wait = FIRST_WAIT
        return True

    def drain(self) -> bool:
        """Take in one message, if there is one."""
        self._fetch()
        return True

    def _fetch(self) -> bool:
        key = f"{self._from}/{self._read:08d}"
        try:
            data = memoryview(bytearray(self._store.get(key)))
        except NotFoundError:
            return False
        self._read += 1
        self._store.delete([key])
        frame = _frame(data)
        if frame is None:
            self.engine.broken(self, FrameError(f"{key} is no message"))
        if frame.signature[2] >= Kind.ABORT:
            self.engine.control(self, frame)
        else:
            self.frames.append(frame)
        return True

    def digest(self, want: Want | None) -> bool:
        """Whether the wanted frame is among those read."""
        return want is not None and self._kept(want)

    def last_words(self) -> None:
        """Nothing to read ahead."""

    def interrupt(self) -> None:
        """The waiting thread looks for an error between two questions."""

    def close(self) -> None:
        """Forget it; unread messages of this rank lie until the prefix is deleted."""
        self.closed = True


def _frame(data: memoryview) -> Frame | None:
    if len(data) < HEADER_BYTES:
        return None
    signature = bytes(data[:SIGNATURE_BYTES])
    step, parts, nbytes = TAIL.unpack_from(data, SIGNATURE_BYTES)
    try:
        Signature.unpack(signature)
    except FrameError:
        return None
    if nbytes != len(data) - HEADER_BYTES:
        return None
    return Frame(signature, step, parts, data[HEADER_BYTES:])
