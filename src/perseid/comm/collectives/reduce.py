"""Reduce: up a binomial tree, or strictly in rank order on the root."""

from __future__ import annotations

from typing import TypeVar

from perseid.comm.collectives.trees import branch
from perseid.comm.ports import Port

T = TypeVar("T")


def tree(port: Port[T], value: T, root: int) -> T | None:
    """Reduce by an operation that may be evaluated in any order; the order never changes."""
    call = port.call
    place = branch(call.rank, call.size, root)
    if place not in call.group.reached:
        call.reach(place, place.near)
    # A leaf combines nothing, so its value needs no copy.
    result = port.begin(value) if place.children else value
    # The smallest subtree first: it is ready first, and its ranks follow this one directly.
    for child in reversed(place.children):
        result = port.recv_reduce(child, result)
    if place.parent < 0:
        return result
    port.send(place.parent, result)
    return None


def by_rank(port: Port[T], value: T, root: int) -> T | None:
    """``tree`` for operands that must stay in rank order, whatever the root is.

    The "sum" of lists or strings depends on the order. So the tree ends at rank 0, which sends the
    result on to the root.
    """
    call = port.call
    result = tree(port, value, 0)
    if root == 0:
        return result
    if call.rank == 0:
        assert result is not None
        port.send(root, result, 1)
        return None
    return port.receive(0, 1) if call.rank == root else None


def strict(port: Port[T], value: T, root: int) -> T | None:
    """``f(f(f(x0, x1), x2), x3)`` on the root, which holds only one other value at a time."""
    call = port.call
    if call.rank != root:
        call.need([root])
        port.send(root, value)
        return None
    call.need(range(call.size))
    result = port.begin(value) if root == 0 else port.receive(0)
    for rank in range(1, call.size):
        mine = rank == root
        # The root's own value waits for its turn among the ranks.
        result = port.combine(result, port.copy(value)) if mine else port.recv_reduce(rank, result)
    return result
