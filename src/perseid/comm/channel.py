"""Frames to and from one peer: what every channel does, and which frame is the wanted one.

A `socket_channel.SocketChannel` is over a connection, a `store_channel.StoreChannel` over a store.
A channel raises what happened to it; what that means for the other ranks is the business of
``failure``, and waiting for more is that of ``progress``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from perseid.comm.frames import Frame, FrameKind, Signature
from perseid.comm.objects import Blob, Buffer

_POINT = int(FrameKind.POINT)


class ChannelError(Exception):
    """Something that ends a channel; never shown to a user."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.rank = rank
        """The peer's rank in the world."""


class ChannelEndedError(ChannelError):
    """The connection ended or broke, or what came was not a frame."""

    def __init__(self, rank: int, cause: Exception | None = None) -> None:
        super().__init__(rank)
        self.cause = cause
        """None: the peer closed its end."""


class UnexpectedFrameError(ChannelError):
    """The frame that came shows that the peer is in another call."""

    def __init__(self, rank: int, mine: str = "", theirs: str = "") -> None:
        super().__init__(rank)
        self.mine, self.theirs = mine, theirs


class PendingReceive:
    """What a caller waits for on a channel."""

    __slots__ = ("any_step", "frame", "into", "signature", "step")

    def __init__(
        self, signature: bytes, step: int, into: memoryview | None, any_step: bool = False
    ) -> None:
        self.signature = signature
        self.step = step
        self.into = into
        """Where the payload goes; None: own memory, any length."""
        self.any_step = any_step
        self.frame: Frame | None = None
        """The frame, once all of it is here."""

    @property
    def call(self) -> Signature:
        """The call that it belongs to."""
        return Signature.unpack(self.signature)

    def matches(self, frame: Frame, rank: int) -> bool:
        """Whether a frame of the peer ``rank`` is the pending one.

        Raises
        ------
        UnexpectedFrameError
            It shows that the peer made another call.
        """
        if frame.signature == self.signature:
            return self.any_step or frame.step == self.step
        theirs, mine = Signature.unpack(frame.signature), self.call
        if theirs.comm != mine.comm:
            return False
        points = (theirs.kind == _POINT) + (mine.kind == _POINT)
        if points == 1:  # sends and collectives may overtake each other
            return False
        if points == 2 and not self.any_step and frame.step != self.step:
            return False  # a send with another tag
        raise UnexpectedFrameError(rank, str(mine), str(theirs))

    def deliver(self, frame: Frame, rank: int) -> None:
        """The pending frame is here: its payload goes to its place, if it is not there yet.

        Raises
        ------
        UnexpectedFrameError
            It has another length.
        """
        into = self.into
        if into is not None and frame.body is not into:
            if frame.parts or len(frame.body) != len(into):
                mine = f"{self.call} of {len(into)} bytes"
                raise UnexpectedFrameError(rank, mine, f"one of {len(frame.body)} bytes")
            into[:] = frame.body
        self.frame = frame


class PartlySent:
    """A frame of which the peer has not taken all bytes yet."""

    __slots__ = ("_send", "pieces")

    def __init__(
        self, send: Callable[[list[Buffer]], int], pieces: list[Buffer], sent: int
    ) -> None:
        self._send = send
        """Sends what the peer takes without waiting; the number of bytes."""
        self.pieces = [memoryview(piece) for piece in pieces if len(piece)]
        self._skip(sent)

    def _skip(self, sent: int) -> None:
        pieces = self.pieces
        while pieces and sent >= len(pieces[0]):
            sent -= len(pieces.pop(0))
        if sent:
            pieces[0] = pieces[0][sent:]

    def send_more(self) -> bool:
        """Send what the peer takes without waiting; whether that was all."""
        if self.pieces:
            self._skip(self._send(list(self.pieces)))
        return not self.pieces


class Channel(Protocol):
    """Frames to and from one peer."""

    rank: int
    """The peer's rank in the world."""
    transport: str
    """``direct``, ``relay`` or ``store``."""
    control_frames: list[Frame]
    """ABORT and WAITING frames that came and have not been looked at."""
    closed: bool

    def send(self, signature: bytes, step: int, data: Buffer) -> PartlySent | None:
        """Send raw bytes; what is left of the frame, if anything."""
        ...

    def send_blob(self, signature: bytes, step: int, blob: Blob) -> PartlySent | None:
        """The same for the pieces of a payload."""
        ...

    def send_frame(self, pieces: list[Buffer], total: int) -> PartlySent | None:
        """The same for a header and its payload, ``total`` bytes in all."""
        ...

    def receive_into(self, signature: bytes, step: int, into: memoryview) -> bool:
        """Receive raw bytes of exactly the length of ``into``, if they are what comes next."""
        ...

    def receive(self, signature: bytes, step: int, any_step: bool = False) -> Frame | None:
        """Receive a payload of any length into fresh memory, if it is what comes next."""
        ...

    def receive_direct(self, pending: PendingReceive) -> None:
        """Read straight to where a large payload goes, if nothing else can come before it."""
        ...

    def read_some(self) -> bool:
        """Read once; False if nothing came within the polling interval."""
        ...

    def read_available(self) -> bool:
        """Read what has arrived without waiting; False once the peer will send no more."""
        ...

    def drain_to_eof(self) -> None:
        """Read what a peer sent before it ended the stream."""
        ...

    def process_buffered(self, pending: PendingReceive | None) -> bool:
        """Go through the bytes that are here; whether the pending frame is complete."""
        ...

    def send_control(self, frame: bytes) -> None:
        """Send an ABORT or WAITING frame, if it can go at once."""
        ...

    def unanswered_for(self) -> float:
        """Seconds since the peer's host acknowledged anything, if data is on its way to it."""
        ...

    def interrupt(self) -> None:
        """Wake the thread that is blocked here; may be called from any thread."""
        ...

    def close(self) -> None:
        """Close, letting what was sent arrive."""
        ...

    def discard(self) -> None:
        """Drop the channel without telling the peer."""
        ...


class FrameQueue:
    """Frames that came before the one that is wanted, and which frame is the wanted one."""

    __slots__ = ("control_frames", "frames", "rank")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.frames: deque[Frame] = deque()
        """Complete frames that no call has asked for yet."""
        self.control_frames: list[Frame] = []

    def accept(self, frame: Frame, pending: PendingReceive | None) -> bool:
        """Sort a complete frame in; whether it is the pending one."""
        # The third byte is the kind (see `frames`): cheaper than unpacking all of the signature.
        if frame.signature[2] >= FrameKind.ABORT:
            self.control_frames.append(frame)
        elif pending is not None and pending.frame is None and pending.matches(frame, self.rank):
            pending.deliver(frame, self.rank)
            return True
        else:
            self.frames.append(frame)
        return False

    def take_kept(self, pending: PendingReceive) -> bool:
        """Deliver the pending frame if it came earlier."""
        for index, frame in enumerate(self.frames):
            if pending.matches(frame, self.rank):
                del self.frames[index]
                pending.deliver(frame, self.rank)
                return True
        return False
