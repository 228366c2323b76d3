"""Messages to and from one peer while several operations are in progress.

With one thread, a call of a communicator waits for one frame. A lane instead holds any number of
posted receives and unsent frames; the thread that moves its bytes completes whichever is next.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from perseid.comm.channel import ChannelEndedError, FrameQueue, PartlySent, PendingReceive
from perseid.comm.frames import BYTES, TAIL, Frame, FrameError, FrameKind, Signature
from perseid.comm.objects import Blob, Buffer
from perseid.comm.socket_channel import MAX_PIECES, SocketChannel

_MESSAGE_BYTES = 24
"""Leading bytes of a signature that all messages of a communicator share; the token follows."""
_ANSWER = 1
"""Value of the reduction field in a frame that only confirms that a message was received."""


def message_signature(comm: int, generation: int, token: int = 0) -> bytes:
    """The signature of point-to-point messages; a token asks the receiver to answer."""
    # Messages have no number of elements to agree on, so that field carries the token.
    return Signature(FrameKind.POINT, comm, generation, dtype=BYTES, elements=token).pack()


def answer_signature(signature: bytes) -> bytes | None:
    """The signature of the answer to a message; None if its sender does not wait for one."""
    sent = Signature.unpack(signature)
    if sent.kind != FrameKind.POINT or not sent.elements or sent.reduction:
        return None
    return sent._replace(reduction=_ANSWER).pack()


class Send:
    """A message that is being sent to a peer."""

    __slots__ = ("answer", "rank", "rest")

    def __init__(self, rank: int, rest: PartlySent | None, answer: Receive | None = None) -> None:
        self.rank = rank
        """The peer's rank in the world."""
        self.rest = rest
        """Bytes that have not been sent yet; None if all have."""
        self.answer = answer
        """The receiver's answer that it has asked for the message; None if nobody waits for it."""

    @property
    def done(self) -> bool:
        """Whether all is sent, so that the memory may be reused, and answered if necessary."""
        return self.rest is None and (self.answer is None or self.answer.done)


class Receive(PendingReceive):
    """A posted receive: a frame that an operation waits for.

    Parameters
    ----------
    ranks
        World ranks that the frame may come from.
    """

    __slots__ = ("claimed", "posted", "ranks", "source")

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
        """Whether a frame that is being received, or was, belongs to this receive."""
        self.posted = False
        """Whether a lane knows of it."""
        self.source = -1
        """World rank that the frame came from; -1 before it has come."""

    @property
    def done(self) -> bool:
        """Whether the frame has been received completely."""
        return self.frame is not None

    def place(self, frame: Frame, nbytes: int) -> memoryview | None:
        """The memory that can receive a frame's payload without a copy; None if it does not fit."""
        fits = self.into is not None and nbytes == len(self.into) and not frame.parts
        return self.into if fits else None


class ReceiveAnswer(Receive):
    """A receive for the answer to one message; no other frame of the peer matches it."""

    __slots__ = ()

    def matches(self, frame: Frame, rank: int) -> bool:
        """Whether a frame is the answer; it has the token of the message."""
        return frame.signature == self.signature


