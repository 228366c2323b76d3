"""The TLS handshake of two peers that have just found each other, in the event loop's thread.

Here and not where the connection is first used: both ends must take part, and a rank that computes
must not hold up the one that connects to it.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from perseid.rendezvous.net.event_loop import READ, WRITE, EventLoopThread
from perseid.rendezvous.punch.links import Link

if TYPE_CHECKING:  # OpenSSL takes its time to load, and most links are plain
    from perseid.rendezvous.net.tls import JobCertificate, TlsSession

HANDSHAKE_BYTES = 16 * 1024
"""Read at once: more than a flight."""
TLS_SECONDS = 20.0
"""Time for the handshake: two flights, on a connection that stands already."""


class TlsHandshake:
    """A handshake on its way.

    Parameters
    ----------
    sock
        Connected and not blocking; belongs to this object until one of the calls.
    done
        Called with the session once it is complete; the socket is the caller's again.
    failed
        Called with the reason where it is not; the socket is closed.
    """

    def __init__(
        self,
        loop: EventLoopThread,
        sock: socket.socket,
        session: TlsSession,
        done: Callable[[TlsSession], None],
        failed: Callable[[str], None],
    ) -> None:
        self._loop, self._sock, self._session = loop, sock, session
        self._done, self._failed = done, failed
        self._unsent = b""
        self._complete = False
        self._timer = loop.call_later(TLS_SECONDS, lambda: self._fail("it does not answer in TLS"))
        loop.watch(sock, READ, self._ready)
        self._advance()

    def close(self) -> None:
        """Give it up without a word to either side."""
        self._timer.cancel()
        self._loop.unwatch(self._sock)
        self._sock.close()

    def _ready(self, events: int) -> None:
        if events & ~WRITE:
            try:
                data = self._sock.recv(HANDSHAKE_BYTES)
            except (BlockingIOError, InterruptedError):
                data = None
            except OSError as error:
                self._fail(error.strerror or "the connection broke")
                return
            if data == b"":
                self._fail("it ended the connection")
                return
            if data:
                self._session.feed(data)
        self._advance()

    def _advance(self) -> None:
        if not self._complete:
            try:
                self._complete = self._session.handshake()
            except OSError as error:  # ssl.SSLError is one
                self._unsent += self._session.take()
                self._send()  # an alert tells the peer why
                self._fail(getattr(error, "reason", None) or str(error))
                return
        self._unsent += self._session.take()
        self._send()
        if self._complete and not self._unsent:
            self._timer.cancel()
            self._loop.unwatch(self._sock)
            self._done(self._session)

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # the next read says what is wrong, if something is
            self._unsent = self._unsent[self._sock.send(self._unsent) :] if self._unsent else b""
        self._loop.watch(self._sock, READ | WRITE if self._unsent else READ, self._ready)

    def _fail(self, reason: str) -> None:
        self.close()
        self._failed(reason)


class LinkEncryption:
    """Encrypts the links of a worker: a link is handed on once both ends have proved that they hold
    the job's certificate.

    Parameters
    ----------
    rank
        Of this worker; the lower one of a pair is the server of its handshake.
    linked
        Called with an encrypted link.
    failed
        Called with the rank that cannot be linked and the reason; its socket is closed.
    """

    def __init__(
        self,
        loop: EventLoopThread,
        certificate: JobCertificate,
        rank: int,
        linked: Callable[[Link], None],
        failed: Callable[[int, str], None],
    ) -> None:
        self._loop, self._certificate, self._rank = loop, certificate, rank
        self._linked, self._failed = linked, failed
        self._under_way: dict[int, TlsHandshake] = {}
        """By the peer's rank."""

    def start(self, link: Link, began: float) -> None:
        """Encrypt a link.

        Parameters
        ----------
        began
            When the first try to reach the peer was made, monotonic seconds.
        """

        def done(session: TlsSession) -> None:
            self._under_way.pop(link.rank, None)
            link.sock.setblocking(True)
            self._linked(replace(link, tls=session, seconds=time.monotonic() - began))

        def failed(reason: str) -> None:
            self._under_way.pop(link.rank, None)
            self._failed(
                link.rank,
                f"the encrypted connection failed: {reason}; give all ranks the same certificate",
            )

        link.sock.setblocking(False)
        session = self._certificate.session(server_side=self._rank < link.rank)
        self._under_way[link.rank] = TlsHandshake(self._loop, link.sock, session, done, failed)

    def drop(self, rank: int) -> None:
        """Give up the link to a rank, if it is being encrypted."""
        if (handshake := self._under_way.pop(rank, None)) is not None:
            handshake.close()

    def close(self) -> None:
        """Give up all links that are being encrypted."""
        for rank in list(self._under_way):
            self.drop(rank)
