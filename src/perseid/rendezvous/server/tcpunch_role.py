"""TCPunch clients."""

from __future__ import annotations

from perseid.rendezvous.protocol import tcpunch
from perseid.rendezvous.protocol.wire import Address
from perseid.rendezvous.server.client_connection import ClientConnection
from perseid.rendezvous.server.context import ServerContext
from perseid.rendezvous.server.role import Role


class TcpunchRole(Role):
    """Clients of the TCPunch protocol, both versions."""

    def __init__(self, context: ServerContext) -> None:
        super().__init__(context)
        self._pairings: tcpunch.Pairings[ClientConnection] = tcpunch.Pairings()

    def __len__(self) -> int:
        return len(self._pairings)

    def first_bytes(self, connection: ClientConnection, data: bytes) -> None:
        """Take over a connection whose first bytes are not of our own protocol."""
        if not self.context.config.tcpunch:
            self._reject(
                connection, tcpunch.TcpunchError("this server does not serve TCPunch clients")
            )
            return
        if ":" in connection.host:
            self._reject(connection, tcpunch.TcpunchError("TCPunch works over IPv4 only"))
            return
        connection.handler = self
        connection.state = b""
        self.received(connection, data)

    def received(self, connection: ClientConnection, data: bytes) -> None:
        """Collect a request; bytes after it are ignored."""
        # The request is complete: what still comes is not part of the protocol.
        if not isinstance(connection.state, bytes):
            return
        connection.state += data
        try:
            version = tcpunch.request_version(connection.state)
        except tcpunch.TcpunchError as error:
            self._reject(connection, error)
            return
        if version == 2:
            self._request(connection, connection.state)
        elif version == 1:
            clock = self.context.clock
            # A name has no terminator, so silence ends it.
            clock.call_later(tcpunch.GRACE, self._settled, connection, len(connection.state))

    def _settled(self, connection: ClientConnection, length: int) -> None:
        raw = connection.state
        # More bytes have come since, and with them a later call of this function.
        if not connection.closed and isinstance(raw, bytes) and len(raw) == length:
            self._request(connection, raw)

    def _request(self, connection: ClientConnection, raw: bytes) -> None:
        own = Address(connection.host, connection.port)
        try:
            if len(raw) == tcpunch.REQUEST_BYTES:
                request = tcpunch.parse_v2(raw)
            else:
                request = tcpunch.parse_v1(raw)
        except tcpunch.TcpunchError as error:
            if len(raw) == tcpunch.REQUEST_BYTES:
                connection.write(tcpunch.pack_v2(tcpunch.ReplyStatus.ERROR, own, None, ""))
            self._reject(connection, error)
            return
        if request.version == 2 and not request.token:
            request = tcpunch.Request(2, request.name, tcpunch.new_token())
        self.context.hello_deadlines.drop(connection)
        self._offer(connection, own, request)

    def _offer(self, connection: ClientConnection, own: Address, request: tcpunch.Request) -> None:
        if self.context.draining and not self._pairings.awaits(request):
            connection.close()
            return
        connection.state = request
        # Version 1 tells a client its own address first, and the peer's in a second message.
        if request.version == 1:
            connection.write(tcpunch.pack_v1(own))
        newcomer = tcpunch.Waiter(request, connection, self.context.clock.now())
        partner, replaced = self._pairings.offer(newcomer, lambda other: other.alive())
        if replaced is not None:
            self.context.counters.tcpunch_dead_waiters += 1
            replaced.handle.close()
        if partner is not None:
            self.context.counters.tcpunch_pairs += 1
            self._pair(partner, newcomer)
        elif request.version == 2:
            waiting = tcpunch.pack_v2(tcpunch.ReplyStatus.WAITING, own, None, request.token)
            connection.write(waiting)

    def _pair(
        self, one: tcpunch.Waiter[ClientConnection], two: tcpunch.Waiter[ClientConnection]
    ) -> None:
        for me, other in ((one, two), (two, one)):
            own = Address(me.handle.host, me.handle.port)
            peer = Address(other.handle.host, other.handle.port)
            if me.request.version == 1:
                me.handle.write(tcpunch.pack_v1(peer))
            else:
                paired = tcpunch.ReplyStatus.PAIRED
                me.handle.write(tcpunch.pack_v2(paired, own, peer, me.request.token))
        self._finish(one.handle)
        self._finish(two.handle)

    def _finish(self, connection: ClientConnection) -> None:
        self.context.restart_deadline(connection)
        connection.finish()

    def _reject(self, connection: ClientConnection, error: tcpunch.TcpunchError) -> None:
        self.context.hello_deadlines.drop(connection)
        self.malformed(connection, error)

    def ended(self, connection: ClientConnection) -> None:
        """The client closed: if it waits, it must not be paired any more."""
        self.context.hello_deadlines.drop(connection)
        if isinstance(connection.state, tcpunch.Request):
            self._pairings.withdraw(connection.state, connection)

    def sweep(self, now: float) -> None:
        """Close the clients that waited too long."""
        for waiter in self._pairings.older_than(now - self.context.config.waiting_seconds):
            connection = waiter.handle
            if waiter.request.version == 2:
                own = Address(connection.host, connection.port)
                timeout = tcpunch.ReplyStatus.TIMEOUT
                connection.write(tcpunch.pack_v2(timeout, own, None, waiter.request.token))
            self._finish(connection)
