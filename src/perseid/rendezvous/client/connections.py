"""Connections to the server for registration, relay and probes: blocking, with deadlines."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass, replace

from perseid.errors import (
    RendezvousUnreachableError,
)
from perseid.rendezvous.client.server_session import ServerSession, open_session, receive_frame
from perseid.rendezvous.net.dialing import connect_once, dial, dial_and_tell, reusable_socket
from perseid.rendezvous.net.endpoint import Endpoint
from perseid.rendezvous.protocol import (
    MAGIC,
    ObservedAddress,
    Probe,
    Register,
    RelayReady,
    RelayRequest,
)
from perseid.rendezvous.protocol.wire import MAX_SERVER_FRAME, Address, FrameReader, ProtocolError

RELAY_SECONDS = 15.0
"""Time for both ends to connect to the relay."""
GOODBYE_SECONDS = 5.0
"""Longest wait until the server has read the last frames, which the network may lose at first."""
OTHER_FAMILY_SECONDS = 0.3
"""Time for the server to answer in the other address family. A name may have an IPv6 address that
the network cannot reach."""
BACKLOG = 4096
"""Connections that the kernel queues until they are accepted, capped at somaxconn (listen(2)). All
ranks may connect to one at once."""
RECEIVE_BYTES = 256 * 1024
"""Bytes taken by one read of the control connection."""


@dataclass(frozen=True, slots=True)
class OpenedRegistration:
    """A granted registration."""

    session: ServerSession
    hello: Register
    """The request, with the candidates of the other address family only."""
    listeners: tuple[socket.socket, ...]
    """Non-blocking; one for each address family, that of the session first."""


def register(
    endpoint: Endpoint, hello: Register, key: bytes | None, deadline: float
) -> OpenedRegistration:
    """Dial, listen on the same port, then register.

    In this order a peer that learns of this worker and connects at once is not refused.
    """
    with contextlib.ExitStack() as undo:
        sock, found = dial_and_tell(endpoint, deadline)
        sock = undo.enter_context(_secured(sock, endpoint, deadline))
        port: int = sock.getsockname()[1]
        # From the same port as the registration: the server sees, and hands out, the address that a
        # NAT gave to this very port.
        listeners = [undo.enter_context(_listening(sock.family, port))]
        others = [Endpoint(host, endpoint.port) for kind, host in found if kind != sock.family]
        if others and (other := _other_family(others[0], port, deadline)):
            listeners.append(undo.enter_context(other[0]))
            hello = replace(hello, candidates=other[1])
        session = _register(sock, hello, key, deadline)
        undo.pop_all()
    return OpenedRegistration(session, hello, tuple(listeners))


def _secured(sock: socket.socket, endpoint: Endpoint, deadline: float) -> socket.socket:
    """The connection to the server, in TLS where its address has a fingerprint."""
    if not endpoint.fingerprint:
        return sock
    from perseid.rendezvous.net.tls import secured  # OpenSSL takes its time to load

    try:
        return secured(sock, endpoint, deadline)
    except BaseException:
        sock.close()
        raise


def _listening(family: int, port: int) -> socket.socket:
    listener = reusable_socket(family, port)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _other_family(
    server: Endpoint, port: int, deadline: float
) -> tuple[socket.socket, tuple[Address, ...]] | None:
    """A listener in the address family that the worker does not register by, and its addresses.

    First the address that the server sees, then the local one; None if that family cannot be used.
    """
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    soon = min(deadline, time.monotonic() + OTHER_FAMILY_SECONDS)
    with contextlib.ExitStack() as undo:
        try:
            listener = undo.enter_context(_listening_near(family, port))
            own: int = listener.getsockname()[1]
            left = max(0.001, soon - time.monotonic())
            with connect_once(family, server.host, server.port, own, left) as sock:
                local = Address(*sock.getsockname()[:2])
                seen = _ask(sock, server, soon).address
        # Having only one address family is normal.
        except (RendezvousUnreachableError, OSError):
            return None
        undo.pop_all()
    return listener, tuple(dict.fromkeys((seen, local)))


def _listening_near(family: int, port: int) -> socket.socket:
    """Listen on the same port number if it is free in this family, else on any."""
    try:
        return _listening(family, port)
    except OSError:
        return _listening(family, 0)


def reregister(
    endpoint: Endpoint, hello: Register, key: bytes | None, deadline: float, port: int, family: int
) -> ServerSession:
    """Register again from the same port after the connection broke.

    ``hello`` has the candidates of the other address family.
    """
    with contextlib.ExitStack() as undo:
        sock = dial(endpoint, deadline, port, family)
        sock = undo.enter_context(_secured(sock, endpoint, deadline))
        session = _register(sock, hello, key, deadline)
        undo.pop_all()
    return session


def _register(
    sock: socket.socket, hello: Register, key: bytes | None, deadline: float
) -> ServerSession:
    local = Address(*sock.getsockname()[:2])
    candidates = (local, *hello.candidates)
    return open_session(sock, replace(hello, candidates=candidates), key, deadline)


def read_until_closed(sock: socket.socket) -> None:
    """Read until the server closes.

    Closing with unread bytes would reset the connection (RFC 2525, section 2.17), and the server
    would lose the last frames.
    """
    end = time.monotonic() + GOODBYE_SECONDS
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            if not sock.recv(RECEIVE_BYTES):
                return


def relay_stream(
    server: Endpoint, family: int, request: RelayRequest, key: bytes | None
) -> socket.socket:
    """Connect to the relay, and return the stream once the peer has done so, too."""
    deadline = time.monotonic() + RELAY_SECONDS
    sock = _secured(dial(server, deadline, family=family), server, deadline)
    try:
        session = open_session(sock, request, key, deadline)
        frame = receive_frame(sock, session.reader, deadline)
        # A refusal can come even after the welcome, when the peer did not arrive in time.
        if not isinstance(frame, RelayReady):
            raise ProtocolError(getattr(frame, "reason", f"a {type(frame).__name__}"))
    except BaseException:
        sock.close()
        raise
    if not server.fingerprint:
        return sock
    # From here on the peer's bytes, which the server passes on as they are.
    return socket.socket(sock.family, socket.SOCK_STREAM, fileno=sock.detach())


def observe(endpoint: Endpoint, port: int, family: int, seconds: float) -> ObservedAddress:
    """Ask one of the server's ports which address it sees.

    Parameters
    ----------
    port
        Local port to ask from; 0: any free one.
    family
        Address family; 0: any.

    Raises
    ------
    RendezvousUnreachableError
        No answer within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    with dial(endpoint, deadline, port, family) as sock:
        return _ask(sock, endpoint, deadline)


def _ask(sock: socket.socket, endpoint: Endpoint, deadline: float) -> ObservedAddress:
    try:
        sock.sendall(MAGIC + Probe().pack())
        frame = receive_frame(sock, FrameReader(MAX_SERVER_FRAME), deadline)
    except (OSError, ProtocolError) as error:
        raise RendezvousUnreachableError(
            f"{endpoint} did not answer as a rendezvous server does: {error}."
        ) from None
    if not isinstance(frame, ObservedAddress):
        raise RendezvousUnreachableError(f"{endpoint} answered a probe with something else.")
    return frame
