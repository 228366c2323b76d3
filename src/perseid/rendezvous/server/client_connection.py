"""One accepted connection of the server: small, non-blocking, with limits on unsent bytes.

A waiting client costs about 1 KB.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from perseid.rendezvous.net.keepalive import end_unanswered
from perseid.rendezvous.server.poller import EPOLLIN, EPOLLOUT, Poller

if TYPE_CHECKING:  # OpenSSL takes its time to load, and few servers have a certificate
    from perseid.rendezvous.net.tls import TlsSession

RECEIVE_BYTES = 2 * 1024
"""Bytes requested by one read. Most messages are single small frames, and a client that sends many
must not delay the others."""
READ_BACKLOG = 64 * 1024
"""Unsent bytes from which on no more requests of a client are read."""
MAX_UNSENT = 4 * 1024 * 1024
"""Most unsent bytes of one client, beyond which it is dropped: all addresses of a large job fit."""
MAX_TOTAL_UNSENT = 128 * 1024 * 1024
"""Most unsent bytes of all clients, beyond which those over ``READ_BACKLOG`` are dropped."""
CHUNKS_A_SEND = 64
"""Most unsent messages that are passed to one system call."""
DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)  # Windows has none, and no epoll
"""Passed with each call; saves the system call that makes a socket non-blocking."""


class Handler(Protocol):
    """What a connection reports to; a role of the server."""

    def received(self, connection: ClientConnection, data: bytes) -> None: ...

    def progressed(self, connection: ClientConnection) -> None:
        """The other side took some of the bytes that were waiting to be sent."""
        ...

    def ended(self, connection: ClientConnection) -> None:
        """The other side closed, reset, or let too much pile up; called once."""
        ...


class ClientConnection:
    """One accepted socket. Writes go out at once; what does not fit is kept and sent later.

    A client that does not read is not read from either: from ``READ_BACKLOG`` unsent bytes on,
    its further requests wait in the kernel's buffers until it takes the answers.
    """

    __slots__ = ("_poller", "_tls", "_unsent", "backlog", "closing", "handler", "host", "port",
                 "sock", "state")  # fmt: skip

    def __init__(
        self, sock: socket.socket, host: str, port: int, poller: Poller, handler: Handler
    ) -> None:
        self.sock = sock
        self.host, self.port = host, port
        self.handler = handler
        self.state: object = None
        """Belongs to the handler."""
        self.closing = False
        self.backlog = 0
        """Bytes that wait to be sent."""
        self._poller = poller
        self._tls: TlsSession | None = None
        self._unsent: deque[memoryview] | None = None
        poller.add(sock.fileno(), self)

    @property
    def closed(self) -> bool:
        """Whether the socket is closed or given away."""
        return self.sock.fileno() < 0

    def on_event(self, mask: int) -> None:
        """Go on sending, then read."""
        if mask & EPOLLOUT:
            self._flush()
        # A connection that is not read from still reports that it was reset.
        if mask & ~EPOLLOUT and self.sock.fileno() >= 0:
            self.read()

    def read(self) -> None:
        """Read once, if there is anything to read."""
        try:
            data = self.sock.recv(RECEIVE_BYTES, DONT_WAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._end()
        elif not self.closing and (data := self._plain(data)):
            self.handler.received(self, data)

    def start_tls(self, session: TlsSession, data: bytes) -> None:
        """Go on in TLS; ``data`` is what came of the client's first flight."""
        self._tls = session
        self._plain(data)

    @property
    def encrypted(self) -> bool:
        """Whether the client speaks TLS."""
        return self._tls is not None

    def _plain(self, data: bytes) -> bytes:
        """What ciphertext holds; what the handshake has to answer is sent."""
        tls = self._tls
        if tls is None:
            return data
        try:
            tls.feed(data)
            complete = tls.handshake()
            self._send(tls.take())
            data = tls.decrypt_all() if complete else b""
        except OSError:  # ssl.SSLError is one
            self._send(tls.take())  # an alert says why
            self._end()
            return b""
        if tls.shut and not data:
            self._end()
        return data

    def write(self, data: bytes) -> None:
        """Send, now or as soon as the other side takes it."""
        if not data or self.closing or self.sock.fileno() < 0:
            return
        if self._tls is not None:
            self._tls.encrypt(data)
            data = self._tls.take()
        self._send(data)

    def _send(self, data: bytes) -> None:
        if not data or self.sock.fileno() < 0:
            return
        sent = 0
        # Nothing waits, so this may go out directly; otherwise it would overtake what waits.
        if self._unsent is None:
            try:
                sent = self.sock.send(data, DONT_WAIT)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self._end()
                return
            if sent == len(data):
                return
            self._unsent = deque()
        # A view: many connections may wait to be sent the same message.
        self._unsent.append(memoryview(data)[sent:])
        self._change_backlog(len(data) - sent)
        # A slow reader is dropped in the end: one stuck client must not fill the server's memory.
        if self.backlog > MAX_UNSENT or (
            self._poller.backlog > MAX_TOTAL_UNSENT and self.backlog > READ_BACKLOG
        ):
            self._end()

    def _flush(self) -> None:
        if self._unsent is None:
            return
        try:
            sent = self.sock.sendmsg(list(islice(self._unsent, CHUNKS_A_SEND)), (), DONT_WAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end()
            return
        # The kernel may stop in the middle of a message.
        left = sent
        while left and left >= len(self._unsent[0]):
            left -= len(self._unsent.popleft())
        if left:
            self._unsent[0] = self._unsent[0][left:]
        if not self._unsent:
            self._unsent = None
        self._change_backlog(-sent)
        if self.closing and not self.backlog:
            self._shut()
        elif not self.closing:
            self.handler.progressed(self)

    def _change_backlog(self, change: int) -> None:
        before, self.backlog = self._mask(), self.backlog + change
        self._poller.backlog += change
        # Most writes change nothing about what is waited for; each change is a system call.
        if self._mask() != before:
            self._poller.change(self.sock.fileno(), self._mask())

    def _mask(self) -> int:
        if not self.backlog:
            return EPOLLIN
        return EPOLLOUT | (EPOLLIN if self.backlog < READ_BACKLOG else 0)

    def finish(self) -> None:
        """Send what is left, then end; what the client still sends is read and dropped.

        Closing at once with unread bytes would reset the connection, and the client would lose
        the last frame (RFC 2525, section 2.17). A client that does not read or close is closed
        by its deadline.
        """
        self.closing = True
        if not self.backlog:
            self._shut()

    def _shut(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()

    def alive(self) -> bool:
        """Whether the other side has neither closed nor reset, as far as the kernel knows.

        Reading would not tell: bytes may lie before the end (POLLRDHUP, poll(2)).
        """
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        return not poll.poll(0)

    def detach(self) -> socket.socket:
        """Give the socket away, non-blocking; ``ended`` is not called."""
        self._forget()
        given = socket.socket(self.sock.family, socket.SOCK_STREAM, fileno=self.sock.detach())
        given.setblocking(False)
        end_unanswered(given, 0)  # a receiver may compute instead of reading
        return given

    def close(self) -> None:
        """Close at once; ``ended`` is not called."""
        if self.sock.fileno() >= 0:
            # Out of the poller before the number is free: the next socket may get the same one.
            self._forget()
            self.sock.close()

    def _forget(self) -> None:
        self._poller.remove(self.sock.fileno())
        self._poller.backlog -= self.backlog
        self.backlog, self._unsent = 0, None

    def _end(self) -> None:
        if self.sock.fileno() >= 0:
            self.close()
            self.handler.ended(self)
