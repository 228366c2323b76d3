"""The HTTP port: health, metrics, and probes from a second port."""

from __future__ import annotations

from collections.abc import Callable

from perseid.rendezvous.protocol import MAGIC, Probe, decode
from perseid.rendezvous.protocol.wire import FrameReader
from perseid.rendezvous.server.client_connection import ClientConnection
from perseid.rendezvous.server.context import ServerContext
from perseid.rendezvous.server.http import request_path, response
from perseid.rendezvous.server.role import Role

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class HttpRole(Role):
    """Answers HTTP requests, and ``Probe`` on the second port.

    Parameters
    ----------
    metrics
        Gives the text of ``/metrics``.
    """

    def __init__(self, context: ServerContext, metrics: Callable[[], str]) -> None:
        super().__init__(context)
        self._metrics = metrics

    def received(self, connection: ClientConnection, data: bytes) -> None:
        """Collect a request or a probe, and answer once it is complete."""
        if connection.closing:
            return
        request = connection.state if isinstance(connection.state, bytes) else b""
        connection.state = request = request + data
        try:
            if request.startswith(MAGIC[: len(request)]):
                self._probe(connection, request)
                return
            path = request_path(request)
        except ValueError as error:
            self.context.counters.malformed += 1
            connection.write(response(400, f"{error}\n"))
            connection.finish()
            return
        if path is not None:
            connection.write(self._answer(path))
            connection.finish()

    def _probe(self, connection: ClientConnection, request: bytes) -> None:
        for kind, body in FrameReader(64).feed(request[len(MAGIC) :]):
            decode({Probe.KIND: Probe.unpack}, kind, body)
            connection.write(self.context.observed(connection).pack())
            connection.finish()

    def _answer(self, path: str) -> bytes:
        if path in ("/healthz", "/health"):
            return response(200, "ok\n")
        if path == "/readyz":
            draining = self.context.draining
            return response(503, "draining\n") if draining else response(200, "ready\n")
        if path == "/metrics":
            return response(200, self._metrics(), _PROMETHEUS)
        return response(404, "try /healthz, /readyz or /metrics\n")

    def ended(self, connection: ClientConnection) -> None:
        self.context.hello_deadlines.drop(connection)
