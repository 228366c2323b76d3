"""Workers that ask for a stream through the server."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from perseid.rendezvous.protocol import (
    RefusalCode,
    RelayInvite,
    RelayReady,
    RelayRequest,
    Welcome,
)
from perseid.rendezvous.protocol.wire import (
    Address,
    ProtocolError,
)
from perseid.rendezvous.server.connection import Connection
from perseid.rendezvous.server.context import ServerContext
from perseid.rendezvous.server.limits import Deadlines
from perseid.rendezvous.server.registry import Member
from perseid.rendezvous.server.relay import RelayedPair, Throttle
from perseid.rendezvous.server.role import Role

log = logging.getLogger("perseid.rendezvous")


@dataclass(slots=True)
class RelayWaiter:
    """A connection that waits for the other end of its pair."""

    key: tuple[str, int, int, int]
    """Job, generation, lower and higher rank."""
    rank: int


class RelayRole(Role):
    """Joins the two ends of a pair."""

    def __init__(self, context: ServerContext) -> None:
        super().__init__(context)
        self.pairs: set[RelayedPair] = set()
        """Streams that are open now."""
        self._throttle = Throttle(context.config.relay_rate)
        self._deadlines = Deadlines(context.config.relay_wait_seconds)
        self._waiting: dict[tuple[str, int, int, int], Connection] = {}
        self._members: dict[RelayedPair, tuple[Member, Member]] = {}

    def admit(self, connection: Connection, hello: RelayRequest, mac: bytes) -> None:
        """Take one end; the other is invited, or waits already."""
        context = self.context
        mine = context.registry.find(hello.job, hello.generation, hello.rank)
        other = context.registry.find(hello.job, hello.generation, hello.peer)
        if not context.config.relay:
            self.refuse(connection, RefusalCode.RELAY, "this server relays nothing")
        elif mine is None or mine.instance != hello.instance or other is None:
            self.refuse(connection, RefusalCode.RELAY, "one of the two ranks is not registered")
        else:
            self._take(connection, hello, mac, mine, other)

    def _take(
        self, connection: Connection, hello: RelayRequest, mac: bytes, mine: Member, other: Member
    ) -> None:
        low, high = sorted((hello.rank, hello.peer))
        key = (hello.job, hello.generation, low, high)
        self.context.hello_deadlines.drop(connection)
        public = Address(connection.host, connection.port)
        connection.write(Welcome(public, mac, True).pack())
        connection.handler = self
        connection.state = RelayWaiter(key, hello.rank)
        waiting = self._waiting.get(key)
        state = waiting.state if waiting else None
        if waiting is not None and isinstance(state, RelayWaiter) and state.rank != hello.rank:
            del self._waiting[key]
            self._deadlines.drop(waiting)
            self._join(waiting, connection, (mine, other))
            return
        if waiting is not None:
            waiting.close()
        self._waiting[key] = connection
        self._deadlines.add(connection, self.context.clock.now())
        if isinstance(other.handle, Connection):
            other.handle.write(mine.as_peers() + RelayInvite(hello.rank).pack())

    def _join(self, one: Connection, two: Connection, members: tuple[Member, Member]) -> None:
        ready = RelayReady().pack()
        one.write(ready)
        two.write(ready)
        if one.closed or two.closed:
            one.close()
            two.close()
            return
        context = self.context
        socks = (one.detach(), two.detach())
        pair = RelayedPair(context.clock, context.poller, socks, self._throttle, self._pair_ended)
        self.pairs.add(pair)
        context.counters.relay_pairs += 1
        self._members[pair] = members

    def _pair_ended(self, pair: RelayedPair) -> None:
        self.pairs.discard(pair)
        self._members.pop(pair, None)
        self.context.counters.relay_bytes += pair.relayed_bytes

    def cut(self, member: Member) -> None:
        """End the streams of a lost member."""
        for pair in [pair for pair, ends in self._members.items() if member in ends]:
            pair.close()

    def received(self, connection: Connection, data: bytes) -> None:
        """Nothing may be sent before ``RelayReady``."""
        self.ended(connection)
        self.malformed(connection, ProtocolError("bytes before the relay was ready"))

    def ended(self, connection: Connection) -> None:
        """It gave up waiting."""
        self._deadlines.drop(connection)
        state = connection.state
        if isinstance(state, RelayWaiter) and self._waiting.get(state.key) is connection:
            del self._waiting[state.key]

    def sweep(self, now: float) -> None:
        """Refuse the connections that waited too long."""
        for connection in self._deadlines.pop_due(now):
            self._expired(connection)

    def _expired(self, connection: Connection) -> None:
        self.ended(connection)
        if not connection.closed:
            self.refuse(connection, RefusalCode.RELAY, "the other rank did not come to the relay")
