"""Barrier: by dissemination (Hensgen, Finkel and Manber, 1988), or up and down a tree."""

from __future__ import annotations

from perseid.comm.collectives.trees import branch
from perseid.comm.group import Call

_EMPTY = memoryview(bytearray())


def dissemination(call: Call) -> None:
    """In round k, send to the rank 2**k after this one and receive from the one 2**k before."""
    rank, size = call.rank, call.size
    jumps = [1 << k for k in range((size - 1).bit_length())]
    call.need({(rank + sign * jump) % size for jump in jumps for sign in (1, -1)})
    for step, jump in enumerate(jumps):
        call.send((rank + jump) % size, b"", step)
        call.receive_into((rank - jump) % size, _EMPTY, step)


def tree(call: Call) -> None:
    """Send empty messages up a tree and down again: the fewest messages."""
    place = branch(call.rank, call.size, 0)
    call.need(place.near)
    # Smallest subtree first: it is ready first.
    for child in reversed(place.children):
        call.receive_into(child, _EMPTY)
    if place.parent >= 0:
        call.send(place.parent, b"")
        call.receive_into(place.parent, _EMPTY, 1)
    for child in place.children:
        call.send(child, b"", 1)
