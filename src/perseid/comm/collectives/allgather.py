"""Allgather: Bruck's algorithm for small payloads or unknown sizes, a ring for large arrays."""

from __future__ import annotations

from collections.abc import Sequence

from perseid.comm.collectives.trees import rounds
from perseid.comm.group import Call
from perseid.comm.objects import Blob, bundle, unbundle

LARGE_BYTES = 64 * 1024
"""Size of one rank's part, in bytes, from which on the ring is used: each rank then sends to one
neighbor only, without bundling what it passes on."""
STRAIGHT_RANKS = 4
"""Up to this number of ranks, small parts go directly to all other ranks: no rank waits for another
one to pass something on, and nothing is bundled."""


def blobs(call: Call, mine: Blob) -> list[Blob]:
    """All ranks' payloads in rank order, on every rank, in log2(size) rounds (Bruck, 1997)."""
    rank, size = call.rank, call.size
    plan = rounds(rank, size)
    if plan not in call.group.reached:
        call.reach(plan, plan.near)
    held = [mine]
    for step, (jump, (after, before)) in enumerate(zip(plan.jumps, plan.peers, strict=True)):
        # If the size is not a power of two, the last round sends only what the peer still lacks.
        part = held[: min(jump, size - jump)]
        came = call.exchange_blob(before, bundle(part), after, step)
        held.extend(unbundle(came.flat()))
    # The list begins with this rank's own payload: rotate it into rank order.
    return [held[(other - rank) % size] for other in range(size)]


def straight(call: Call, mine: memoryview, parts: Sequence[memoryview]) -> None:
    """Fill in the small parts of all ranks, each of which sends its own to all others."""
    rank, size = call.rank, call.size
    call.need(range(size))
    parts[rank][:] = mine
    # Each rank begins with the one after it, so that they do not all send to rank 0 first.
    for step in range(1, size):
        call.send((rank + step) % size, mine)
    for step in range(1, size):
        source = (rank - step) % size
        call.receive_into(source, parts[source])


def ring(call: Call, parts: Sequence[memoryview], steps: int = 0) -> None:
    """Fill in the parts of all ranks: in each step, every rank passes on the part it got last."""
    rank, size = call.rank, call.size
    if size == 1:
        return
    after, before = (rank + 1) % size, (rank - 1) % size
    call.need([after, before])
    for step in range(size - 1):
        out, back = parts[(rank - step) % size], parts[(rank - step - 1) % size]
        call.exchange(after, out, before, back, steps + step)
