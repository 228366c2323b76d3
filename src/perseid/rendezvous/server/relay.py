"""Streams between two workers through the server, where punching fails.

Each chunk is sent on as soon as it is read; a receiver that does not take it stops the reading of
its sender, so one buffer of ``CHUNK`` bytes a direction is all that is ever kept. A rate in bytes
a second, shared by all relayed pairs, may be set.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from perseid.rendezvous.server.connection import Poller
from perseid.rendezvous.server.context import Clock

CHUNK = 256 * 1024
"""Bytes read at once; below it throughput falls, above it other clients wait longer."""
BURST_SECONDS = 0.1
"""How much of a second's bytes may pass at once under a rate limit."""


class Throttle:
    """A token bucket over all pairs; ``rate`` 0 never limits.

    Parameters
    ----------
    rate
        Bytes a second.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._tokens = rate * BURST_SECONDS
        self._at = 0.0

    def allowance(self, now: float) -> int:
        """Bytes that may pass now."""
        if not self.rate:
            return CHUNK
        updated = (now - self._at) * self.rate
        self._tokens = min(self._tokens + updated, self.rate * BURST_SECONDS)
        self._at = now
        return max(0, min(CHUNK, int(self._tokens)))

    def spend(self, count: int) -> None:
        """Bytes that passed."""
        if self.rate:
            self._tokens -= count

    def wait(self) -> float:
        """Seconds until a useful amount may pass."""
        return max(0.001, min(BURST_SECONDS / 2, CHUNK / self.rate))


class _Side:
    """One side of a pair: what is read here is sent to the other side."""

    __slots__ = ("eof", "mask", "other", "pair", "paused", "sock", "unsent")

    def __init__(self, sock: socket.socket, pair: RelayedPair) -> None:
        self.sock = sock
        self.pair = pair
        self.other: _Side = self
        self.unsent = memoryview(b"")
        """Read from the other side, not yet taken by this one."""
        self.eof = False
        self.paused = False
        self.mask = select.EPOLLIN

    def on_event(self, mask: int) -> None:
        """Send what is kept, then read."""
        if mask & select.EPOLLOUT:
            self.pair.flush(self)
        if mask & ~select.EPOLLOUT and self.sock.fileno() >= 0:
            self.pair.forward(self)


class RelayedPair:
    """Two sockets joined.

    Parameters
    ----------
    ended
        Called once with the bytes that passed when both directions are over.
    """

    def __init__(
        self,
        clock: Clock,
        poller: Poller,
        socks: tuple[socket.socket, socket.socket],
        throttle: Throttle,
        ended: Callable[[RelayedPair], None],
    ) -> None:
        self._clock, self._poller, self._throttle, self._ended = clock, poller, throttle, ended
        self.relayed_bytes = 0
        first, second = (_Side(sock, self) for sock in socks)
        first.other, second.other = second, first
        self._ends = (first, second)
        self._buffer = bytearray(CHUNK)
        for end in self._ends:
            poller.add(end.sock.fileno(), end)

    def forward(self, end: _Side) -> None:
        """Read from one side, send to the other."""
        if end.other.unsent or end.paused or end.eof:
            self._watch(end)
            return
        allowed = self._throttle.allowance(self._clock.now())
        if not allowed:
            self._pause(end)
            return
        try:
            count = end.sock.recv_into(self._buffer, allowed)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not count:
            self._half_close(end)
            return
        self._throttle.spend(count)
        self.relayed_bytes += count
        self._send(end.other, memoryview(self._buffer)[:count])

    def _send(self, end: _Side, data: memoryview) -> None:
        try:
            sent = end.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            end.unsent = memoryview(bytes(data[sent:]))
            self._watch(end)
            self._watch(end.other)

    def flush(self, end: _Side) -> None:
        """Go on sending to a side that takes again."""
        data, end.unsent = end.unsent, memoryview(b"")
        if data:
            self._send(end, data)
        if end.sock.fileno() >= 0 and not end.unsent:
            if end.other.eof:
                self._shut(end)
            self._watch(end)
            self._watch(end.other)

    def _half_close(self, end: _Side) -> None:
        end.eof = True
        if not end.other.unsent:
            self._shut(end.other)
        if all(one.eof for one in self._ends) and not any(one.unsent for one in self._ends):
            self.close()
        else:
            self._watch(end)

    def _shut(self, end: _Side) -> None:
        try:
            end.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        if all(one.eof for one in self._ends) and not any(one.unsent for one in self._ends):
            self.close()

    def _pause(self, end: _Side) -> None:
        end.paused = True
        self._watch(end)
        self._clock.call_later(self._throttle.wait(), self._resume, end)

    def _resume(self, end: _Side) -> None:
        end.paused = False
        if end.sock.fileno() >= 0:
            self._watch(end)

    def _watch(self, end: _Side) -> None:
        if end.sock.fileno() < 0:
            return
        reading = not (end.eof or end.paused or end.other.unsent)
        mask = (select.EPOLLIN if reading else 0) | (select.EPOLLOUT if end.unsent else 0)
        if mask == end.mask:
            return
        fd = end.sock.fileno()
        # A side that waits for nothing is not watched at all: epoll would report its hang-up
        # again and again.
        if not mask:
            self._poller.remove(fd)
        elif not end.mask:
            self._poller.add(fd, end, mask)
        else:
            self._poller.change(fd, mask)
        end.mask = mask

    def close(self) -> None:
        """End both sides now."""
        if self._ends[0].sock.fileno() < 0:
            return
        for end in self._ends:
            self._poller.remove(end.sock.fileno())
            end.sock.close()
        self._ended(self)
