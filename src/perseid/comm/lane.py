"""Messages to and from one peer when several operations are under way at once.

A call of a communicator of one thread waits for one frame. A lane has any number of posted
receives and of frames that are still to be sent; whoever moves its bytes completes whichever of
them is next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from perseid.comm.channel import ChannelEndedError, FrameQueue, PartlySent, PendingReceive
from perseid.comm.frames import BYTES, TAIL, Frame, FrameError, FrameKind, Signature
from perseid.comm.objects import Blob, Buffer
from perseid.comm.socket_channel import MAX_PIECES, SocketChannel

_MESSAGE_BYTES = 24
"""Of a signature, those that all messages of a communicator share; the rest is the token."""
_ANSWER = 1
"""In the place of the reduction: the frame only says that a message was received."""


def message_signature(comm: int, generation: int, token: int = 0) -> bytes:
    """The signature of messages from rank to rank; with a token the receiver answers."""
    return Signature(FrameKind.POINT, comm, generation, dtype=BYTES, elements=token).pack()


def answer_signature(signature: bytes) -> bytes | None:
    """The signature of the answer that the sender of a message waits for, if it does."""
    sent = Signature.unpack(signature)
    if sent.kind != FrameKind.POINT or not sent.elements or sent.reduction:
        return None
    return sent._replace(reduction=_ANSWER).pack()


class Send:
    """A message on its way to a peer."""

    __slots__ = ("answer", "rank", "rest")

    def __init__(self, rank: int, rest: PartlySent | None, answer: Receive | None = None) -> None:
        self.rank = rank
        """The peer's rank in the world."""
        self.rest = rest
        self.answer = answer
        """What the receiver says once it has asked for the message, where that is waited for."""

    @property
    def done(self) -> bool:
        """Whether the message is sent, so that its memory may be changed, and answered."""
        return self.rest is None and (self.answer is None or self.answer.done)


class Receive(PendingReceive):
    """A frame that somebody wants.

    Parameters
    ----------
    ranks
        World ranks that it may come from.
    """

    __slots__ = ("claimed", "ranks", "source")

    def __init__(
        self,
        ranks: Sequence[int],
        signature: bytes,
        step: int,
        into: memoryview | None = None,
        any_step: bool = False,
    ) -> None:
        super().__init__(signature, step, into, any_step)
        self.ranks = ranks
        self.claimed = False
        """Whether a frame that has begun to come is the wanted one."""
        self.source = -1
        """The world rank that it came from."""

    @property
    def done(self) -> bool:
        """Whether all of it is here."""
        return self.frame is not None

    def place(self, frame: Frame, nbytes: int) -> memoryview | None:
        """Where the payload of a frame that fits goes without a copy."""
        fits = self.into is not None and nbytes == len(self.into) and not frame.parts
        return self.into if fits else None


class ReceiveAnswer(Receive):
    """The answer to one message: whatever else comes from the peer is not for it."""

    __slots__ = ()

    def matches(self, frame: Frame, rank: int) -> bool:
        """An answer bears the token of its message."""
        return frame.signature == self.signature


class ReceiveMessage(Receive):
    """A message from rank to rank, of any length.

    Parameters
    ----------
    room
        Where its payload goes if there is space enough; ``frame.body`` then is the used part of it.
    """

    __slots__ = ("room",)

    def __init__(
        self,
        ranks: Sequence[int],
        signature: bytes,
        tag: int | None,
        room: memoryview | None = None,
    ) -> None:
        super().__init__(ranks, signature, tag or 0, None, tag is None)
        self.room = room

    def matches(self, frame: Frame, rank: int) -> bool:
        """Messages match by communicator and tag, whether their senders wait for an answer or
        not."""
        if frame.signature[:_MESSAGE_BYTES] != self.signature[:_MESSAGE_BYTES]:
            return False
        return self.any_step or frame.step == self.step

    def place(self, frame: Frame, nbytes: int) -> memoryview | None:
        """The beginning of the room."""
        return self.room[:nbytes] if self.room is not None and nbytes <= len(self.room) else None


class AnyLane(Protocol):
    """All messages that are under way between this rank and one peer."""

    queue: FrameQueue
    posted: list[Receive]

    def send(self, signature: bytes, step: int, blob: Blob) -> Send:
        """Send what the peer takes at once; the rest follows when it takes more."""
        ...

    def post(self, want: Receive) -> None:
        """Take what came already, or wait for it; raises a `ChannelError` where it cannot come."""
        ...


def _answer(lane: AnyLane, frame: Frame) -> None:
    """Answer a sender that waits until its message has been asked for."""
    if frame.signature[2] == FrameKind.POINT and (answer := answer_signature(frame.signature)):
        lane.send(answer, 0, Blob(0, [b""], 0))


def _take_kept(lane: AnyLane, want: Receive) -> bool:
    """Complete a receive whose frame came before it was posted."""
    if want.claimed or not lane.queue.take_kept(want):
        return False
    want.claimed, want.source = True, lane.queue.rank
    assert want.frame is not None
    _answer(lane, want.frame)
    return True


