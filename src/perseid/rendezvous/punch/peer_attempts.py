"""How a peer is reached: by what means, how long each is tried, and when the relay takes over."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from perseid.rendezvous.net.event_loop import EventLoopThread
from perseid.rendezvous.protocol import PeerRecord
from perseid.rendezvous.protocol.wire import Address
from perseid.rendezvous.punch.dialer import ConnectionAttempt, Dialer
from perseid.rendezvous.punch.links import Link
from perseid.rendezvous.punch.nat import dial_candidates, direct_impossible

DIRECT_SECONDS = 5.0
"""Time for a direct connection before the relay is used; 1.5 s was too short under packet loss."""
SLOW_PEER_SECONDS = 10.0
"""Additional time if there is a connection and only the peer's HELLO is late."""
ATTEMPT_SECONDS = 60.0
"""Time for an attempt as a whole, from when the peer's address is known."""
RELAY_RETRY_SECONDS = 0.5
"""Pause between two tries of the relay; a busy peer may miss the server's time limit."""
REQUEST_SECONDS = 0.03
"""Without a connection after this time, the peer is asked through the server to connect, too."""
REQUEST_SLOW_SECONDS = 0.5
"""The same if there is a connection and only the peer's HELLO is late."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What hole punching reports to the client and asks of it, in the event loop's thread."""

    linked: Callable[[Link], None]
    """A peer is connected."""
    failed: Callable[[int, str], None]
    """A rank cannot be reached, for this reason."""
    request_connect: Callable[[int], None]
    """Ask a rank, through the server, to connect, too."""
    subscribe: Callable[[int], None]
    """Ask the server for a rank's address."""
    relay: Callable[[int], None]
    """Open a relayed stream to a rank; ends in ``relayed`` or ``relay_failed``."""


