"""Can this machine use that rendezvous? Name, connection, hello, round trip, kind of NAT."""

from __future__ import annotations

import socket
import statistics
import time
from dataclasses import dataclass

from perseid.errors import RendezvousUnreachable
from perseid.rendezvous.dial import Endpoint, dial, resolve
from perseid.rendezvous.dns import time_to_live
from perseid.rendezvous.nat import mapping_kind
from perseid.rendezvous.protocol import (
    MAGIC,
    Beat,
    Frame,
    Mapping,
    Observed,
    Probe,
)
from perseid.rendezvous.session import receive_frame
from perseid.rendezvous.streams import observe
from perseid.rendezvous.wire import MAX_SERVER_FRAME, Address, FrameReader, ProtocolError

ROUNDS = 5
"""Heartbeats that are timed."""


@dataclass(frozen=True, slots=True)
class Ping:
    """What one ping found."""

    addresses: tuple[str, ...]
    """What the name gives."""
    ttl: int | None
    """Seconds that the name may be cached; None: not known (a numeric address, /etc/hosts)."""
    remote: Address
    """The address that answered."""
    connect_seconds: float
    """Time to connect."""
    round_trip_seconds: float
    """Median of the heartbeats' round trips."""
    local: Address
    """This side, as it sees itself."""
    observed: Address
    """This side, as the server sees it."""
    mapping: Mapping
    """Kind of NAT; UNKNOWN where the second port does not answer."""
    second_port: int
    """The server's second port; 0: it has none."""
    keyed: bool
    """Whether registrations need a job key."""


def ping(endpoint: Endpoint, seconds: float) -> Ping:
    """Try a server.

    Raises
    ------
    RendezvousUnreachable
        The name is not known, nothing answers, or it is no rendezvous; the message says which.
    """
    deadline = time.monotonic() + seconds
    try:
        found = resolve(endpoint)
    except OSError as error:
        raise RendezvousUnreachable(
            f"The name {endpoint.host} is not known ({error.strerror}); is it spelled right, and "
            "was the record of the running server published?"
        ) from None
    ttl = time_to_live(endpoint.host, found[0][0]) if found[0][1] != endpoint.host else None
    began = time.monotonic()
    with dial(endpoint, deadline) as sock:
        took = time.monotonic() - began
        seen, round_trip = _speak(sock, endpoint, deadline)
        local, remote = Address(*sock.getsockname()[:2]), Address(*sock.getpeername()[:2])
        second = _second(remote, seen.probe_port, local.port, sock.family, deadline)
    addresses = tuple(host for _, host in found)
    mapping = mapping_kind(local, seen.address, second)
    return Ping(
        addresses, ttl, remote, took, round_trip, local, seen.address, mapping,
        seen.probe_port, seen.keyed,
    )  # fmt: skip


def _speak(sock: socket.socket, endpoint: Endpoint, deadline: float) -> tuple[Observed, float]:
    reader = FrameReader(MAX_SERVER_FRAME)
    try:
        sock.sendall(MAGIC + Probe().pack())
        seen = receive_frame(sock, reader, deadline)
        trips: list[float] = []
        for token in range(ROUNDS):
            began = time.perf_counter()
            sock.sendall(Beat(token).pack())
            _expect_beat(receive_frame(sock, reader, deadline), token)
            trips.append(time.perf_counter() - began)
    except (OSError, ProtocolError) as error:
        raise RendezvousUnreachable(
            f"Something listens at {endpoint} but does not answer as a rendezvous server does "
            f"({error}); is the port right, and is it ours (not an HTTP or TCPunch server)?"
        ) from None
    if not isinstance(seen, Observed):
        raise RendezvousUnreachable(f"{endpoint} answered a probe with something else.")
    return seen, statistics.median(trips)


def _expect_beat(frame: Frame, token: int) -> None:
    if frame != Beat(token):
        raise ProtocolError(f"a {type(frame).__name__} instead of a heartbeat's echo")


def _second(
    remote: Address, probe_port: int, local_port: int, family: int, deadline: float
) -> Address | None:
    if not probe_port:
        return None
    left = max(0.1, min(2.0, deadline - time.monotonic()))
    try:
        return observe(Endpoint(remote.host, probe_port), local_port, family, left).address
    except RendezvousUnreachable:
        return None
