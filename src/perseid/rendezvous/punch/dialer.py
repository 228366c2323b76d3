"""Dialing the addresses of one peer from the registered port, again and again.

A hole opens when the first packets of both sides are in flight at once. So after a refusal the
next try waits a random time of about a round trip. A pending connection is never abandoned: the
kernel retransmits its SYN. EADDRNOTAVAIL means that a connection between the same two ports exists
already: the peer's, which is being accepted.
"""

from __future__ import annotations

import errno
import random
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from perseid.rendezvous.net.dialing import reusable_socket
from perseid.rendezvous.net.event_loop import WRITE, EventLoopThread, Timer
from perseid.rendezvous.protocol.handshake import HandshakeState
from perseid.rendezvous.protocol.wire import Address
from perseid.rendezvous.punch.links import PeerConnection
from perseid.rendezvous.punch.pacing import (
    CLAIMED_BURST,
    CLAIMED_RATE,
    TokenBucket,
    backoff,
    retry_wait,
)

ACCEPTING_WAIT = (0.03, 0.08)
"""Range of seconds until the next try while the peer's own connection is being accepted."""


@dataclass(slots=True)
class ConnectionAttempt:
    """The state of the tries to reach one peer."""

    rank: int
    began: float
    observed: Address | None = None
    """The peer's address as the server sees it; the others are the peer's claims."""
    failures: dict[Address, int] = field(default_factory=dict)
    """How often each address refused, or was connected and did not prove to be the peer."""
    pending: dict[Address, socket.socket] = field(default_factory=dict)
    """Connections that are being made."""
    waiting: dict[Address, Timer] = field(default_factory=dict)
    """Addresses that will be tried again, with their timers."""
    connections: list[PeerConnection] = field(default_factory=list)
    """Connected sockets whose handshake is not complete."""
    selected: PeerConnection | None = None
    accepting: bool = False
    """Whether the last try found that the peer's own connection is being accepted."""
    relaying: bool = False
    """Whether the relay was asked for a stream."""
    started: bool = False
    """Whether the time limits of the attempt run."""
    request_scheduled: bool = False
    """Whether the peer will be asked to connect as well, unless it is reached before."""
    over: bool = False
    """Whether the attempt has ended: nothing more is tried."""
    timers: list[Timer] = field(default_factory=list)

    def handshaking(self) -> bool:
        """Whether a connection has received a valid HELLO."""
        return any(
            one.handshake.state is not HandshakeState.AWAITING_HELLO for one in self.connections
        )

    def connected(self) -> bool:
        """Whether there is a direct connection, even if its HELLO has not arrived yet."""
        return self.accepting or any(one.transport == "direct" for one in self.connections)


class Dialer:
    """Dials the addresses of peers from the registered port.

    Parameters
    ----------
    connected
        Called with the attempt, the address, and the connected, non-blocking socket.
    """

    def __init__(
        self,
        loop: EventLoopThread,
        connected: Callable[[ConnectionAttempt, Address, socket.socket], None],
    ) -> None:
        self._loop, self._connected = loop, connected
        self.ports: dict[int, int] = {}
        """Local port by address family."""
        self.round_trip = 0.0
        """Seconds to the server and back."""
        self._turns: dict[int, TokenBucket] = {}
        """By rank: connections to addresses that the server has not seen."""

    def dial(
        self, attempt: ConnectionAttempt, addresses: Iterable[Address], observed: Address
    ) -> None:
        """Try the addresses that are not being tried already.

        Parameters
        ----------
        observed
            The peer's address as the server sees it.
        """
        attempt.observed = observed
        for address in addresses:
            if address not in attempt.pending and address not in attempt.waiting:
                self._try(attempt, address)

    def not_the_peer(self, attempt: ConnectionAttempt, address: Address) -> None:
        """A connection ended before the peer had proved itself: try again, ever later."""
        failures = attempt.failures[address] = attempt.failures.get(address, 0) + 1
        self._retry(attempt, address, backoff(failures, random.random()))

    def _retry(self, attempt: ConnectionAttempt, address: Address, wait: float) -> None:
        timer = self._loop.call_later(wait, lambda: self._try(attempt, address))
        attempt.waiting[address] = timer

    def drop(self, attempt: ConnectionAttempt) -> None:
        """Abandon all tries of an attempt; connections that were handed over stay."""
        for sock in attempt.pending.values():
            self._loop.unwatch(sock)
            sock.close()
        for timer in attempt.waiting.values():
            timer.cancel()
        attempt.pending.clear()
        attempt.waiting.clear()

    def _try(self, attempt: ConnectionAttempt, address: Address) -> None:
        attempt.waiting.pop(address, None)
        if attempt.over:
            return
        # A connection exists and is being agreed on. Do not add another, but stay ready in case it
        # fails.
        if attempt.handshaking():
            self._retry(attempt, address, random.uniform(*ACCEPTING_WAIT))
            return
        wait = self._wait_for_turn(attempt, address)
        if wait:
            self._retry(attempt, address, wait)
            return
        try:
            # Always from the registered port: the NAT's mapping of that port is the one that peers
            # dial.
            family = socket.AF_INET6 if address.family == 6 else socket.AF_INET
            sock = reusable_socket(family, self.ports[family])
        except OSError as error:
            self._refused(attempt, address, error.errno or 0)
            return
        sock.setblocking(False)
        # A refusal can be immediate (loopback, or a NAT that answers with a reset), so the code is
        # looked at here as well as when the socket becomes writable.
        code = sock.connect_ex((address.host, address.port))
        if code in (0, errno.EINPROGRESS):
            attempt.pending[address] = sock
            self._loop.watch(sock, WRITE, lambda _: self._writable(attempt, address))
        else:
            sock.close()
            self._refused(attempt, address, code)

    def _writable(self, attempt: ConnectionAttempt, address: Address) -> None:
        sock = attempt.pending.pop(address, None)
        if sock is None:  # abandoned in the same round of events
            return
        self._loop.unwatch(sock)
        # Writable only says that connecting is over; whether it succeeded is in SO_ERROR
        # (connect(2)).
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            sock.close()
            self._refused(attempt, address, code)
        else:
            self._connected(attempt, address, sock)

    def _wait_for_turn(self, attempt: ConnectionAttempt, address: Address) -> float:
        """Claimed addresses are dialed at a limited rate for each rank, over all attempts."""
        if address == attempt.observed:
            return 0.0
        turns = self._turns.setdefault(attempt.rank, TokenBucket(CLAIMED_BURST, CLAIMED_RATE))
        return turns.take(time.monotonic())

    def _refused(self, attempt: ConnectionAttempt, address: Address, code: int) -> None:
        failures = attempt.failures[address] = attempt.failures.get(address, 0) + 1
        attempt.accepting = code == errno.EADDRNOTAVAIL
        # Back off from claimed addresses: they may belong to someone who is not part of the job.
        if address != attempt.observed:
            wait = backoff(failures, random.random())
        # The peer's connection between the same two ports exists: look again once it was accepted.
        elif attempt.accepting:
            wait = random.uniform(*ACCEPTING_WAIT)
        else:
            # The observed address is really the peer's: try as often as punching a hole needs.
            wait = retry_wait(self.round_trip, failures, random.random())
        self._retry(attempt, address, wait)
