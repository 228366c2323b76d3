"""Reduce: a binomial tree, or strictly by rank on the root."""

from __future__ import annotations

from typing import TypeVar

from perseid.comm.collectives.trees import branch
from perseid.comm.ports import Port

T = TypeVar("T")


def tree(port: Port[T], value: T, root: int) -> T | None:
    """For operations that may be evaluated in any order; the order is always the same."""
    call = port.call
    place = branch(call.rank, call.size, root)
    call.need(place.near)
    # A leaf combines nothing, so that its value needs no copy.
    result = port.begin(value) if place.children else value
    # The smallest subtree first: it is ready first, and its ranks are the next ones.
    for child in reversed(place.children):
        result = port.recv_reduce(child, result)
    if place.parent < 0:
        return result
    port.send(place.parent, result)
    return None


def by_rank(port: Port[T], value: T, root: int) -> T | None:
    """``tree``, but the operands stay in the order of their ranks whatever the root is: "sum" of
    lists or strings depends on it. From rank 0 the result goes on to the root."""
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
    """``f(f(f(x0, x1), x2), x3)`` on the root; holds one value of another rank at a time."""
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
