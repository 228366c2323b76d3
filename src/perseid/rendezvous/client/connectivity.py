"""Test whether this machine can use a rendezvous: name, connection, round trip, NAT.

What a NAT makes of one local port is compared over the server's two ports and over all addresses
that its name gives, for each address family. Two ports of one address tell a mapping that depends
on the port; one that depends on the address alone shows at a second address only.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from perseid.errors import RendezvousUnreachableError
from perseid.rendezvous.client.connections import observe
from perseid.rendezvous.client.server_session import receive_frame
from perseid.rendezvous.net.dialing import dial, resolve
from perseid.rendezvous.net.endpoint import Endpoint
from perseid.rendezvous.protocol import (
    MAGIC,
    ControlFrame,
    Heartbeat,
    NatMapping,
    ObservedAddress,
    Probe,
)
from perseid.rendezvous.protocol.wire import MAX_SERVER_FRAME, Address, FrameReader, ProtocolError

ROUNDS = 5
"""Number of heartbeats that are timed."""
MORE_ADDRESSES = 3
"""Further addresses of the server that are probed in each family."""
PROBE_SECONDS = 2.0
"""Time for each of these probes."""


@dataclass(frozen=True, slots=True)
class View:
    """How the server sees one local port, in one address family."""

    local: Address
    """The local address."""
    asked: Address
    """The address and port of the server that were probed first."""
    seen: Address
    """The address that the server sees there."""
    others: tuple[tuple[Address, Address], ...] = ()
    """Further ports and addresses of the server, and the address that each sees."""

    @property
    def mapping(self) -> NatMapping:
        """Mapping of the NAT, as workers infer it; UNKNOWN if nothing could be compared."""
        if self.seen == self.local:
            return NatMapping.NONE
        if not self.others:
            return NatMapping.UNKNOWN
        macs_equal = all(seen == self.seen for _, seen in self.others)
        return NatMapping.INDEPENDENT if macs_equal else NatMapping.SYMMETRIC

    def by_port(self) -> bool | None:
        """Whether the mapping changes with the server's port; None: not compared."""
        return self._varies(seen for asked, seen in self.others if asked.host == self.asked.host)

    def by_address(self) -> bool | None:
        """Whether it changes with the server's address on the same port; None: not compared."""
        return self._varies(seen for asked, seen in self.others if asked.host != self.asked.host)

    def _varies(self, seen: Iterable[Address]) -> bool | None:
        found = list(seen)
        return any(one != self.seen for one in found) if found else None


@dataclass(frozen=True, slots=True)
class Ping:
    """The result of a connection test."""

    addresses: tuple[str, ...]
    """All addresses of the name."""
    remote: Address
    """The address that answered."""
    connect_seconds: float
    """Seconds to connect, name resolution included."""
    round_trip_seconds: float
    """Median round trip of the heartbeats, in seconds."""
    views: tuple[View, ...]
    """How the server sees this machine: in the address family of ``remote``, then in the other if
    the name has addresses of both and they answer."""
    second_port: int
    """The server's second port; 0: it has none."""
    keyed: bool
    """Whether registrations need a job key."""

    @property
    def observed(self) -> Address:
        """This machine's address as the server sees it."""
        return self.views[0].seen

    @property
    def mapping(self) -> NatMapping:
        """Mapping of the NAT; UNKNOWN if nothing could be compared."""
        return self.views[0].mapping


def ping(endpoint: Endpoint, seconds: float) -> Ping:
    """Test the connection to a server.

    Raises
    ------
    RendezvousUnreachableError
        The name is not known, nothing answers, or it is not a rendezvous; the message says which.
    """
    deadline = time.monotonic() + seconds
    try:
        found = resolve(endpoint)
    except OSError as error:
        raise RendezvousUnreachableError(
            f"The name {endpoint.host} is not known ({error.strerror}); is it spelled right, and "
            "was the record of the running server published?"
        ) from None
    began = time.monotonic()
    with dial(endpoint, deadline) as sock:
        took = time.monotonic() - began
        answer, round_trip = _speak(sock, endpoint, deadline)
        remote, family = Address(*sock.getpeername()[:2]), sock.family
        views = [_view(sock, answer, _hosts(found, family), deadline)]
    for other in {kind for kind, _ in found} - {family}:
        with contextlib.suppress(RendezvousUnreachableError):
            views.append(_other_family(endpoint, other, _hosts(found, other), deadline))
    addresses = tuple(host for _, host in found)
    return Ping(addresses, remote, took, round_trip, tuple(views), answer.probe_port, answer.keyed)


def _hosts(found: list[tuple[socket.AddressFamily, str]], family: int) -> list[str]:
    return [host for kind, host in found if kind == family]


def _other_family(endpoint: Endpoint, family: int, hosts: list[str], deadline: float) -> View:
    soon = min(deadline, time.monotonic() + PROBE_SECONDS)
    with dial(endpoint, soon, family=family) as sock:
        return _view(sock, _probe(sock, endpoint, soon), hosts, deadline)


def _view(sock: socket.socket, answer: ObservedAddress, hosts: list[str], deadline: float) -> View:
    local, asked = Address(*sock.getsockname()[:2]), Address(*sock.getpeername()[:2])
    more = [Address(host, asked.port) for host in hosts if host != asked.host][:MORE_ADDRESSES]
    if answer.probe_port:
        more.insert(0, Address(asked.host, answer.probe_port))
    others: list[tuple[Address, Address]] = []
    for one in more if answer.address != local else ():
        left = max(0.1, min(PROBE_SECONDS, deadline - time.monotonic()))
        with contextlib.suppress(RendezvousUnreachableError):
            seen = observe(Endpoint(one.host, one.port), local.port, sock.family, left)
            others.append((one, seen.address))
    return View(local, asked, answer.address, tuple(others))


def _probe(sock: socket.socket, endpoint: Endpoint, deadline: float) -> ObservedAddress:
    return _speak(sock, endpoint, deadline, rounds=0)[0]


def _speak(
    sock: socket.socket, endpoint: Endpoint, deadline: float, rounds: int = ROUNDS
) -> tuple[ObservedAddress, float]:
    reader = FrameReader(MAX_SERVER_FRAME)
    trips: list[float] = []
    try:
        sock.sendall(MAGIC + Probe().pack())
        seen = receive_frame(sock, reader, deadline)
        for token in range(rounds):
            began = time.perf_counter()
            sock.sendall(Heartbeat(token).pack())
            _expect_echo(receive_frame(sock, reader, deadline), token)
            trips.append(time.perf_counter() - began)
    except (OSError, ProtocolError) as error:
        raise RendezvousUnreachableError(
            f"Something listens at {endpoint} but does not answer as a rendezvous server does "
            f"({error}); is the port right, and is it ours (not an HTTP or TCPunch server)?"
        ) from None
    if not isinstance(seen, ObservedAddress):
        raise RendezvousUnreachableError(f"{endpoint} answered a probe with something else.")
    import statistics  # loads fractions and decimal, which no worker needs

    return seen, statistics.median(trips or [0.0])


def _expect_echo(frame: ControlFrame, token: int) -> None:
    if frame != Heartbeat(token):
        raise ProtocolError(f"a {type(frame).__name__} instead of a heartbeat's echo")
