"""The HTTP port: health, metrics, probes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from perseid.rendezvous.connection import Connection
from perseid.rendezvous.metrics import request_path, response
from perseid.rendezvous.protocol import (
    MAGIC,
    Probe,
    decode,
)
from perseid.rendezvous.wire import (
    FrameReader,
)

if TYPE_CHECKING:
    pass

from perseid.rendezvous.roles.base import Opening, Role

log = logging.getLogger("perseid.rendezvous")


class HttpRole(Role):
    """Health, metrics, and probes on the second port."""

    def received(self, connection: Connection, data: bytes) -> None:
        """Collect a request or a probe."""
        if connection.closing:
            return
        state = connection.state
        if not isinstance(state, Opening):
            state = connection.state = Opening()
        state.data += data
        try:
            if state.data.startswith(MAGIC[: len(state.data)]):
                self._probe(connection, state)
                return
            path = request_path(state.data)
        except ValueError as error:
            self.server.counters.malformed += 1
            connection.write(response(400, f"{error}\n"))
            connection.finish()
            return
        if path is not None:
            connection.write(self._answer(path))
            connection.finish()

    def _probe(self, connection: Connection, state: Opening) -> None:
        for kind, body in FrameReader(64).feed(state.data[len(MAGIC) :]):
            decode({Probe.KIND: Probe.unpack}, kind, body)
            connection.write(self.server.members.observed(connection).pack())
            connection.finish()

    def _answer(self, path: str) -> bytes:
        server = self.server
        if path in ("/healthz", "/health"):
            return response(200, "ok\n")
        if path == "/readyz":
            return response(503, "draining\n") if server.draining else response(200, "ready\n")
        if path == "/metrics":
            return response(200, server.metrics(), "text/plain; version=0.0.4; charset=utf-8")
        return response(404, "try /healthz, /readyz or /metrics\n")

    def ended(self, connection: Connection) -> None:
        """Gone."""
        self.server.hello_deadlines.drop(connection)
