"""The last resort of two ranks that cannot connect: messages as objects in a store.

Each message is one object below ``prefix``, numbered for each ordered pair of ranks. The receiver
polls for the next number and deletes what it has read. This is slow, but needs nothing besides the
store: any object with ``put``, ``get`` and ``delete`` will do.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Protocol

from perseid.comm.channel import ChannelEndedError, FrameQueue, PartlySent, PendingReceive
from perseid.comm.frames import (
    HEADER_BYTES,
    SIGNATURE_BYTES,
    TAIL,
    Frame,
    FrameError,
    FrameKind,
    Signature,
)
from perseid.comm.objects import Blob, Buffer
from perseid.errors import NotFoundError, PerseidError

FIRST_WAIT = 0.002
"""Seconds until the first repeated read of a message that is not there yet; doubles each time."""
LONGEST_WAIT = 0.1
"""Longest time between two such reads, in seconds. Each read is a request that costs money."""


class ObjectStore(Protocol):
    """The methods that a store must have; ``perseid.storage.Storage`` has them."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""

    def get(self, key: str) -> bytes:
        """Read an object; raises `NotFoundError` if there is none."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that do not exist are ignored."""


class StoreChannel(FrameQueue):
    """Frames to and from one peer through a store.

    Parameters
    ----------
    me, rank
        World ranks of this process and of the peer.
    store, prefix
        Place of the messages of this job and generation; only its ranks may write there.
    poll_seconds
        Longest wait of one read, in seconds.
    """

    __slots__ = ("_from", "_interrupted", "_poll_seconds", "_read", "_store", "_to", "_unneeded",
                 "_wait", "_written", "closed", "transport")  # fmt: skip

    def __init__(
        self, me: int, rank: int, store: ObjectStore, prefix: str, poll_seconds: float
    ) -> None:
        super().__init__(rank)
        self.transport = "store"
        self.closed = False
        self._store, self._poll_seconds = store, poll_seconds
        # One sequence of numbers for each direction: two writers of one would need a lock.
        self._to = f"{prefix}/{me}-{rank}"
        self._from = f"{prefix}/{rank}-{me}"
        self._written = self._read = 0
        self._unneeded: list[str] = []
        """Keys of WAITING frames that no other message of this rank has followed yet."""
        self._wait = FIRST_WAIT
        self._interrupted = False

    def send(self, signature: bytes, step: int, data: Buffer, parts: int = 0) -> PartlySent | None:
        """Write raw bytes as one object."""
        self._put(signature + TAIL.pack(step, parts, len(data)) + data)
        return None

    def send_blob(self, signature: bytes, step: int, blob: Blob) -> PartlySent | None:
        """Write the pieces of a payload as one object."""
        return self.send(signature, step, blob.flat(), blob.parts)

    def _put(self, data: bytes) -> None:
        if self._interrupted:
            raise ChannelEndedError(self.rank, None)
        self.send_control(data)

    def send_control(self, frame: bytes) -> None:
        """Write a control frame as an object, like any other frame."""
        # Padded, so that a listing shows the messages in their order.
        key = f"{self._to}/{self._written:08d}"
        self._store.put(key, frame)
        self._written += 1
        if Signature.unpack(frame[:SIGNATURE_BYTES]).kind == FrameKind.WAITING:
            self._unneeded.append(key)
        # The peer reads in order: to get this message, it reads (and deletes) those before it.
        else:
            self._unneeded.clear()

    def receive_into(self, signature: bytes, step: int, into: memoryview) -> bool:
        """Always False: only sockets have a fast path."""
        return False

    def receive(self, signature: bytes, step: int, any_step: bool = False) -> Blob | None:
        """Always None: only sockets have a fast path."""
        return None

    def read_some(self) -> bool:
        """Read the next message, polling until it is there or the polling interval is over."""
        end = time.monotonic() + self._poll_seconds
        while not self._fetch():
            # Return in time to check for lost ranks, rather than sleep past the polling interval.
            if self._interrupted or time.monotonic() + self._wait > end:
                return False
            time.sleep(self._wait)
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        # Messages come in bursts: after one, the next probably follows soon.
        self._wait = FIRST_WAIT
        return True

    def read_available(self) -> bool:
        """Read one message, if there is one; always True, since a store has no end of stream."""
        self._fetch()
        return True

    def _fetch(self) -> bool:
        key = f"{self._from}/{self._read:08d}"
        try:
            # A bytearray, because arrays will share this memory and users may write into them.
            data = memoryview(bytearray(self._store.get(key)))
        except NotFoundError:
            return False
        self._read += 1
        # Nobody else reads this object; deleting it now keeps a long run from filling the store.
        self._store.delete([key])
        frame = _frame(data)
        if frame is None:
            raise ChannelEndedError(self.rank, FrameError(f"{key} is not a message"))
        self.accept(frame, None)
        return True

    def process_buffered(self, pending: PendingReceive | None) -> bool:
        """Whether the pending frame is among those that were read earlier."""
        return pending is not None and self.take_kept(pending)

    def drain_to_eof(self) -> None:
        """Do nothing: a store has no end of stream."""

    def unanswered_for(self) -> float:
        """Always 0: the store answers, whatever the peer does."""
        return 0.0

    def interrupt(self) -> None:
        """Set a flag that the waiting thread checks between two reads."""
        self._interrupted = True

    def close(self, *, wait: bool = False) -> None:
        """Close, and delete WAITING frames that the peer may never read.

        A late peer that needs nothing more from this rank does not read them. Other unread messages
        of this rank stay until the prefix is deleted.
        """
        self.closed = True
        with contextlib.suppress(PerseidError):  # all work is done; the prefix's owner cleans up
            self._store.delete(self._unneeded)

    def discard(self) -> None:
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
    # Then it is an object of another program.
    if nbytes != len(data) - HEADER_BYTES:
        return None
    return Frame(signature, step, parts, data[HEADER_BYTES:])
