"""Gather: bundles up a binomial tree; large arrays directly to the root, a few at a time."""

from __future__ import annotations

from collections.abc import Sequence

from perseid.comm.collectives.trees import branch
from perseid.comm.group import Call
from perseid.comm.objects import Blob, bundle, unbundle

LARGE_BYTES = 64 * 1024
"""Size of an array, in bytes, from which on it goes directly to the root: a tree would send it
several times."""
WINDOW = 4
"""Number of ranks that send to the root at the same time: with more, packets would be lost
(incast)."""
_EMPTY = memoryview(bytearray())


def blobs(call: Call, mine: Blob, root: int) -> list[Blob] | None:
    """All ranks' payloads in rank order, on the root; None on the other ranks."""
    place = branch(call.rank, call.size, root)
    if place not in call.group.reached:
        call.reach(place, place.near)
    below: list[list[Blob]] = []
    for child in reversed(place.children):
        below.append(unbundle(call.receive_blob(child).flat()))
    # The subtrees were received from the smallest to the largest, which is the order of their
    # ranks.
    collected = [mine, *(blob for part in below for blob in part)]
    if place.parent >= 0:
        call.send_blob(place.parent, bundle(collected))
        return None
    return [collected[(rank - root) % call.size] for rank in range(call.size)]


def straight(call: Call, mine: memoryview, parts: Sequence[memoryview] | None, root: int) -> None:
    """Receive every rank's bytes in the root's memory; ``parts`` is given on the root alone.

    The first ``WINDOW`` ranks send at once, each of the others when the root tells it to.
    """
    order = [rank for rank in range(call.size) if rank != root]
    if parts is None:
        call.need([root])
        if order.index(call.rank) >= WINDOW:
            # An empty message is the permission to send.
            call.receive_into(root, _EMPTY, 1)
        call.send(root, mine)
        return
    call.need(order)
    parts[root][:] = mine
    for index, rank in enumerate(order):
        call.receive_into(rank, parts[rank])
        if index + WINDOW < len(order):
            call.send(order[index + WINDOW], b"", 1)
