"""Connecting to a server by name, with a deadline.

The name is resolved again for each attempt, so that a record that changed is followed as fast as
the system's resolver follows it.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time

from perseid.errors import RendezvousUnreachableError
from perseid.rendezvous.net.endpoint import Endpoint

ATTEMPT_SECONDS = 2.0
"""Time for one address before the next is tried; a dead one must not use up the deadline."""
DISCARD_PORT = 9
"""Port of an address to which nothing is sent: connecting tells which local address leads there."""


Found = list[tuple[socket.AddressFamily, str]]
"""The addresses of a name: family and numeric address of each."""


def resolve(endpoint: Endpoint) -> Found:
    """Look up the addresses of a name, in the system's order.

    Raises
    ------
    OSError
        The name is not known.
    """
    # Given a string, Python would load its codec for international names: milliseconds at start.
    host = endpoint.host.encode() if endpoint.host.isascii() else endpoint.host
    infos = socket.getaddrinfo(host, endpoint.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((info[0], str(info[4][0])) for info in infos))


def reusable_socket(family: int, port: int = 0, host: str = "") -> socket.socket:
    """A TCP socket whose local port may be shared by a listener and by connections.

    It is bound at once, so that sockets in TIME_WAIT do not take all ports (SO_REUSEADDR, ip(7)).
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Both options are needed on both sockets: listener and outgoing connections share one port,
        # which is what makes a peer's SYN and ours meet in the same NAT mapping.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):  # Windows shares a port without it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # Else the socket would take the port in IPv4 as well, where another listens.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def dial(
    endpoint: Endpoint, deadline: float, local_port: int = 0, family: int = 0
) -> socket.socket:
    """Connect to a server, trying all its addresses again and again until the deadline.

    Parameters
    ----------
    deadline
        On ``time.monotonic``'s clock.
    local_port
        Port to connect from; 0: any free one.
    family
        Only this address family; 0: all.

    Raises
    ------
    RendezvousUnreachableError
        No address answered in time.
    """
    return dial_and_tell(endpoint, deadline, local_port, family)[0]


def dial_and_tell(
    endpoint: Endpoint, deadline: float, local_port: int = 0, family: int = 0
) -> tuple[socket.socket, Found]:
    """The same, together with all addresses of the name."""
    failure = "none of its addresses was tried in time"
    while True:
        try:
            found = resolve(endpoint)
        except OSError as error:
            found, failure = [], f"its name is not known ({error.strerror})"
        for kind, host in found:
            if family and kind != family:
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                seconds = min(left, ATTEMPT_SECONDS)
                return connect_once(kind, host, endpoint.port, local_port, seconds), found
            except OSError as error:
                failure = f"{host}: {error.strerror or error}"
        # Random: all workers of a run start at once and would come back at once.
        pause = random.uniform(0.02, 0.2)
        if time.monotonic() + pause >= deadline:
            raise RendezvousUnreachableError(
                f"No rendezvous server answers at {endpoint}: {failure}; "
                "is it running, is the port right, and does the firewall let it through?"
            )
        time.sleep(pause)


def connect_once(
    family: int, host: str, port: int, local_port: int, seconds: float
) -> socket.socket:
    """Connect to one address, once.

    Raises
    ------
    OSError
        The connection failed or took too long.
    """
    sock = reusable_socket(family, local_port)
    try:
        sock.settimeout(seconds)
        sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def own_address(server: str) -> str:
    """This machine's address in the network that an address is of; nothing is sent."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((server, DISCARD_PORT))
        return str(probe.getsockname()[0])
    return socket.gethostbyname(socket.gethostname())
