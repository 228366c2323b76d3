"""Frames to and from one peer over a connection.

A small message takes one ``send`` and one ``recv``; a large payload is sent from, and received
into, the caller's memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NoReturn, TypeVar

from perseid.comm.channel import ChannelEndedError, FrameQueue, PartlySent, PendingReceive
from perseid.comm.connection import DONTWAIT, Connection
from perseid.comm.frames import (
    HEADER_BYTES,
    SIGNATURE_BYTES,
    TAIL,
    FrameError,
    Receiver,
)
from perseid.comm.objects import Blob, Buffer

JOINED_BYTES = 16 * 1024
"""Payloads up to this number of bytes are copied behind their header, which is cheaper than a
write from two places."""
MAX_PIECES = 512
"""Most pieces of memory in one write; Linux takes 1,024."""
T = TypeVar("T")


class SocketChannel(FrameQueue):
    """Frames over a connection.

    Parameters
    ----------
    rank
        The peer's rank in the world.
    connection
        The connection; it belongs to this channel from now on.
    """

    __slots__ = ("_receive", "_send", "_send_pieces", "closed", "connection", "ended", "receiver",
                 "sending", "transport")  # fmt: skip

    def __init__(self, rank: int, connection: Connection) -> None:
        super().__init__(rank)
        self.connection = connection
        self.transport = connection.transport
        self.receiver = Receiver()
        self.sending = False
        """Whether a frame is partly sent, so that no other frame may be sent yet."""
        self.closed = False
        self.ended = False
        """Whether the end of the peer's stream has been read."""
        # Looked up once: two more attribute accesses show in the time of a small round trip.
        self._send, self._send_pieces = connection.send, connection.send_pieces
        self._receive = connection.receive

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self.connection.fileno()

    def _ended(self, error: Exception | None = None) -> NoReturn:
        raise ChannelEndedError(self.rank, error) from None

    # --- sending -----------------------------------------------------------------------------

    def send(self, signature: bytes, step: int, data: Buffer, parts: int = 0) -> PartlySent | None:
        """Send raw bytes; a small payload is copied behind its header."""
        size = len(data)
        head = signature + TAIL.pack(step, parts, size)
        try:
            # Copying a small payload is cheaper than writing from two places.
            if size <= JOINED_BYTES:
                sent = self._send(head + data, DONTWAIT)
            else:
                sent = self._send_pieces([head, data], (), DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._ended(error)
        done = sent == HEADER_BYTES + size
        return None if done else PartlySent(self.start, [head, data], sent)

    def send_blob(self, signature: bytes, step: int, blob: Blob) -> PartlySent | None:
        """Send the pieces of a payload."""
        # One copy is cheaper than several system calls, each of which takes only so many pieces.
        if blob.nbytes <= JOINED_BYTES or not 1 < len(blob.pieces) < MAX_PIECES:
            return self.send(signature, step, blob.flat(), blob.parts)
        head = signature + TAIL.pack(step, blob.parts, blob.nbytes)
        pieces: list[Buffer] = [head, *blob.pieces]
        sent = self.start(pieces)
        done = sent == HEADER_BYTES + blob.nbytes
        return None if done else PartlySent(self.start, pieces, sent)

    def start(self, pieces: list[Buffer]) -> int:
        """Send what the socket takes without waiting; returns the number of bytes."""
        try:
            return self._send_pieces(pieces, (), DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._ended(error)

    def send_control(self, frame: bytes) -> None:
        """Send an ABORT or WAITING frame, if no other frame is partly sent."""
        # Dropping it is harmless: a failure is also reported through the rendezvous, and WAITING is
        # sent again.
        if not (self.sending or self.closed):
            with contextlib.suppress(OSError):  # the next read reports what is wrong
                self.connection.send_at_once(frame)

    # --- receiving ---------------------------------------------------------------------------

    def receive_into(self, signature: bytes, step: int, into: memoryview) -> bool:
        """The fast path for a message that is the next one on the stream, as nearly all are."""
        receiver = self.receiver
        size = len(into)
        # Frames that were kept came earlier, so they must be checked first.
        if receiver.signature is not None or self.frames:
            return False
        start = receiver.start
        if start == receiver.end:
            if size > JOINED_BYTES:
                return self.receive_direct(signature, step, into)
            # Nothing is left over, so the next frame can use the whole buffer.
            receiver.start = receiver.end = start = 0
            try:
                receiver.end = self._receive(receiver.buffer) or self._ended()
            except BlockingIOError:
                return False
            except OSError as error:
                self._ended(error)
        body = start + HEADER_BYTES
        end = body + size
        # Comparing 48 bytes checks communicator, call, arguments, step and length at once. It fails
        # for everything unusual, which the slow path then handles.
        if receiver.end < end or not receiver.buffer.startswith(
            signature + TAIL.pack(step, 0, size), start
        ):
            return False
        into[:] = receiver.view[body:end]
        receiver.start = end
        return True

    def receive(self, signature: bytes, step: int, any_step: bool = False) -> Blob | None:
        """The fast path for a payload of any length that fits into the staging buffer."""
        receiver = self.receiver
        if receiver.signature is not None or self.frames:
            return None
        start = receiver.start
        if start == receiver.end:
            receiver.start = receiver.end = start = 0
            receiver.end = self._read(self._receive, receiver.buffer)
        body = start + HEADER_BYTES
        if receiver.end < body or not receiver.buffer.startswith(signature, start):
            return None
        came, parts, size = TAIL.unpack_from(receiver.buffer, start + SIGNATURE_BYTES)
        end = body + size
        if receiver.end < end or not (came == step or any_step):
            return None
        receiver.start = end
        # A copy, since the staging buffer is reused; a bytearray, since users may write into
        # arrays.
        return Blob(parts, [memoryview(bytearray(receiver.view[body:end]))], size)

    def receive_direct(self, signature: bytes, step: int, into: memoryview) -> bool:
        """Read header and payload at once, the payload directly into its place.

        Only if nothing is buffered: bytes are read into the caller's array before it is known what
        they are. Returns whether the whole frame came; a part of it, or another frame, is
        otherwise left to the receiver.
        """
        receiver, size = self.receiver, len(into)
        receiver.start = receiver.end = 0
        whole = self.connection.receive_whole
        count = self._read(whole, [receiver.view[:HEADER_BYTES], into])
        came = count - HEADER_BYTES
        wanted = came > 0 and receiver.buffer.startswith(signature + TAIL.pack(step, 0, size))
        if wanted and came == size:
            return True
        receiver.end = min(count, HEADER_BYTES)
        if wanted:
            receiver.parse()
            receiver.accept(into, came)
        elif came > 0:
            # Another frame came, for instance an ABORT. Its bytes landed in the caller's array,
            # which is overwritten when the right frame arrives.
            receiver.put_back(into[:came])
        return False

    def read_some(self) -> bool:
        """Read into the staging buffer, or directly into the place of a payload."""
        receiver = self.receiver
        if receiver.direct:
            count = self._read(self.connection.receive_whole, [receiver.room()])
        else:
            count = self._read(self._receive, receiver.room())
        receiver.arrived(count)
        return count > 0

    def read_now(self) -> bool:
        """Read what has arrived, without waiting; raises at the end of the stream."""
        count = self._read(self.connection.receive_available, self.receiver.room())
        self.receiver.arrived(count)
        return count > 0

    def _read(self, receive: Callable[[T], int], into: T) -> int:
        """Read once; returns the number of bytes, 0 if nothing came, and raises at the end."""
        try:
            count = receive(into)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._ended(error)
        # 0 bytes is how a socket says that the stream is over.
        return count or self._ended()

    def read_available(self) -> bool:
        """Read without waiting. The end of the stream is no failure here: the peer may have said
        goodbye, and no call waits for it."""
        while True:
            try:
                self.read_now()
            except ChannelEndedError:
                self.ended = True
                return False
            self.process_buffered(None)
            if not self.connection.pending:
                return True

    def drain_to_eof(self) -> None:
        """Read without waiting: what the peer sent before the end has arrived already."""
        try:
            while not self.ended and self.read_now():
                self.process_buffered(None)
        except ChannelEndedError:
            self.ended = True

    def process_buffered(self, pending: PendingReceive | None) -> bool:
        """Split the buffered bytes into frames, and keep those that are not wanted now.

        Raises if a frame shows that the pending one will never come.
        """
        if pending is not None and self.frames and self.take_kept(pending):
            return True
        receiver = self.receiver
        while True:
            if receiver.signature is None:
                try:
                    if not receiver.parse():
                        return False
                    receiver.accept(self._place(pending))
                except FrameError as error:
                    self._ended(error)
            # The payload is incomplete: its next bytes are read directly into their place.
            if not receiver.accept():
                return False
            if self.accept(receiver.finish(), pending):
                return True

    def _place(self, pending: PendingReceive | None) -> memoryview | None:
        """The memory for the next payload: the caller's, if the frame is the pending one."""
        receiver = self.receiver
        if pending is None or pending.into is None or pending.frame is not None or self.frames:
            return None
        # A frame with out-of-band buffers is a pickled object, not an array.
        if receiver.signature != pending.signature or receiver.parts:
            return None
        if receiver.step != pending.step and not pending.any_step:
            return None
        return pending.into if len(pending.into) == receiver.nbytes else None

    # --- the end -----------------------------------------------------------------------------

    def unanswered_for(self) -> float:
        return self.connection.unanswered_for()

    def interrupt(self) -> None:
        """End the stream in both directions."""
        self.connection.interrupt()

    def close(self, *, wait: bool = False) -> None:
        """End this side of the stream."""
        if not self.closed:
            self.closed = True
            self.connection.finish(wait=wait)

    def discard(self) -> None:
        """Close this process' copy."""
        if not self.closed:
            self.closed = True
            self.connection.discard()
