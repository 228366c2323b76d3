"""Frames to and from one peer: the interface of a channel, and how a wanted frame is found.

A `socket_channel.SocketChannel` uses a connection, a `store_channel.StoreChannel` an object store.
A channel only raises what happened to it: ``failure`` decides what that means for the other ranks,
and ``progress`` waits for more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from perseid.comm.frames import Frame, FrameKind, Signature
from perseid.comm.objects import Blob, Buffer

_POINT = int(FrameKind.POINT)


class ChannelError(Exception):
    """An event that ends a channel; always translated before a user sees it."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.rank = rank
        """The peer's rank in the world."""


class ChannelEndedError(ChannelError):
    """The connection ended or broke, or the bytes that came were not a frame."""

    def __init__(self, rank: int, cause: Exception | None = None) -> None:
        super().__init__(rank)
        self.cause = cause
        """What broke the connection; None if the peer closed its end."""


class UnexpectedFrameError(ChannelError):
    """A frame came that shows the peer to be in another call."""

    def __init__(self, rank: int, mine: str = "", theirs: str = "") -> None:
        super().__init__(rank)
        self.mine, self.theirs = mine, theirs


class PendingReceive:
    """The frame that a caller waits for on a channel."""

    __slots__ = ("any_step", "frame", "into", "signature", "step")

    def __init__(
        self, signature: bytes, step: int, into: memoryview | None, any_step: bool = False
    ) -> None:
        self.signature = signature
        self.step = step
        self.into = into
        """Memory that receives the payload; None: new memory, for a payload of any length."""
        self.any_step = any_step
        self.frame: Frame | None = None
        """The frame, once it has been received completely; None before that."""

    @property
    def call(self) -> Signature:
        """The call that the frame belongs to."""
        return Signature.unpack(self.signature)

    @property
    def blob(self) -> Blob:
        """The payload, once it has been received completely."""
        assert self.frame is not None
        return Blob(self.frame.parts, [self.frame.body], len(self.frame.body))

    def matches(self, frame: Frame, rank: int) -> bool:
        """Whether a frame of the peer ``rank`` is the pending one.

        Raises
        ------
        UnexpectedFrameError
            The frame shows that the peer made another call.
        """
        if frame.signature == self.signature:
            return self.any_step or frame.step == self.step
        theirs, mine = Signature.unpack(frame.signature), self.call
        # Calls of different communicators are independent of each other.
        if theirs.comm != mine.comm:
            return False
        points = (theirs.kind == _POINT) + (mine.kind == _POINT)
        # A send and a collective may overtake each other, as in MPI.
        if points == 1:
            return False
        if points == 2 and not self.any_step and frame.step != self.step:
            return False  # a send with another tag
        raise UnexpectedFrameError(rank, str(mine), str(theirs))

    def deliver(self, frame: Frame, rank: int) -> None:
        """Complete the receive with its frame; copies the payload to its place if necessary.

        Raises
        ------
        UnexpectedFrameError
            The payload has another length than the memory for it.
        """
        into = self.into
        if into is not None and frame.body is not into:
            # A pickled object never belongs in an array, even if its length matches.
            if frame.parts or len(frame.body) != len(into):
                mine = f"{self.call} of {len(into)} bytes"
                raise UnexpectedFrameError(rank, mine, f"one of {len(frame.body)} bytes")
            into[:] = frame.body
        self.frame = frame


class PartlySent:
    """A frame of which the socket has not taken all bytes yet."""

    __slots__ = ("_send", "pieces")

    def __init__(
        self, send: Callable[[list[Buffer]], int], pieces: list[Buffer], sent: int
    ) -> None:
        self._send = send
        """Function that sends what the socket takes without waiting, and returns the number of
        bytes."""
        self.pieces = [memoryview(piece) for piece in pieces if len(piece)]
        self._skip(sent)

    def _skip(self, sent: int) -> None:
        pieces = self.pieces
        while pieces and sent >= len(pieces[0]):
            sent -= len(pieces.pop(0))
        if sent:
            pieces[0] = pieces[0][sent:]

    def send_more(self) -> bool:
        """Send what the socket takes without waiting; returns whether that was everything."""
        if self.pieces:
            self._skip(self._send(list(self.pieces)))
        return not self.pieces


class Channel(Protocol):
    """Sends frames to one peer, and receives frames from it."""

    rank: int
    """The peer's rank in the world."""
    transport: str
    """``direct``, ``relay`` or ``store``."""
    control_frames: list[Frame]
    """ABORT and WAITING frames that were received and not handled yet."""
    closed: bool

    def send(self, signature: bytes, step: int, data: Buffer, parts: int = 0) -> PartlySent | None:
        """Send a payload in one piece; returns the unsent rest of the frame, or None."""
        ...

    def send_blob(self, signature: bytes, step: int, blob: Blob) -> PartlySent | None:
        """`send` for a payload in several pieces."""
        ...

    def receive_into(self, signature: bytes, step: int, into: memoryview) -> bool:
        """Receive raw bytes that fill ``into`` exactly; False if something else comes first."""
        ...

    def receive(self, signature: bytes, step: int, any_step: bool = False) -> Blob | None:
        """Receive a payload of any length into new memory; None if something else comes first."""
        ...

    def read_some(self) -> bool:
        """Read once; returns False if nothing came within the polling interval."""
        ...

    def read_available(self) -> bool:
        """Read what has arrived, without waiting; returns False once the peer will send no more."""
        ...

    def drain_to_eof(self) -> None:
        """Read everything that the peer sent before it ended the stream."""
        ...

    def process_buffered(self, pending: PendingReceive | None) -> bool:
        """Split the buffered bytes into frames; returns whether the pending frame is complete."""
        ...

    def send_control(self, frame: bytes) -> None:
        """Send an ABORT or WAITING frame, if that is possible without waiting."""
        ...

    def unanswered_for(self) -> float:
        """Seconds since the peer's host last answered, if data is in flight to it; otherwise 0."""
        ...

    def interrupt(self) -> None:
        """Wake a thread that is blocked on this channel; may be called from any thread."""
        ...

    def close(self, *, wait: bool = False) -> None:
        """Close the channel; everything that was sent still arrives.

        `wait` does so until the peer's host has it, also if the network loses packets.
        """
        ...

    def discard(self) -> None:
        """Release the channel without telling the peer."""
        ...


class FrameQueue:
    """Keeps frames that arrived before they were asked for, in their order."""

    __slots__ = ("control_frames", "frames", "rank")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.frames: deque[Frame] = deque()
        """Complete frames that no call has asked for yet."""
        self.control_frames: list[Frame] = []

    def accept(self, frame: Frame, pending: PendingReceive | None) -> bool:
        """Deliver or keep a complete frame; returns whether it is the pending one."""
        # The third byte is the kind (see `frames`); reading it is cheaper than unpacking the whole
        # signature.
        if frame.signature[2] >= FrameKind.ABORT:
            self.control_frames.append(frame)
        elif pending is not None and pending.frame is None and pending.matches(frame, self.rank):
            pending.deliver(frame, self.rank)
            return True
        else:
            self.frames.append(frame)
        return False

    def take_kept(self, pending: PendingReceive) -> bool:
        """Deliver the pending frame if it arrived earlier; returns whether it did."""
        # Oldest first: messages with the same tag must not overtake each other.
        for index, frame in enumerate(self.frames):
            if pending.matches(frame, self.rank):
                del self.frames[index]
                pending.deliver(frame, self.rank)
                return True
        return False