class SelfLane:
    """The messages of a rank to itself."""

    def __init__(self, rank: int) -> None:
        self.queue = FrameQueue(rank)
        self.posted: list[Receive] = []

    def send(self, signature: bytes, step: int, blob: Blob) -> Send:
        """The message is copied: its sender may change the memory at once."""
        body = memoryview(bytearray(blob.flat()))
        self.queue.accept(Frame(signature, step, blob.parts, body), None)
        for want in self.posted:
            if _take_kept(self, want):
                self.posted.remove(want)
                break
        return Send(self.queue.rank, None)

    def post(self, want: Receive) -> None:
        if not _take_kept(self, want):
            self.posted = [other for other in self.posted if not other.claimed]
            self.posted.append(want)


class PeerLane:
    """The messages and frames to and from another rank, over a socket."""

    def __init__(self, channel: SocketChannel) -> None:
        self.channel = channel
        self.queue: FrameQueue = channel
        self.posted: list[Receive] = []
        self.outgoing: deque[Send] = deque()
        self._claimed: Receive | None = None

    @property
    def needed(self) -> bool:
        """Whether an operation of this rank cannot do without the peer."""
        if self.outgoing or self._claimed is not None:
            return True
        return any(len(want.ranks) == 1 and not want.claimed for want in self.posted)

    @property
    def missing(self) -> int:
        """Bytes that have not come of the payload that is being received."""
        receiver = self.channel.receiver
        return len(receiver.room()) if receiver.direct else 0

    # --- sending -----------------------------------------------------------------------------

    def send(self, signature: bytes, step: int, blob: Blob) -> Send:
        channel = self.channel
        if not self.outgoing:
            send = Send(channel.rank, channel.send_blob(signature, step, blob))
        else:
            head: Buffer = signature + TAIL.pack(step, blob.parts, blob.nbytes)
            pieces = [head, *blob.pieces] if len(blob.pieces) < MAX_PIECES else [head, blob.flat()]
            send = Send(channel.rank, PartlySent(channel.start, pieces, 0))
        self._keep(send)
        return send

    def send_bytes(self, signature: bytes, step: int, data: Buffer) -> Send:
        """`send` of one piece, the quick way."""
        if self.outgoing:
            return self.send(signature, step, Blob(0, [data], len(data)))
        send = Send(self.channel.rank, self.channel.send(signature, step, data))
        self._keep(send)
        return send

    def _keep(self, send: Send) -> None:
        if send.rest is not None:
            self.outgoing.append(send)
            self.channel.sending = True

    def flush(self) -> bool:
        """Send more of what waits; whether a message is complete that was not."""
        finished = False
        while self.outgoing:
            send = self.outgoing[0]
            assert send.rest is not None
            if not send.rest.send_more():
                break
            self.outgoing.popleft()
            send.rest, finished = None, True
        self.channel.sending = bool(self.outgoing)
        return finished

    # --- receiving ---------------------------------------------------------------------------

    def post(self, want: Receive) -> None:
        if _take_kept(self, want):
            return
        if not self.channel.ended:
            # Others may have come from another rank meanwhile, or are not wanted any more.
            claimed = self._claimed
            self.posted = [one for one in self.posted if not one.claimed or one is claimed]
            self.posted.append(want)
        elif len(want.ranks) == 1:
            raise ChannelEndedError(self.channel.rank)

    def read(self) -> bool:
        """Take in what is here; whether a posted receive is complete that was not.

        Raises
        ------
        ChannelError
            A posted receive will never be complete.
        """
        finished = False
        while True:
            try:
                self.channel.read_now()
            except ChannelEndedError as error:
                return self.end(error) or finished
            finished = self.sort() or finished
            if not self.channel.connection.pending:
                return finished

    def end(self, error: ChannelEndedError) -> bool:
        """The peer has left, or is lost: raise the error if that matters to an operation."""
        self.channel.ended = True
        if self.needed or error.cause is not None:
            raise error
        return False

    def sort(self) -> bool:
        """Go through the bytes that were read."""
        receiver, finished = self.channel.receiver, False
        while True:
            if receiver.signature is None:
                try:
                    if not receiver.parse():
                        return finished
                except FrameError as error:
                    raise ChannelEndedError(self.channel.rank, error) from None
                receiver.accept(self._claim())
            if not receiver.accept():
                return finished
            frame, claimed, self._claimed = receiver.finish(), self._claimed, None
            finished = self._complete(frame, claimed) or finished

    def _claim(self) -> memoryview | None:
        """Find the receive that an arriving frame belongs to; returns the place for its payload."""
        receiver = self.channel.receiver
        assert receiver.signature is not None
        frame = Frame(receiver.signature, receiver.step, receiver.parts, memoryview(b""))
        if frame.signature[2] >= FrameKind.ABORT:
            return None
        for want in self.posted:
            if not want.claimed and want.matches(frame, self.channel.rank):
                want.claimed, self._claimed = True, want
                return want.place(frame, receiver.nbytes)
        return None

    def _complete(self, frame: Frame, claimed: Receive | None) -> bool:
        if claimed is not None:
            claimed.deliver(frame, self.channel.rank)
            claimed.source = self.channel.rank
            self.posted.remove(claimed)
            _answer(self, frame)
            return True
        self.channel.accept(frame, None)
        for want in self.posted:  # one may have been posted while the frame was coming
            if _take_kept(self, want):
                self.posted.remove(want)
                return True
        return False
