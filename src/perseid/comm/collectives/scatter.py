"""Scatter: bundles down a binomial tree; large arrays directly from the root."""

from __future__ import annotations

from collections.abc import Sequence

from perseid.comm.collectives.trees import branch
from perseid.comm.group import Call
from perseid.comm.objects import Blob, bundle, unbundle


def blobs(call: Call, parts: Sequence[Blob] | None, root: int) -> Blob:
    """This rank's payload; the root has those of all ranks, in rank order."""
    place = branch(call.rank, call.size, root)
    if place not in call.group.reached:
        call.reach(place, place.near)
    if parts is None:
        mine = unbundle(call.receive_blob(place.parent).flat())
    else:
        mine = [parts[(index + root) % call.size] for index in range(call.size)]
    # A bundle holds the payloads of a subtree by virtual rank, so a child's share starts at the
    # child's distance from this rank.
    for child, size in zip(place.children, place.sizes, strict=True):
        start = (child - call.rank) % call.size
        call.send_blob(child, bundle(mine[start : start + size]))
    return mine[0]


def straight(call: Call, parts: Sequence[memoryview] | None, into: memoryview, root: int) -> None:
    """Send each rank its bytes directly from the root; ``parts`` is given on the root alone."""
    if parts is None:
        call.need([root])
        call.receive_into(root, into)
        return
    others = [rank for rank in range(call.size) if rank != root]
    call.need(others)
    for rank in others:
        call.send(rank, parts[rank])
    into[:] = parts[root]
