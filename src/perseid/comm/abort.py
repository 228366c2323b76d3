"""The error that a failing rank reports to its peers: encoded as bytes, and decoded again."""

from __future__ import annotations

import json

from perseid.errors import (
    MismatchedCollectiveError,
    PeerLostError,
    PerseidError,
    RendezvousTimeoutError,
)
from perseid.jsontext import parse_json
from perseid.rendezvous.protocol import MAX_REPORT_BYTES

MAX_MISSING = 50
"""Most missing ranks that a report lists, so that it stays within its size limit."""
_ON_THE_WIRE = {
    MismatchedCollectiveError: "MismatchedCollective",
    PeerLostError: "PeerLost",
    RendezvousTimeoutError: "RendezvousTimeout",
}
"""Names of errors in an ABORT frame; they stay the same when a class is renamed."""


def to_bytes(error: PerseidError, sender: int) -> bytes:
    """Encode an error as JSON that is short enough for a report to the rendezvous."""
    word = _ON_THE_WIRE.get(type(error), type(error).__name__)
    told: dict[str, object] = {"error": word, "message": str(error), "from": sender}
    for name in ("rank", "missing", "mine", "theirs"):
        if hasattr(error, name):
            told[name] = getattr(error, name)
    if isinstance(error, RendezvousTimeoutError):
        told["missing"] = error.missing[:MAX_MISSING]
    # Shorten the texts step by step: escaped in JSON, one character takes up to six bytes, so
    # their length says little about the size of the body.
    for most in (1000, 300, 100, 50):
        for name in {"message", "mine", "theirs"} & told.keys():
            told[name] = str(told[name])[:most]
        body = json.dumps(told, ensure_ascii=False).encode(errors="replace")
        if len(body) <= MAX_REPORT_BYTES:
            break
    return body


def from_frame(body: bytes, sender: int, me: int) -> PerseidError:
    """Decode a peer's report; one that cannot be read becomes the loss of that peer."""
    try:
        told = parse_json(body)
        message, name = str(told["message"]), told["error"]
        if name == "MismatchedCollective":
            rank, mine, theirs = int(told["rank"]), str(told["mine"]), str(told["theirs"])
            # The sender names the rank it disagreed with. If that is this rank, "mine" and "theirs"
            # are swapped so that the error reads correctly here.
            if rank == me:
                rank, mine, theirs = int(told["from"]), theirs, mine
            return MismatchedCollectiveError(message, mine, theirs, rank)
        if name == "PeerLost":
            return PeerLostError(message, int(told["rank"]))
        if name == "RendezvousTimeout":
            return RendezvousTimeoutError(message, [int(rank) for rank in told["missing"]])
    # The body comes from the network: whatever it holds must end in an ordinary error.
    except (ValueError, KeyError, TypeError, OverflowError):
        message = "it sent no reason that can be read"
    return PeerLostError(f"Rank {sender} gave up: {message}", sender)


def same_loss(known: PerseidError | None, error: PerseidError) -> bool:
    """Whether both errors report the loss of the same rank."""
    losses = isinstance(known, PeerLostError) and isinstance(error, PeerLostError)
    # The defaults differ, so an error without a rank matches nothing.
    return losses and getattr(known, "rank", -1) == getattr(error, "rank", -2)
