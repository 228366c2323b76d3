"""What all roles share."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perseid.rendezvous.connection import Connection
from perseid.rendezvous.protocol import (
    Refusal,
    Refused,
    Register,
    Relay,
)
from perseid.rendezvous.wire import (
    FrameReader,
)

if TYPE_CHECKING:
    from perseid.rendezvous.server import Server

log = logging.getLogger("perseid.rendezvous")


@dataclass(slots=True)
class Opening:
    """A connection whose role is not known, or not proved, yet."""

    data: bytes = b""
    reader: FrameReader | None = None
    hello: Register | Relay | None = None
    raw: bytes = b""
    """The opening frame as it came, for the proof."""
    nonce: bytes = b""


class Role:
    """Base of the roles: the server they belong to, and refusing."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def refuse(self, connection: Connection, code: Refusal, reason: str) -> None:
        """Say no and close."""
        counters = self.server.counters
        if code is Refusal.KEY:
            counters.refused_key += 1
        elif code is Refusal.LIMIT:
            counters.refused_limit += 1
        else:
            counters.refused_other += 1
        log.info("refused", extra={"data": {"from": connection.host, "code": code.name}})
        connection.write(Refused(code, reason).pack())
        self.server.hello_deadlines.add(connection, self.server.now())
        connection.finish()

    def malformed(self, connection: Connection, error: Exception) -> None:
        """Close a connection that speaks no protocol of ours; its bytes are not logged."""
        self.server.counters.malformed += 1
        log.info("malformed", extra={"data": {"from": connection.host, "why": str(error)}})
        connection.close()
