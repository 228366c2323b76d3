"""What a failing rank tells its peers, as bytes and back."""

from __future__ import annotations

import json

from perseid.errors import (
    MismatchedCollectiveError,
    PeerLostError,
    PerseidError,
    RendezvousTimeoutError,
)
from perseid.rendezvous.protocol import MAX_REPORT_BYTES

MAX_MISSING = 50
"""How many of the missing ranks are named to the others."""
_ON_THE_WIRE = {
    MismatchedCollectiveError: "MismatchedCollective",
    PeerLostError: "PeerLost",
    RendezvousTimeoutError: "RendezvousTimeout",
}
"""Names of errors in an ABORT frame; they stay the same when a class is renamed."""


def to_bytes(error: PerseidError, sender: int) -> bytes:
    """What the others are told, as JSON that fits a report to the rendezvous."""
    word = _ON_THE_WIRE.get(type(error), type(error).__name__)
    told: dict[str, object] = {"error": word, "message": str(error), "from": sender}
    for name in ("rank", "missing", "mine", "theirs"):
        if hasattr(error, name):
            told[name] = getattr(error, name)
    if isinstance(error, RendezvousTimeoutError):
        told["missing"] = error.missing[:MAX_MISSING]
    for most in (1000, 300, 100, 50):  # in JSON a character takes up to six bytes
        for name in {"message", "mine", "theirs"} & told.keys():
            told[name] = str(told[name])[:most]
        body = json.dumps(told, ensure_ascii=False).encode(errors="replace")
        if len(body) <= MAX_REPORT_BYTES:
            break
    return body


def from_frame(body: bytes, sender: int, me: int) -> PerseidError:
    """The error that a peer reports."""
    try:
        told = json.loads(body)
        message, name = str(told["message"]), told["error"]
        if name == "MismatchedCollective":
            rank, mine, theirs = int(told["rank"]), str(told["mine"]), str(told["theirs"])
            if rank == me:
                rank, mine, theirs = int(told["from"]), theirs, mine
            return MismatchedCollectiveError(message, mine, theirs, rank)
        if name == "PeerLost":
            return PeerLostError(message, int(told["rank"]))
        if name == "RendezvousTimeout":
            return RendezvousTimeoutError(message, [int(rank) for rank in told["missing"]])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        message = "it sent no reason that can be read"
    return PeerLostError(f"Rank {sender} gave up: {message}", sender)


def same_loss(known: PerseidError | None, error: PerseidError) -> bool:
    """Whether two errors are the loss of one rank."""
    losses = isinstance(known, PeerLostError) and isinstance(error, PeerLostError)
    return losses and getattr(known, "rank", -1) == getattr(error, "rank", -2)