class ReceiveMessage(Receive):
    """A receive for a point-to-point message of any length.

    Parameters
    ----------
    room
        Memory for the payload, used if it is long enough; ``frame.body`` is then the used part.
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
        """Whether communicator and tag match; it makes no difference if the sender waits for an
        answer."""
        if frame.signature[:_MESSAGE_BYTES] != self.signature[:_MESSAGE_BYTES]:
            return False
        return self.any_step or frame.step == self.step

    def place(self, frame: Frame, nbytes: int) -> memoryview | None:
        """The beginning of ``room``, if the payload fits."""
        return self.room[:nbytes] if self.room is not None and nbytes <= len(self.room) else None


class AnyLane(Protocol):
    """All messages in progress between this rank and one peer."""

    queue: FrameQueue
    """Frames that came before anybody asked for them."""
    posted: list[Receive]
    """Receives whose frame has not come yet, oldest first."""

    def send(self, signature: bytes, step: int, blob: Blob) -> Send:
        """Send what the socket takes at once; the rest follows when it takes more."""
        ...

    def post(self, want: Receive) -> None:
        """Complete a receive with a frame that came earlier, or keep it until one comes.

        Raises a `ChannelError` if none can come any more.
        """
        ...


def _answer(lane: AnyLane, frame: Frame) -> None:
    """Answer a sender that waits until the receiver has asked for its message."""
    if frame.signature[2] == FrameKind.POINT and (answer := answer_signature(frame.signature)):
        lane.send(answer, 0, Blob(0, [b""], 0))


def _take_kept(lane: AnyLane, want: Receive) -> bool:
    """Complete a receive if its frame came before it was posted; returns whether it did."""
    if want.claimed or not lane.queue.take_kept(want):
        return False
    want.claimed, want.source = True, lane.queue.rank
    assert want.frame is not None
    _answer(lane, want.frame)
    return True


class SelfLane:
    """The messages that a rank sends to itself."""

    def __init__(self, rank: int) -> None:
        self.queue = FrameQueue(rank)
        self.posted: list[Receive] = []

    def send(self, signature: bytes, step: int, blob: Blob) -> Send:
        """Send a copy of the message, so that its sender may reuse the memory at once."""
        # A bytearray, since the receiver may write into the arrays that it gets.
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
    """Messages to and from another rank, over a socket."""

    def __init__(self, channel: SocketChannel) -> None:
        self.channel = channel
        self.queue: FrameQueue = channel
        self.posted: list[Receive] = []
        self.outgoing: deque[Send] = deque()
        self.readable = (channel.fileno(), select.EPOLLIN)
        """The event of epoll that there are bytes to read."""
        self._claimed: Receive | None = None

    @property
    def quiet(self) -> bool:
        """Whether nothing is posted, sent or received, so that the next byte begins a frame."""
        channel = self.channel
        receiver = channel.receiver
        return not (
            self.posted
            or self.outgoing
            or channel.frames
            or channel.ended
            or channel.connection.pending
            or receiver.signature is not None
            or receiver.start != receiver.end
        )

    @property
    def needed(self) -> bool:
        """Whether an operation of this rank needs this peer: a receive from any rank does not."""
        if self.outgoing or self._claimed is not None:
            return True
        return any(len(want.ranks) == 1 and not want.claimed for want in self.posted)

    @property
    def missing(self) -> int:
        """Bytes of the payload in progress that have not come yet."""
        receiver = self.channel.receiver
        return len(receiver.room()) if receiver.direct else 0

    # --- sending -----------------------------------------------------------------------------

    def send(self, signature: bytes, step: int, blob: Blob) -> Send:
        channel = self.channel
        if not self.outgoing:
            send = Send(channel.rank, channel.send_blob(signature, step, blob))
        else:
            # Messages leave in the order of their sends: behind one that waits, all others wait.
            head: Buffer = signature + TAIL.pack(step, blob.parts, blob.nbytes)
            pieces = [head, *blob.pieces] if len(blob.pieces) < MAX_PIECES else [head, blob.flat()]
            send = Send(channel.rank, PartlySent(channel.start, pieces, 0))
        self._keep(send)
        return send

    def send_bytes(self, signature: bytes, step: int, data: Buffer) -> Send:
        """`send` for one piece of memory, the fast path."""
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
        """Send more of the waiting messages; returns whether one of them is now complete."""
        finished = False
        while self.outgoing:
            send = self.outgoing[0]
            assert send.rest is not None
            if not send.rest.send_more():
                break
            self.outgoing.popleft()
            send.rest, finished = None, True
        # Control frames may go out only between two messages.
        self.channel.sending = bool(self.outgoing)
        return finished

    # --- receiving ---------------------------------------------------------------------------

    def post(self, want: Receive) -> None:
        if _take_kept(self, want):
            return
        if not self.channel.ended:
            # Drop receives that another rank has served meanwhile, or that were canceled.
            claimed = self._claimed
            self.posted = [one for one in self.posted if not one.claimed or one is claimed]
            self.posted.append(want)
            want.posted = True
        elif len(want.ranks) == 1:
            raise ChannelEndedError(self.channel.rank)

    def read(self) -> bool:
        """Read what has arrived; returns whether a posted receive is now complete.

        Raises
        ------
        ChannelError
            A posted receive can never be completed.
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

    def receive_next(self, signature: bytes, step: int, into: memoryview) -> bool:
        """Receive a small frame that nobody has posted; False if another one came.

        Only while the lane is `quiet`, and readable.
        """
        channel = self.channel
        try:
            came = channel.read_now() and channel.receive_into(signature, step, into)
        except ChannelEndedError:
            channel.ended = True
            raise
        # More may have come with it, of which polling the descriptor says nothing.
        if channel.connection.pending:
            self.read()
        elif not channel.receiver.idle:
            self.sort()
        return came

    def begun(self, want: Receive, complete: bool) -> None:
        """Post a receive whose frame `SocketChannel.receive_direct` has read, or begun to read."""
        self.posted.append(want)
        want.posted = True
        if complete and want.into is not None:
            want.claimed = True
            self._complete(Frame(want.signature, want.step, 0, want.into), want)
        # Otherwise another frame came: it is in the staging buffer, or only a part of a header.
        elif self.channel.receiver.direct:
            want.claimed, self._claimed = True, want
        self.sort()
        if self.channel.connection.pending:
            self.read()

    def end(self, error: ChannelEndedError) -> bool:
        """Note that the peer has left or is lost; raises the error if an operation needs it."""
        self.channel.ended = True
        # A peer may leave when nothing is needed from it; a broken connection is always a failure.
        if self.needed or error.cause is not None:
            raise error
        return False

    def sort(self) -> bool:
        """Split the bytes that were read into frames; returns whether a receive is now complete."""
        receiver, finished = self.channel.receiver, False
        while True:
            if receiver.signature is None:
                try:
                    if not receiver.parse():
                        return finished
                except FrameError as error:
                    raise ChannelEndedError(self.channel.rank, error) from None
                # As soon as the header is here: the payload can then go directly to its place.
                receiver.accept(self._claim())
            if not receiver.accept():
                return finished
            frame, claimed, self._claimed = receiver.finish(), self._claimed, None
            finished = self._complete(frame, claimed) or finished

    def _claim(self) -> memoryview | None:
        """Find the receive that an arriving frame belongs to; returns memory for its payload."""
        receiver = self.channel.receiver
        assert receiver.signature is not None
        frame = Frame(receiver.signature, receiver.step, receiver.parts, memoryview(b""))
        # Control frames belong to no receive.
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
        # A matching receive may have been posted while the payload was arriving.
        for want in self.posted:
            if _take_kept(self, want):
                self.posted.remove(want)
                return True
        return False
