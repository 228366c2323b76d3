"""One connection to a peer: frames in and out, from the thread that communicates.

A small message is one ``send`` and one ``recv``; a large payload goes from and to the caller's
memory. No thread stands between: a blocked call wakes every ``TICK_SECONDS`` to look around, and at
once when the control connection reports a loss, which shuts the socket down.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING

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
from perseid.comm.outgoing import Outgoing
from perseid.rendezvous.net.liveness import watch_link

if TYPE_CHECKING:
    from perseid.comm.engine import Engine

TICK_SECONDS = 0.25
"""How often a blocked call looks around (in larger worlds less often): the time until a mismatch
between two waiting ranks is found is a few of these."""
JOINED_BYTES = 16 * 1024
"""Payloads up to this are copied behind their header: cheaper than a scattered write."""
LOCAL_CONGESTION = b"reno"
"""Congestion control between ranks of one machine, where nothing can be congested: the pacing of
others (BBR) costs a fifth of the kernel's time there. Every Linux has this one."""
MAX_PIECES = 512
"""Pieces of memory in one scattered write; the kernel takes 1024."""
_CONGESTION: int | None = getattr(socket, "TCP_CONGESTION", None)
_POINT = int(Kind.POINT)
_DONTWAIT: int = getattr(socket, "MSG_DONTWAIT", 0)  # Windows has none, and no epoll
_WAITALL: int = getattr(socket, "MSG_WAITALL", 0)


class Want:
    """What the caller waits for on a channel."""

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
        """The frame, once it is whole."""

    @property
    def what(self) -> Signature:
        """The call that it belongs to."""
        return Signature.unpack(self.signature)


