"""The wire format of the rendezvous: bytes in, frames out; no socket anywhere.

A connection opens with ``MAGIC`` and one opening frame (``Register``, ``Relay`` or ``Probe``);
from then on both sides send frames: one byte of type, four bytes of length, the body. Numbers are
in network byte order. docs/reference/rendezvous-protocol.md describes each byte.
"""

from __future__ import annotations

from collections.abc import Callable

from perseid.rendezvous.protocol.registration import (
    Challenge,
    Observed,
    Probe,
    Proof,
    Refused,
    Register,
    Relay,
    Welcome,
)
from perseid.rendezvous.protocol.types import Frame
from perseid.rendezvous.protocol.updates import (
    AskBack,
    AskMissing,
    Back,
    Beat,
    Call,
    Complete,
    Draining,
    Invite,
    Leave,
    Lost,
    Missing,
    Peers,
    RelayReady,
    Superseded,
    TellNat,
    Want,
)
from perseid.rendezvous.protocol.wire import ProtocolError

MAGIC = b"\x93PERSEID"
"""The first bytes of each connection; 0x93 cannot begin UTF-8 text, so no pairing name does."""

_FROM_CLIENT: tuple[type[Frame], ...] = (
    Register, Relay, Probe, Proof, Want, AskMissing, Beat, TellNat, AskBack, Call, Leave,
)  # fmt: skip
_FROM_SERVER: tuple[type[Frame], ...] = (
    Observed, Challenge, Welcome, Refused, Peers, Lost, Missing, Complete, Superseded, Beat,
    Back, Call, Invite, RelayReady, Draining,
)  # fmt: skip


def _table(kinds: tuple[type[Frame], ...]) -> dict[int, Callable[[bytes], Frame]]:
    return {kind.KIND: kind.unpack for kind in kinds}


FROM_CLIENT = _table(_FROM_CLIENT)
"""How a server reads each type of frame."""
FROM_SERVER = _table(_FROM_SERVER)
"""How a client reads each type of frame."""


def decode(table: dict[int, Callable[[bytes], Frame]], kind: int, body: bytes) -> Frame:
    """The frame of one type.

    Raises
    ------
    ProtocolError
        The type is unknown in this direction, or the body does not fit it.
    """
    unpack = table.get(kind)
    if unpack is None:
        raise ProtocolError(f"frame type {kind} is not known in this direction")
    return unpack(body)
