"""Streams between two workers through the server, for pairs that cannot connect directly.

What is read from one side is sent to the other at once. What does not fit is kept: at most one
chunk a direction, and ``MAX_KEPT`` bytes in all. Beyond that the relay keeps nothing. It peeks at
what a sender's socket holds, sends as much of it as the receiver's socket takes, and only then
removes that much; the rest stays in the kernel's buffers, and TCP's flow control stops the sender.
A rate, shared by all pairs, may be set.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from dataclasses import dataclass

from perseid.rendezvous.server.context import Clock
from perseid.rendezvous.server.poller import Poller

CHUNK = 256 * 1024
"""Bytes read at once; below it throughput falls, above it other clients wait longer."""
MAX_KEPT = 16 * 1024 * 1024
"""Bytes kept for receivers that are slow; reading ahead for them makes a stream faster."""
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

    __slots__ = ("blocked", "eof", "kept", "mask", "other", "pair", "paused", "sock")

    def __init__(self, sock: socket.socket, pair: RelayedPair) -> None:
        self.sock = sock
        self.pair = pair
        self.other: _Side = self
        self.blocked = False
        """Whether this side's socket takes no more for now."""
        self.kept = memoryview(b"")
        """Read from the other side, and not taken by this one yet."""
        self.eof = False
        """Whether this side has sent all it will."""
        self.paused = False
        """Whether the rate limit stops reading from this side for a moment."""
        self.mask = select.EPOLLIN

    def on_event(self, mask: int) -> None:
        """Go on sending to this side, then read from it."""
        if mask & select.EPOLLOUT:
            self.pair.unblock(self)
        if mask & ~select.EPOLLOUT and self.sock.fileno() >= 0:
            self.pair.forward(self)


@dataclass(slots=True)
class RelayResources:
    """What all pairs of one server share."""

    clock: Clock
    poller: Poller
    throttle: Throttle
    buffer: memoryview
    """Scratch space of ``CHUNK`` bytes; empty between two calls."""
    kept: int = 0
    """Bytes kept for slow receivers, all pairs together."""


class RelayedPair:
    """Two sockets joined.

    Parameters
    ----------
    socks
        Non-blocking; they belong to the pair from now on.
    ended
        Called once, when both directions are over.
    """

    def __init__(
        self,
        shared: RelayResources,
        socks: tuple[socket.socket, socket.socket],
        ended: Callable[[RelayedPair], None],
    ) -> None:
        self._shared, self._ended = shared, ended
        self.relayed_bytes = 0
        first, second = (_Side(sock, self) for sock in socks)
        first.other, second.other = second, first
        self._sides = (first, second)
        for side in self._sides:
            shared.poller.add(side.sock.fileno(), side)

    def forward(self, side: _Side) -> None:
        """Send what one side's socket holds to the other side."""
        shared = self._shared
        if side.other.blocked or side.paused or side.eof:
            self._watch(side)
            return
        allowed = shared.throttle.allowance(shared.clock.now())
        if not allowed:
            self._pause(side)
            return
        # Below the limit, read ahead: the receiver finds the bytes ready as soon as it has room. At
        # the limit, leave them in the kernel, where TCP's window makes the sender wait.
        peek = socket.MSG_PEEK if shared.kept >= MAX_KEPT else 0
        try:
            count = side.sock.recv_into(shared.buffer, allowed, peek)
            if not count:
                self._half_close(side)
                return
            sent = self._send(side.other, shared.buffer[:count])
            if not peek:
                # A copy, because the shared buffer is overwritten by the next pair's bytes.
                self._keep(side.other, memoryview(bytes(shared.buffer[sent:count])))
                sent = count
            shared.throttle.spend(sent)
            self.relayed_bytes += sent
            while peek and sent:
                # MSG_TRUNC removes bytes without copying them (tcp(7)).
                sent -= side.sock.recv_into(shared.buffer, sent, socket.MSG_TRUNC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()

    def _send(self, side: _Side, data: memoryview) -> int:
        """Send what fits; if that is not all, the side is blocked."""
        try:
            sent = side.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent < len(data):
            # From here on the sender is not read from until this side has taken what is kept.
            side.blocked = True
            self._watch(side)
            self._watch(side.other)
        return sent

    def _keep(self, side: _Side, data: memoryview) -> None:
        self._shared.kept += len(data) - len(side.kept)
        side.kept = data

    def unblock(self, side: _Side) -> None:
        """A side's socket takes bytes again."""
        side.blocked = False
        try:
            if side.kept:
                self._keep(side, side.kept[self._send(side, side.kept) :])
        except OSError:
            self.close()
            return
        if not side.blocked:
            self._watch(side)
            self._watch(side.other)
            self.forward(side.other)

    def _half_close(self, side: _Side) -> None:
        side.eof = True
        side.other.sock.shutdown(socket.SHUT_WR)
        # Each direction ends by itself: a worker that has sent all may still be receiving.
        if side.other.eof:
            self.close()
        else:
            self._watch(side)

    def _pause(self, side: _Side) -> None:
        side.paused = True
        self._watch(side)
        self._shared.clock.call_later(self._shared.throttle.wait(), self._resume, side)

    def _resume(self, side: _Side) -> None:
        side.paused = False
        # The pair may have been closed while this timer ran.
        if side.sock.fileno() >= 0:
            self._watch(side)

    def _watch(self, side: _Side) -> None:
        if side.sock.fileno() < 0:
            return
        reading = not (side.eof or side.paused or side.other.blocked)
        mask = (select.EPOLLIN if reading else 0) | (select.EPOLLOUT if side.blocked else 0)
        if mask == side.mask:
            return
        fd, poller = side.sock.fileno(), self._shared.poller
        # A side that waits for nothing is not watched at all: epoll reports a hang-up whatever
        # the mask (epoll_ctl(2)), again and again.
        if not mask:
            poller.remove(fd)
        elif not side.mask:
            poller.add(fd, side, mask)
        else:
            poller.change(fd, mask)
        side.mask = mask

    def close(self) -> None:
        """End both sides now."""
        # Both sides report the end of a broken pair; only the first report counts.
        if self._sides[0].sock.fileno() < 0:
            return
        for side in self._sides:
            self._keep(side, memoryview(b""))
            self._shared.poller.remove(side.sock.fileno())
            side.sock.close()
        self._ended(self)