class Channel:
    """Frames over a connected socket.

    Parameters
    ----------
    rank
        The peer's rank in the world.
    sock
        Connected and blocking; the channel owns it.
    engine
        Told of failures, and asked what to do when nothing comes.
    way
        ``direct`` or ``relay`` (or ``store``: see ``store.StoreChannel``).
    """

    __slots__ = ("_recv_into", "_recvmsg_into", "_send", "closed", "ended", "engine", "frames",
                 "rank", "receiver", "sending", "sock", "way")  # fmt: skip

    def __init__(self, rank: int, sock: socket.socket, engine: Engine, way: str) -> None:
        sock.setblocking(True)
        whole, part = divmod(engine.tick_seconds, 1)
        timeval = struct.pack("@ll", int(whole), int(part * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        watch_link(sock, engine.losses.link)
        with contextlib.suppress(OSError):  # a socket pair has no such option
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if _CONGESTION and sock.getsockname()[0] == sock.getpeername()[0]:
                sock.setsockopt(socket.IPPROTO_TCP, _CONGESTION, LOCAL_CONGESTION)
        self.rank, self.sock, self.engine, self.way = rank, sock, engine, way
        self.receiver = Receiver()
        self.frames: deque[Frame] = deque()
        """Whole frames that nobody has asked for yet."""
        self.sending = False
        """Whether a frame is partly sent, so that nothing else may be sent between."""
        self.closed = False
        self.ended = False
        """Whether the peer's end of the stream was read."""
        self._send = sock.send
        self._recv_into = sock.recv_into
        self._recvmsg_into = sock.recvmsg_into

    # --- sending -----------------------------------------------------------------------------

    def send(self, signature: bytes, step: int, data: Buffer) -> None:
        """Send raw bytes."""
        size = len(data)
        head = signature + TAIL.pack(step, 0, size)
        if size > JOINED_BYTES:
            self.send_pieces([head, data], HEADER_BYTES + size)
            return
        message = head + data
        try:
            sent = self._send(message, _DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.engine.broken(self, error)
        if sent != len(message):
            self._finish([message], sent)

    def send_blob(self, signature: bytes, step: int, blob: Blob) -> None:
        """Send the pieces of a payload."""
        head = signature + TAIL.pack(step, blob.parts, blob.nbytes)
        if len(blob.pieces) >= MAX_PIECES or blob.nbytes <= JOINED_BYTES:
            self.send_pieces([head + blob.flat()], HEADER_BYTES + blob.nbytes)
        else:
            self.send_pieces([head, *blob.pieces], HEADER_BYTES + blob.nbytes)

    def send_pieces(self, pieces: list[Buffer], total: int) -> None:
        """Send a frame that lies in several pieces of memory."""
        sent = self.start(pieces)
        if sent != total:
            self._finish(pieces, sent)

    def start(self, pieces: list[Buffer]) -> int:
        """Send what goes without waiting; the number of bytes."""
        try:
            return self.sock.sendmsg(pieces, (), _DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.engine.broken(self, error)

    def _finish(self, pieces: list[Buffer], sent: int) -> None:
        Outgoing(self, pieces, sent).finish()

    # --- receiving ---------------------------------------------------------------------------

    def receive_into(self, signature: bytes, step: int, into: memoryview) -> None:
        """Receive raw bytes of exactly the length of ``into``.

        Raises
        ------
        MismatchedCollectiveError
            The peer is in another call, or sends another length.
        PeerLostError, RendezvousTimeoutError, ClosedError
            Nothing will come.
        """
        receiver = self.receiver
        size = len(into)
        if size <= JOINED_BYTES and receiver.signature is None and not self.frames:
            start = receiver.start
            if start == receiver.end:
                self._refill()
                start = 0
            body = start + HEADER_BYTES
            end = body + size
            if receiver.end >= end and receiver.buffer.startswith(
                signature + TAIL.pack(step, 0, size), start
            ):
                into[:] = receiver.view[body:end]
                receiver.start = end
                return
        self.wait(Want(signature, step, into))

    def receive(self, signature: bytes, step: int, any_step: bool = False) -> Frame:
        """Receive a payload of any length into fresh memory; raises as ``receive_into``."""
        receiver = self.receiver
        if receiver.signature is None and not self.frames:
            if receiver.start == receiver.end:
                self._refill()
            start = receiver.start
            body = start + HEADER_BYTES
            if receiver.end >= body and receiver.buffer.startswith(signature, start):
                came, parts, size = TAIL.unpack_from(receiver.buffer, start + SIGNATURE_BYTES)
                end = body + size
                if receiver.end >= end and (came == step or any_step):
                    receiver.start = end
                    copy = memoryview(bytearray(receiver.view[body:end]))
                    return Frame(signature, came, parts, copy)
        return self.wait(Want(signature, step, None, any_step))

    def _refill(self) -> None:
        """Read into the empty staging buffer; nothing may come in the time of a tick."""
        receiver = self.receiver
        receiver.start = receiver.end = 0
        try:
            count = self._recv_into(receiver.buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self.engine.broken(self, error)
        if not count:
            self.engine.broken(self, None)
        receiver.end = count

    def wait(self, want: Want) -> Frame:
        """Receive what is wanted, keeping other frames for later."""
        if want.into is not None and len(want.into) > JOINED_BYTES:
            self._straight(want, want.into)
        ticks = 0
        while not self.digest(want):
            if not self.pump(False):
                ticks += 1
                self.engine.tick(self, want, ticks)
        frame = want.frame
        assert frame is not None
        return frame

    def _straight(self, want: Want, into: memoryview) -> None:
        """Read header and payload at once, the payload straight to its place, if nothing else is
        here; what came instead goes through the staging buffer."""
        receiver = self.receiver
        if want.any_step or self.frames or not receiver.idle:
            return
        receiver.start = receiver.end = 0
        count = self._arriving([receiver.view[:HEADER_BYTES], into], _WAITALL)
        receiver.end = min(count, HEADER_BYTES)
        came = max(0, count - HEADER_BYTES)
        if came and not receiver.buffer.startswith(
            want.signature + TAIL.pack(want.step, 0, len(into))
        ):
            receiver.put_back(into[:came])
        elif came:
            receiver.parse()
            receiver.accept(into, came)

    def pump(self, at_once: bool) -> bool:
        """Read once; False if nothing came in the time of a tick (or at once).

        Raises
        ------
        PeerLostError
            The connection ended.
        """
        receiver = self.receiver
        flags = _DONTWAIT if at_once else (_WAITALL if receiver.direct else 0)
        count = self._arriving([receiver.room()], flags)
        receiver.arrived(count)
        return count > 0

    def _arriving(self, places: list[memoryview], flags: int) -> int:
        """Read into these places; 0 if nothing came in the time of a tick (or at once)."""
        try:
            count: int = self._recvmsg_into(places, 0, flags)[0]
        except BlockingIOError:
            return 0
        except OSError as error:
            self.engine.broken(self, error)
        if not count:
            self.engine.broken(self, None)
        return count

    def drain(self) -> bool:
        """Take in what is here without waiting; False once the peer will send no more.

        An end is no failure yet: the peer may have left in peace, and nobody waits for it.
        """
        try:
            count = self._recv_into(self.receiver.room(), 0, _DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            count = 0
        if not count:
            self.ended = True
            self.engine.unwatch(self)
            return False
        self.receiver.arrived(count)
        self.digest(None)
        return True

    def last_words(self) -> None:
        """Read what the peer sent before its end; raises the failure that it reported, if any."""
        receiver = self.receiver
        while not self.ended:
            try:
                count = self._recv_into(receiver.room(), 0, _DONTWAIT)
            except OSError:
                return
            self.ended = not count
            receiver.arrived(count)
            self.digest(None)

    def digest(self, want: Want | None) -> bool:
        """Go through the bytes that are here; whether the wanted frame is whole.

        Frames that are not wanted are kept. Raises ``MismatchedCollectiveError`` where what came
        shows that the peer will never send what is wanted.
        """
        if want is not None and self.frames and self._kept(want):
            return True
        receiver = self.receiver
        while True:
            if receiver.signature is None:
                try:
                    if not receiver.parse():
                        return False
                    receiver.accept(self._place(want))
                except FrameError as error:
                    self.engine.broken(self, error)
            if not receiver.accept():
                return False
            frame = receiver.finish()
            if frame.signature[2] >= Kind.ABORT:
                self.engine.control(self, frame)
            elif want is not None and want.frame is None and self._fits(want, frame):
                self._deliver(want, frame)
                return True
            else:
                self.frames.append(frame)

    def _place(self, want: Want | None) -> memoryview | None:
        """Where the payload that comes goes: in place if it is the wanted one."""
        receiver = self.receiver
        if want is None or want.into is None or want.frame is not None or self.frames:
            return None
        if receiver.signature != want.signature or receiver.parts:
            return None
        if receiver.step != want.step and not want.any_step:
            return None
        return want.into if len(want.into) == receiver.nbytes else None

    def _kept(self, want: Want) -> bool:
        for index, frame in enumerate(self.frames):
            if self._fits(want, frame):
                del self.frames[index]
                self._deliver(want, frame)
                return True
        return False

    def _fits(self, want: Want, frame: Frame) -> bool:
        """Whether a frame is the wanted one; raises if it proves that another call was made."""
        if frame.signature == want.signature:
            return want.any_step or frame.step == want.step
        theirs, mine = Signature.unpack(frame.signature), want.what
        if theirs.comm != mine.comm:
            return False
        points = (theirs.kind == _POINT) + (mine.kind == _POINT)
        if points != 1 and not (points == 2 and not want.any_step and frame.step != want.step):
            self.engine.mismatch(self, mine, theirs)
        return False

    def _deliver(self, want: Want, frame: Frame) -> None:
        into = want.into
        if into is not None and frame.body is not into:
            if frame.parts or len(frame.body) != len(into):
                self.engine.mismatched_size(self, want.what, len(into), len(frame.body))
            into[:] = frame.body
        want.frame = frame

    def control_frame(self, frame: bytes) -> None:
        """Send an ABORT or WAITING frame if it goes at once and fits between two frames."""
        if not (self.sending or self.closed):
            with contextlib.suppress(OSError):
                self._send(frame, _DONTWAIT)

    # --- the end -----------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Wake whoever is blocked here; safe from every thread."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close, letting what was sent arrive: unread bytes would turn the close into a reset."""
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
            for _ in range(64):
                if not self._recv_into(self.receiver.view, 0, _DONTWAIT):
                    break
        self.sock.close()
