"""Many small non-blocking connections on one asyncio loop, cheaply.

An epoll object of our own holds all connections and is itself one reader of the asyncio loop:
a registration then costs no task, transport, handle or context of asyncio's, and a waiting client
about 1 KB. Timers, signals and everything else stay asyncio's.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Protocol

from perseid.rendezvous.net.liveness import end_unanswered

RECEIVE_BYTES = 8 * 1024
"""Bytes taken by one read of a connection that is no relay: most are single small frames."""
MAX_UNSENT = 4 * 1024 * 1024
"""Bytes kept for a client that does not read; beyond that it is dropped."""
EVENTS_A_ROUND = 512
"""Events handled before the loop's timers get their turn."""
EPOLLIN, EPOLLOUT = select.EPOLLIN, select.EPOLLOUT
DONT_WAIT = socket.MSG_DONTWAIT
"""Given with each call: saves the system call that would make the socket non-blocking."""


class Pollable(Protocol):
    """What a poller calls."""

    def on_event(self, mask: int) -> None:
        """Something happened on the descriptor (``select.EPOLL*`` bits)."""
        ...


class Poller:
    """One epoll object inside an asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._owners: dict[int, Pollable] = {}
        self._soon: list[Callable[[], None]] = []
        self._in_round = False
        loop.add_reader(self._epoll.fileno(), self._ready)

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, fd: int, owner: Pollable, mask: int = EPOLLIN) -> None:
        """Watch a descriptor."""
        self._owners[fd] = owner
        self._epoll.register(fd, mask)

    def change(self, fd: int, mask: int) -> None:
        """Watch for something else."""
        self._epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        """Stop watching; call it before the descriptor is closed."""
        if self._owners.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call after the events at hand: cheaper than the loop's, and once for many events."""
        if not self._in_round and not self._soon:
            self._loop.call_soon(self._call_soon)
        self._soon.append(call)

    def _call_soon(self) -> None:
        calls, self._soon = self._soon, []
        for call in calls:
            call()

    def _ready(self) -> None:
        owners = self._owners
        self._in_round = True
        try:
            for fd, mask in self._epoll.poll(0, EVENTS_A_ROUND):
                owner = owners.get(fd)
                if owner is not None:
                    owner.on_event(mask)
        finally:
            self._in_round = False
            if self._soon:
                self._call_soon()

    def owners(self) -> list[Pollable]:
        """Whoever watches a descriptor now."""
        return list(self._owners.values())

    def close(self) -> None:
        """Stop watching all."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._owners.clear()


class Handler(Protocol):
    """What a connection tells of itself."""

    def received(self, connection: Connection, data: bytes) -> None:
        """Bytes came."""
        ...

    def ended(self, connection: Connection) -> None:
        """The other side closed, reset, or did not read for too long; called once."""
        ...


class Connection:
    """One accepted socket; writes go out at once, what does not fit is kept and sent later."""

    __slots__ = ("_poller", "_unsent", "closing", "handler", "host", "port", "sock", "state")

    def __init__(
        self, sock: socket.socket, host: str, port: int, poller: Poller, handler: Handler
    ) -> None:
        self.sock = sock
        self.host, self.port = host, port
        self.handler = handler
        self.state: object = None
        """Belongs to the handler."""
        self.closing = False
        self._poller = poller
        self._unsent = b""
        poller.add(sock.fileno(), self)

    @property
    def closed(self) -> bool:
        """Whether the socket is gone."""
        return self.sock.fileno() < 0

    def on_event(self, mask: int) -> None:
        """Read or go on writing."""
        if mask & EPOLLOUT:
            self._flush()
        if mask & ~EPOLLOUT and self.sock.fileno() >= 0:
            self.read()

    def read(self) -> None:
        """Take what is there, if anything."""
        try:
            data = self.sock.recv(RECEIVE_BYTES, DONT_WAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._end()
        elif not self.closing:
            self.handler.received(self, data)

    def write(self, data: bytes) -> None:
        """Send, now or as soon as the other side takes it."""
        if self.closing or self.sock.fileno() < 0:
            return
        if not self._unsent:
            try:
                sent = self.sock.send(data, DONT_WAIT)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._end()
                return
            if sent == len(data):
                return
            data = data[sent:]
            self._poller.change(self.sock.fileno(), EPOLLIN | EPOLLOUT)
        self._unsent += data
        if len(self._unsent) > MAX_UNSENT:
            self._end()

    def _flush(self) -> None:
        try:
            sent = self.sock.send(self._unsent, DONT_WAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end()
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._poller.change(self.sock.fileno(), EPOLLIN)
            if self.closing:
                self._shut()

    def finish(self) -> None:
        """Send what is left, then end; what the client still sends is read and dropped.

        Closing at once with unread bytes would reset the connection, and the client would lose
        the last frame. One that does not read or close is closed by its deadline.
        """
        self.closing = True
        if not self._unsent:
            self._shut()

    def _shut(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()

    def alive(self) -> bool:
        """Whether the other side has not closed yet (looks at the socket without reading)."""
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK | DONT_WAIT))
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False

    def detach(self) -> socket.socket:
        """Give the socket away, non-blocking; the connection is over without ``ended``."""
        self._poller.remove(self.sock.fileno())
        given = socket.socket(self.sock.family, socket.SOCK_STREAM, fileno=self.sock.detach())
        given.setblocking(False)
        end_unanswered(given, 0)  # who gets the bytes may compute instead of reading them
        return given

    def close(self) -> None:
        """Close now, without ``ended``."""
        if self.sock.fileno() >= 0:
            self._poller.remove(self.sock.fileno())
            self.sock.close()

    def _end(self) -> None:
        if self.sock.fileno() >= 0:
            self.close()
            self.handler.ended(self)
