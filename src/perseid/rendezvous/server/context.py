"""What the roles of one server share: settings, counters, state, poller, time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perseid.rendezvous.protocol import ObservedAddress
from perseid.rendezvous.protocol.wire import Address
from perseid.rendezvous.server.client_connection import ClientConnection
from perseid.rendezvous.server.limits import Deadlines
from perseid.rendezvous.server.poller import Poller
from perseid.rendezvous.server.prometheus import Counters
from perseid.rendezvous.server.registry import Registry
from perseid.rendezvous.server.server_config import Config

if TYPE_CHECKING:  # OpenSSL takes its time to load, and few servers have a certificate
    from perseid.rendezvous.net.tls import ServerCertificate


class Clock:
    """Time and timers of the server's event loop."""

    __slots__ = ("call_later", "now")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now: Callable[[], float] = loop.time
        """The loop's monotonic clock, in seconds."""
        self.call_later = loop.call_later
        """``call_later(seconds, function, *arguments)``."""


@dataclass(slots=True)
class ServerContext:
    """Given to each role; a role reaches nothing else of the server."""

    config: Config
    counters: Counters
    registry: Registry
    """Registered ranks of all jobs."""
    poller: Poller
    clock: Clock
    hello_deadlines: Deadlines
    """Connections that must finish their handshake, or read our last answer and close."""
    draining: bool = False
    """Whether the server is shutting down: no new job is admitted."""
    certificate: ServerCertificate | None = None
    """That of the server; None: connections are plain."""
    probe_port: int = 0
    """The second port that answers ``Probe``; 0: none."""

    def observed(self, connection: ClientConnection) -> ObservedAddress:
        """The answer to a probe on this connection."""
        address = Address(connection.host, connection.port)
        return ObservedAddress(address, self.probe_port, self.config.secret is not None)

    def restart_deadline(self, connection: ClientConnection) -> None:
        """Give a connection another ``hello_seconds`` before it is closed."""
        self.hello_deadlines.add(connection, self.clock.now())
