"""Barrier: by dissemination (Hensgen, Finkel and Manber, 1988), or up and down a tree."""

from __future__ import annotations

from perseid.comm.collectives.trees import branch, rounds
from perseid.comm.group import Call

_EMPTY = memoryview(bytearray())


def dissemination(call: Call) -> None:
    """In round k, send to the rank 2**k after this one and receive from the one 2**k before."""
    plan = rounds(call.rank, call.size)
    if plan not in call.group.reached:
        call.reach(plan, plan.near)
    # Without the methods of `Call`, which show in the time of a barrier.
    channels, signature, progress = call.channels, call.signature, call.group.progress
    for step, (after, before) in enumerate(plan.peers):
        progress.send(channels[after], signature, step, b"")
        progress.receive_into(channels[before], signature, step, _EMPTY)


def tree(call: Call) -> None:
    """Send empty messages up a tree and down again: the fewest messages."""
    place = branch(call.rank, call.size, 0)
    if place not in call.group.reached:
        call.reach(place, place.near)
    channels, signature, progress = call.channels, call.signature, call.group.progress
    # Smallest subtree first: it is ready first.
    for child in reversed(place.children):
        progress.receive_into(channels[child], signature, 0, _EMPTY)
    if place.parent >= 0:
        progress.send(channels[place.parent], signature, 0, b"")
        progress.receive_into(channels[place.parent], signature, 1, _EMPTY)
    for child in place.children:
        progress.send(channels[child], signature, 1, b"")
