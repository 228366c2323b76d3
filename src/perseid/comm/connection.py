"""A stream of bytes to one peer, as a channel sees it.

`Connection` is everything that a channel needs, so that another stream (TLS over a socket) can
replace the plain one, which is `SocketConnection`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Protocol

from perseid.comm.objects import Buffer
from perseid.rendezvous.net.keepalive import in_flight, unanswered_for, watch_link

LOCAL_CONGESTION = b"reno"
"""Congestion control between ranks of one machine, where nothing can be congested: the pacing that
others do (BBR) costs a fifth of the kernel time there. Every Linux has this one."""
_CONGESTION: int | None = getattr(socket, "TCP_CONGESTION", None)
DONTWAIT: int = getattr(socket, "MSG_DONTWAIT", 0)  # not available on Windows, nor is epoll
"""The flag of a system call that never waits."""
ACKNOWLEDGMENT_INTERVAL = 0.005
"""Seconds between two checks of whether a peer's host has acknowledged everything."""
_WAITALL: int = getattr(socket, "MSG_WAITALL", 0)


class Connection(Protocol):
    """Bytes to and from one peer.

    It behaves like a socket: receiving returns 0 at the end of the stream and raises
    ``BlockingIOError`` if nothing came in time; a broken stream raises another ``OSError``. Only
    the communicating thread may call these methods, except for ``interrupt``.
    """

    transport: str
    """``direct`` or ``relay``."""
    pending: bool
    """Whether received bytes may be waiting here that polling the descriptor does not show."""

    def fileno(self) -> int:
        """The descriptor to poll."""
        ...

    def send_at_once(self, data: bytes) -> None:
        """Send all of it, or nothing if the socket does not take it without waiting."""
        ...

    def send(self, data: Buffer, flags: int, /) -> int:
        """Send what the socket takes, as ``socket.send`` does with the flag `DONTWAIT`: returns the
        number of bytes, perhaps 0, or raises ``BlockingIOError``."""
        ...

    def send_pieces(self, pieces: list[Buffer], ancillary: tuple[()], flags: int, /) -> int:
        """`send` for bytes that lie in several places, as ``socket.sendmsg`` does."""
        ...

    def receive(self, into: bytearray | memoryview) -> int:
        """Wait for bytes, at most for the polling interval; returns how many came."""
        ...

    def receive_whole(self, into: list[memoryview]) -> int:
        """Like `receive`, but go on until the places are full, as long as bytes keep coming."""
        ...

    def receive_available(self, into: memoryview) -> int:
        """Receive what has arrived already, without waiting."""
        ...

    def unanswered_for(self) -> float:
        """Seconds since the peer's host last answered, if data is in flight to it; otherwise 0."""
        ...

    def interrupt(self) -> None:
        """End the stream in both directions, so that a blocked call returns; from any thread."""
        ...

    def finish(self, *, wait: bool) -> None:
        """End this side and close; everything that was sent still arrives.

        `wait` does so until the peer's host has acknowledged it. If the process closes earlier, the
        host answers whatever the peer still sends with a reset and forgets what the network lost.
        """
        ...

    def discard(self) -> None:
        """Close this process' copy of the descriptor; the peer notices nothing."""
        ...


class SocketConnection:
    """A connected TCP socket.

    Parameters
    ----------
    sock
        The socket; it belongs to this object from now on.
    transport
        ``direct`` or ``relay``.
    poll_seconds
        Longest wait of ``receive``.
    link_timeout
        Seconds without an answer after which an idle connection breaks.
    """

    pending = False

    __slots__ = (
        "_link_timeout", "_recvmsg_into", "_sock", "_within_one_host", "receive", "send",
        "send_pieces", "transport",
    )  # fmt: skip

    def __init__(
        self, sock: socket.socket, transport: str, poll_seconds: float, link_timeout: float
    ) -> None:
        # Blocking with a time limit in the kernel: one system call per message, where a
        # non-blocking socket needs a poll as well.
        sock.setblocking(True)
        # The option takes a struct timeval: two native longs, seconds and microseconds.
        seconds, fraction = divmod(poll_seconds, 1)
        timeval = struct.pack("@ll", int(seconds), int(fraction * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        watch_link(sock, link_timeout)
        self._within_one_host = True
        """Whether both ends are on one host: only a network between them can lose packets."""
        with contextlib.suppress(OSError):  # a socket pair has no such option
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._within_one_host = sock.getsockname()[0] == sock.getpeername()[0]
            if _CONGESTION and self._within_one_host:
                sock.setsockopt(socket.IPPROTO_TCP, _CONGESTION, LOCAL_CONGESTION)
        self.transport = transport
        self._sock = sock
        self._link_timeout = link_timeout
        self._recvmsg_into = sock.recvmsg_into
        # The socket's own methods: one more function of Python costs 1 % of a small round trip.
        self.send: Callable[[Buffer, int], int] = sock.send
        self.send_pieces: Callable[[list[Buffer], tuple[()], int], int] = sock.sendmsg
        self.receive: Callable[[bytearray | memoryview], int] = sock.recv_into

    def fileno(self) -> int:
        return self._sock.fileno()

    def send_at_once(self, data: bytes) -> None:
        """Send with one system call: the kernel takes a short message whole or not at all."""
        with contextlib.suppress(BlockingIOError):
            self.send(data, DONTWAIT)

    def receive_whole(self, into: list[memoryview]) -> int:
        """Receive everything with one system call, also a large payload."""
        count: int = self._recvmsg_into(into, 0, _WAITALL)[0]
        return count

    def receive_available(self, into: memoryview) -> int:
        """Receive with one system call that never waits."""
        return self._sock.recv_into(into, 0, DONTWAIT)

    def unanswered_for(self) -> float:
        return unanswered_for(self._sock)

    def interrupt(self) -> None:
        """Shut both directions down."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def finish(self, *, wait: bool) -> None:
        """Read what is left before closing: unread bytes would turn the close into a reset, which
        discards what is still on its way to the peer."""
        with contextlib.suppress(OSError):
            # The peer reads up to the end of our stream; what it sent meanwhile is discarded here.
            self._sock.shutdown(socket.SHUT_WR)
            self._discard_arrived()
            if wait and not self._within_one_host:
                self._await_acknowledgment()
        self._sock.close()

    def _discard_arrived(self) -> None:
        rest = memoryview(bytearray(64 * 1024))
        with contextlib.suppress(BlockingIOError):
            # Bounded, so that a peer that sends without pause cannot prevent the end.
            for _ in range(64):
                if not self._sock.recv_into(rest, 0, DONTWAIT):
                    break

    def _await_acknowledgment(self) -> None:
        # Nothing is in flight to a peer that has stopped reading, so this does not wait for it.
        end = time.monotonic() + self._link_timeout
        while in_flight(self._sock) and time.monotonic() < end:
            time.sleep(ACKNOWLEDGMENT_INTERVAL)
            self._discard_arrived()

    def discard(self) -> None:
        self._sock.close()
