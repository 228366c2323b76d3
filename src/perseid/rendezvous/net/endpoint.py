"""Where a rendezvous server is, as the user writes it."""

from __future__ import annotations

from dataclasses import dataclass

from perseid.errors import BadInputError

DEFAULT_PORT = 10000
"""TCP port of a rendezvous unless another is given."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Host name or address, and port, of a server."""

    host: str
    """Name or numeric address, without brackets."""
    port: int = DEFAULT_PORT
    """TCP port, 1 to 65535."""

    @classmethod
    def parse(cls, text: str, default_port: int = DEFAULT_PORT) -> Endpoint:
        """``host``, ``host:port``, ``[v6]`` or ``[v6]:port``.

        Raises
        ------
        BadInputError
            It is none of these.
        """
        host, port = text.strip(), ""
        if host.startswith("["):
            host, _, unfinished = host[1:].partition("]")
            port = unfinished.removeprefix(":")
        elif host.count(":") == 1:
            host, _, port = host.partition(":")
        if not host or (port and not (port.isdigit() and 0 < int(port) < 65536)):
            raise BadInputError(f"{text!r} is no server; write HOST, HOST:PORT or [IPV6]:PORT.")
        return cls(host, int(port) if port else default_port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
