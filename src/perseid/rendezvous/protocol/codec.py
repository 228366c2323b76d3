"""Which frames exist, and how the bytes of each become an object.

A connection starts with ``MAGIC`` and one of ``Register``, ``RelayRequest`` or ``Probe``. From
then on both sides send frames: one byte of type, four bytes of length, the body. Numbers are in
network byte order. docs/reference/rendezvous-protocol.md describes each byte.
"""

from __future__ import annotations

from collections.abc import Callable

from perseid.rendezvous.protocol.registration import (
    Challenge,
    ObservedAddress,
    Probe,
    Proof,
    Refused,
    Register,
    RelayRequest,
    Welcome,
)
from perseid.rendezvous.protocol.types import ControlFrame
from perseid.rendezvous.protocol.updates import (
    Complete,
    ConnectRequest,
    Departures,
    Deregister,
    Draining,
    FailureReport,
    Heartbeat,
    MissingRanks,
    MissingRequest,
    NatReport,
    Peers,
    RankFailure,
    ReachabilityRequest,
    ReachabilityResult,
    RelayInvite,
    RelayReady,
    Subscribe,
    Superseded,
)
from perseid.rendezvous.protocol.wire import ProtocolError

MAGIC = b"\x93PERSEID"
"""The first bytes of each connection. 0x93 cannot begin UTF-8 text (RFC 3629), so no TCPunch name
does."""

_FROM_CLIENT: tuple[type[ControlFrame], ...] = (
    Register, RelayRequest, Probe, Proof, Subscribe, MissingRequest, Heartbeat, NatReport,
    ReachabilityRequest, ConnectRequest, Deregister, FailureReport,
)  # fmt: skip
_FROM_SERVER: tuple[type[ControlFrame], ...] = (
    ObservedAddress, Challenge, Welcome, Refused, Peers, Departures, MissingRanks, Complete,
    Superseded, Heartbeat, ReachabilityResult, ConnectRequest, RelayInvite, RelayReady, Draining,
    RankFailure,
)  # fmt: skip


def _table(kinds: tuple[type[ControlFrame], ...]) -> dict[int, Callable[[bytes], ControlFrame]]:
    return {kind.KIND: kind.unpack for kind in kinds}


FROM_CLIENT = _table(_FROM_CLIENT)
"""Decoders of the frames that a server accepts, by type."""
FROM_SERVER = _table(_FROM_SERVER)
"""Decoders of the frames that a client accepts, by type."""


def decode(
    table: dict[int, Callable[[bytes], ControlFrame]], kind: int, body: bytes
) -> ControlFrame:
    """Decode the body of a frame.

    Raises
    ------
    ProtocolError
        The type is unknown in this direction, or the body is invalid.
    """
    unpack = table.get(kind)
    if unpack is None:
        raise ProtocolError(f"frame type {kind} is not known in this direction")
    return unpack(body)
