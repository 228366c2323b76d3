"""What a server is started with: its settings and its secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from perseid.errors import BadInputError
from perseid.rendezvous.liveness import LINK_SECONDS
from perseid.rendezvous.net.endpoint import DEFAULT_PORT
from perseid.rendezvous.server.registry import RegistryLimits

MIN_SECRET_BYTES = 16
"""Shortest secret that a server accepts: 128 bits, beyond any search (RFC 4086, section 8.2)."""


@dataclass(frozen=True)
class Config:
    """Settings of one server."""

    host: str = ""
    """Address to listen on; empty: all, IPv4 and IPv6."""
    port: int = DEFAULT_PORT
    """Port for workers and TCPunch clients; 0: any free port."""
    http_port: int | None = DEFAULT_PORT + 1
    """Health and metrics, and second port for probes; None: none; 0: any free port."""
    secret: bytes | None = None
    """Job keys are derived from it; None: an open server, without keys."""
    certificate: str | None = None
    """The server's own certificate and private key (PEM), by whose fingerprint clients know it;
    None: registrations are plain. Clients without the fingerprint are served as well."""
    tcpunch: bool = True
    """Whether TCPunch clients are served (their protocol has no keys)."""
    relay: bool = True
    """Whether pairs that cannot connect directly are relayed."""
    relay_rate: float = 0.0
    """Bytes per second over all relayed pairs; 0: unlimited."""
    relay_pairs: int = 10_000
    """Most relayed pairs at once; each takes two descriptors."""
    hello_seconds: float = 10.0
    """Time from accepting a connection to the end of its handshake. After a lost SYN, a system
    repeats lost data after 3 s, then after another 6 s (RFC 6298, section 5.7)."""
    waiting_seconds: float = 900.0
    """Longest wait of a TCPunch client for its partner: the longest life of a Lambda function."""
    relay_wait_seconds: float = 15.0
    """Longest wait at the relay for the other end."""
    min_heartbeat: float = 0.2
    """Shortest silence time-out, in seconds, that is granted to a client."""
    link_timeout: float = LINK_SECONDS
    """Seconds without any answer of a worker's host after which its connection counts as cut."""
    rate: float = 2000.0
    """New connections per second from one address (loopback excepted); 0: unlimited."""
    burst: float = 8000.0
    """New connections at once from one address: a whole run behind one NAT gateway."""
    clients: int = 0
    """Most connections; 0: as many as the limit of open files allows."""
    limits: RegistryLimits = field(default_factory=RegistryLimits)
    """Most jobs and ranks."""


def read_certificate(path: str | Path) -> str:
    """The server's certificate with its private key, as a file has them.

    Raises
    ------
    BadInputError
        The file cannot be read.
    """
    try:
        return Path(path).read_text(errors="replace")
    except OSError as error:
        raise BadInputError(
            f"The certificate {path} cannot be read: {error.strerror}; make one with "
            "`perseid comm certificate > FILE`."
        ) from None


def read_secret(path: str | Path) -> bytes:
    """The server's secret: the first line of a file, at least 16 bytes.

    Raises
    ------
    BadInputError
        The file cannot be read or is too short.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise BadInputError(f"The key file {path} cannot be read: {error.strerror}.") from None
    secret = lines[0].strip() if lines else b""
    if len(secret) < MIN_SECRET_BYTES:
        raise BadInputError(
            f"The key file {path} holds {len(secret)} bytes in its first line, at least "
            f"{MIN_SECRET_BYTES} are needed; make one with "
            "`python -c 'import secrets; print(secrets.token_hex(32))'`."
        )
    return secret
