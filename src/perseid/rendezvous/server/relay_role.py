"""Relay requests: waits for both ends of a pair, and joins them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

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
from perseid.rendezvous.server.client_connection import ClientConnection
from perseid.rendezvous.server.context import ServerContext
from perseid.rendezvous.server.limits import Deadlines
from perseid.rendezvous.server.registry import Member
from perseid.rendezvous.server.relay import CHUNK, RelayedPair, RelayResources, Throttle
from perseid.rendezvous.server.role import Role

PairKey = tuple[str, int, int, int]
"""Job, generation, lower and higher rank."""


@dataclass(slots=True)
class RelayWaiter:
    """A connection that waits for the other end of its pair."""

    key: PairKey
    rank: int
    """The rank at this end."""


@dataclass(frozen=True, slots=True)
class _Stream:
    """One relayed stream."""

    pair: RelayedPair
    members: tuple[Member, Member]


class RelayRole(Role):
    """Joins the two ends of a pair."""

    def __init__(self, context: ServerContext) -> None:
        super().__init__(context)
        self._shared = RelayResources(
            context.clock,
            context.poller,
            Throttle(context.config.relay_rate),
            memoryview(bytearray(CHUNK)),
        )
        self._deadlines = Deadlines(context.config.relay_wait_seconds)
        self._waiting: dict[PairKey, ClientConnection] = {}
        self._streams: dict[PairKey, _Stream] = {}

    @property
    def pairs(self) -> list[RelayedPair]:
        """Streams that are open now."""
        return [stream.pair for stream in self._streams.values()]

    @property
    def kept_bytes(self) -> int:
        """Bytes kept for receivers that are slow to read."""
        return self._shared.kept

    def admit(self, connection: ClientConnection, hello: RelayRequest, mac: bytes) -> None:
        """Accept one end of a pair; the other is invited unless it waits already."""
        config, registry = self.context.config, self.context.registry
        mine = registry.find(hello.job, hello.generation, hello.rank)
        other = registry.find(hello.job, hello.generation, hello.peer)
        low, high = sorted((hello.rank, hello.peer))
        key = (hello.job, hello.generation, low, high)
        if not config.relay:
            self.refuse(connection, RefusalCode.RELAY, "this server does not relay")
        # Only registered ranks are relayed: otherwise the server would be an open proxy.
        elif mine is None or mine.instance != hello.instance or other is None:
            self.refuse(connection, RefusalCode.RELAY, "one of the two ranks is not registered")
        # A pair that comes back takes the place of its former stream and needs no further one.
        elif len(self._streams) >= config.relay_pairs and key not in self._streams:
            reason = f"this server relays {len(self._streams)} pairs already"
            self.refuse(connection, RefusalCode.LIMIT, reason)
        else:
            self._accept(connection, key, hello.rank, mac, (mine, other))

    def _accept(
        self,
        connection: ClientConnection,
        key: PairKey,
        rank: int,
        mac: bytes,
        members: tuple[Member, Member],
    ) -> None:
        self.context.hello_deadlines.drop(connection)
        public = Address(connection.host, connection.port)
        connection.write(Welcome(public, mac, True).pack())
        connection.handler = self
        connection.state = RelayWaiter(key, rank)
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            self._deadlines.drop(waiting)
            state = waiting.state
            if isinstance(state, RelayWaiter) and state.rank != rank:
                self._join(key, waiting, connection, members)
                return
            waiting.close()  # the same rank asked before: only its latest connection counts
        self._waiting[key] = connection
        self._deadlines.add(connection, self.context.clock.now())
        mine, other = members
        if isinstance(other.handle, ClientConnection):
            other.handle.write(mine.as_peers() + RelayInvite(rank).pack())

    def _join(
        self,
        key: PairKey,
        one: ClientConnection,
        two: ClientConnection,
        members: tuple[Member, Member],
    ) -> None:
        ready = RelayReady().pack()
        one.write(ready)
        two.write(ready)
        # One of them hung up at this very moment. The other will ask again.
        if one.closed or two.closed:
            one.close()
            two.close()
            return
        # Both ends are here again, so the former stream is dead whatever its sockets say.
        if key in self._streams:
            self._streams[key].pair.close()
        socks = (one.detach(), two.detach())
        pair = RelayedPair(self._shared, socks, partial(self._ended, key))
        self._streams[key] = _Stream(pair, members)
        self.context.counters.relay_pairs += 1

    def _ended(self, key: PairKey, pair: RelayedPair) -> None:
        del self._streams[key]
        self.context.counters.relay_bytes += pair.relayed_bytes

    def cut(self, member: Member) -> None:
        """End the streams of a lost member."""
        for stream in [one for one in self._streams.values() if member in one.members]:
            stream.pair.close()

    def received(self, connection: ClientConnection, data: bytes) -> None:
        """Refuse bytes that come before ``RelayReady``."""
        self.ended(connection)
        self.malformed(connection, ProtocolError("bytes before the relay was ready"))

    def ended(self, connection: ClientConnection) -> None:
        """The client gave up waiting."""
        self._deadlines.drop(connection)
        state = connection.state
        if isinstance(state, RelayWaiter) and self._waiting.get(state.key) is connection:
            del self._waiting[state.key]

    def sweep(self, now: float) -> None:
        """Refuse the connections that waited too long for the other end."""
        for connection in self._deadlines.pop_due(now):
            self.ended(connection)
            if not connection.closed:
                reason = "the other rank did not come to the relay"
                self.refuse(connection, RefusalCode.RELAY, reason)
