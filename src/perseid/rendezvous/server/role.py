"""Base of the roles: what an accepted connection can turn out to be, one module each.

One role object serves all its connections and keeps what it needs to know of each of them in
``connection.state``.
"""

from __future__ import annotations

import logging

from perseid.rendezvous.protocol import RefusalCode, Refused
from perseid.rendezvous.server.client_connection import ClientConnection
from perseid.rendezvous.server.context import ServerContext

log = logging.getLogger("perseid.rendezvous")


class Role:
    """What all roles can do: refuse a client, and drop one that speaks no known protocol."""

    def __init__(self, context: ServerContext) -> None:
        self.context = context

    def progressed(self, connection: ClientConnection) -> None:
        """By default nothing depends on how fast a client reads."""

    def refuse(self, connection: ClientConnection, code: RefusalCode, reason: str) -> None:
        """Send a refusal, then close."""
        counters = self.context.counters
        if code is RefusalCode.KEY:
            counters.refused_key += 1
        elif code is RefusalCode.LIMIT:
            counters.refused_limit += 1
        else:
            counters.refused_other += 1
        log.info("refused", extra={"data": {"from": connection.host, "code": code.name}})
        connection.write(Refused(code, reason).pack())
        self.context.restart_deadline(connection)
        connection.finish()

    def malformed(self, connection: ClientConnection, error: Exception) -> None:
        """Close a connection that sent invalid bytes; they are not logged."""
        self.context.counters.malformed += 1
        log.info("malformed", extra={"data": {"from": connection.host, "why": str(error)}})
        connection.close()