class ConnectionAttempts:
    """The attempts of one worker to reach its peers, one for each of them.

    Parameters
    ----------
    rank
        Of this worker; the lower one of a pair decides when the relay is used.
    transport
        ``auto``: direct if possible, else relayed; ``direct``: never relayed; ``relay``: always.
    patience
        Seconds for which a peer may be too busy to answer; at least `ATTEMPT_SECONDS`.
    connected
        Called with an attempt, an address that it dialed, and the connected, non-blocking socket.
    """

    def __init__(
        self,
        loop: EventLoopThread,
        rank: int,
        callbacks: Callbacks,
        transport: str,
        patience: float,
        connected: Callable[[ConnectionAttempt, Address, socket.socket], None],
    ) -> None:
        self._loop, self._rank, self._callbacks = loop, rank, callbacks
        self._transport = transport
        self._attempt_seconds = max(ATTEMPT_SECONDS, patience)
        self._by_rank: dict[int, ConnectionAttempt] = {}
        self.dialer = Dialer(loop, connected)
        self.can_relay = False
        self.self_peer: PeerRecord | None = None
        """This worker as the server sees it."""
        self.peers: dict[int, PeerRecord] = {}
        """The other ranks as the server described them."""

    def __iter__(self) -> Iterator[ConnectionAttempt]:
        return iter(list(self._by_rank.values()))

    def get(self, rank: int | None) -> ConnectionAttempt | None:
        """The attempt to reach a rank, if there is one."""
        return None if rank is None else self._by_rank.get(rank)

    def of(self, rank: int) -> ConnectionAttempt:
        """The attempt to reach a rank, begun now if there was none."""
        attempt = self._by_rank.get(rank)
        if attempt is None:
            attempt = self._by_rank[rank] = ConnectionAttempt(rank, time.monotonic())
        return attempt

    def proceed(self, attempt: ConnectionAttempt, ask_peer: bool) -> None:
        """Dial what can be dialed, and set what happens later; the peer's address is known.

        Parameters
        ----------
        ask_peer
            Whether to ask the peer to connect, too, if it is not reached soon.
        """
        peer, me = self.peers[attempt.rank], self.self_peer
        # Which addresses can be dialed depends on this worker's own: the welcome is still to come.
        if me is None:
            return
        later = self._loop.call_later
        if not attempt.started:
            attempt.started = True
            attempt.timers.append(later(DIRECT_SECONDS, lambda: self._direct_timeout(attempt)))
            attempt.timers.append(
                later(self._attempt_seconds, lambda: self._attempt_timeout(attempt))
            )
        # The request waits a moment because most peers are reached, or connect by themselves,
        # first: in a large job each request saved is two messages less for the server.
        if ask_peer and not attempt.request_scheduled:
            attempt.request_scheduled = True
            attempt.timers.append(
                later(REQUEST_SECONDS, lambda: self._request_connect(attempt, REQUEST_SLOW_SECONDS))
            )
        # No use to wait for the time limit if the kinds of the two NATs rule a connection out.
        if self._transport == "relay" or direct_impossible(me, peer):
            self._fall_back(attempt)
            return
        if not attempt.handshaking():
            self.dialer.dial(attempt, dial_candidates(me, peer), peer.public)

    def _request_connect(self, attempt: ConnectionAttempt, patience: float = 0.0) -> None:
        if attempt.over or attempt.handshaking():
            return
        if patience and attempt.connected():  # another connection would not be faster
            attempt.timers.append(
                self._loop.call_later(patience, lambda: self._request_connect(attempt))
            )
        else:
            self._callbacks.request_connect(attempt.rank)

    def reset(self, attempt: ConnectionAttempt) -> None:
        """Close all connections of an attempt, and those that are being made."""
        self.dialer.drop(attempt)
        for connection in attempt.connections:
            connection.close()
        attempt.connections.clear()
        attempt.selected = None

    def _direct_timeout(self, attempt: ConnectionAttempt) -> None:
        if attempt.over or attempt.relaying:
            return
        # The kernel of a busy machine accepts at once, long before the process sends its HELLO.
        limit = self._attempt_seconds
        if self._may_relay():
            limit = DIRECT_SECONDS + SLOW_PEER_SECONDS
        if attempt.connected() and time.monotonic() - attempt.began < limit:
            attempt.timers.append(self._loop.call_later(1.0, lambda: self._direct_timeout(attempt)))
        else:
            self._fall_back(attempt)

    def _may_relay(self) -> bool:
        return self._transport != "direct" and self.can_relay

    def _fall_back(self, attempt: ConnectionAttempt) -> None:
        if attempt.over or attempt.relaying:
            return
        if not self._may_relay():
            self._fail(attempt, "no direct connection, and there is no relay")
        # Only the lower rank falls back, and the higher waits for its invitation: if both decided
        # by their own clocks, one could choose the relay while the other settles on a direct
        # connection. Where only the relay may be used, there is nothing to decide differently.
        elif self._rank < attempt.rank or self._transport == "relay":
            attempt.relaying = True
            self._callbacks.relay(attempt.rank)

    def _attempt_timeout(self, attempt: ConnectionAttempt) -> None:
        if not attempt.over:
            self._fail(attempt, f"not reached in {self._attempt_seconds:g} s")

    def _fail(self, attempt: ConnectionAttempt, reason: str) -> None:
        self.drop(attempt)
        self._callbacks.failed(attempt.rank, reason)

    def drop(self, attempt: ConnectionAttempt) -> None:
        """End an attempt; connections that were handed over stay."""
        attempt.over = True
        self._by_rank.pop(attempt.rank, None)
        self.reset(attempt)
        for timer in attempt.timers:
            timer.cancel()

    def relay_failed(self, rank: int, reason: str, final: bool) -> None:
        """The relay could not be used for a peer; unless that is final, it is tried again."""
        attempt = self._by_rank.get(rank)
        if attempt is None:
            return
        attempt.relaying = False
        if not final:
            again = self._loop.call_later(RELAY_RETRY_SECONDS, lambda: self._fall_back(attempt))
            attempt.timers.append(again)
        elif self._rank < rank or self._transport == "relay":
            self._fail(attempt, f"no direct connection, and the relay failed: {reason}")
