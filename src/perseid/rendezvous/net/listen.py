"""Listening sockets for both address families, and the limit of open file descriptors."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket

from perseid.errors import RendezvousError
from perseid.rendezvous.net.keepalive import end_unanswered, watch_link

with contextlib.suppress(ImportError):  # not on Windows, where runs can be read
    import resource

BACKLOG = 4096
"""Connections that the kernel queues until they are accepted; capped at somaxconn (listen(2))."""
SPARE_DESCRIPTORS = 64
"""Descriptors kept free for listeners, logs and reachability checks."""
FEW_DESCRIPTORS = 4096
"""Below this the log has a warning: a run of 2,000 ranks with relayed pairs might not fit."""
PORT_TRIES = 20
"""How many free ports are tried: one that is free in IPv4 may be taken in IPv6."""

log = logging.getLogger("perseid.rendezvous")


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; return the connections that allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Shells allow 1,024 open files by default; the hard limit is what the administrator meant.
    if hard == resource.RLIM_INFINITY or soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1_000_000 if soft == resource.RLIM_INFINITY else soft
    if most < FEW_DESCRIPTORS:
        log.warning("few descriptors", extra={"data": {"limit": most, "mend": "ulimit -n 65536"}})
    return max(1, most - SPARE_DESCRIPTORS)


def listening_sockets(host: str, port: int, link_timeout: float) -> list[socket.socket]:
    """Listen on one port in each address family of ``host``; in IPv6 only where the host has it.

    Accepted connections break when the other host answers nothing for ``link_timeout`` seconds.

    Raises
    ------
    RendezvousError
        The address is unknown, or cannot be listened on.
    """
    families = _families(host)
    for _ in range(PORT_TRIES):
        socks: list[socket.socket] = []
        chosen = port
        failure: OSError | None = None
        for family, address in families:
            try:
                sock = _listening(family, address, chosen, link_timeout)
            except OSError as error:
                # Only if all addresses were asked for: a host without IPv6 is then no error.
                if family == socket.AF_INET6 and not host and error.errno != errno.EADDRINUSE:
                    continue  # the host has no IPv6
                failure = error
                break
            socks.append(sock)
            chosen = sock.getsockname()[1]
        if socks and failure is None:
            return socks
        for sock in socks:
            sock.close()
        # Only a port of the kernel's choice can be chosen again.
        if port or failure is None or failure.errno != errno.EADDRINUSE:
            break
    reason = failure.strerror if failure else "no such address"
    raise RendezvousError(
        f"The rendezvous cannot listen on {host or '*'} port {port}: {reason}; "
        "choose another with --host, --port or --http-port."
    )


def _families(host: str) -> list[tuple[socket.AddressFamily, str]]:
    if not host:
        return [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise RendezvousError(
            f"The address to listen on, {host}, is not known: {error.strerror}."
        ) from None
    return list(dict.fromkeys((info[0], str(info[4][0])) for info in infos))


def _listening(
    family: socket.AddressFamily, address: str, port: int, link_timeout: float
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these from the listener.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        watch_link(sock, link_timeout)
        end_unanswered(sock, link_timeout)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
