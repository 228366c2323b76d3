"""Reduce: a binomial tree, or strictly by rank on the root."""

from __future__ import annotations

from typing import TypeVar

from perseid.comm.call import Port
from perseid.comm.collectives.trees import branch, neighbours

T = TypeVar("T")


def tree(port: Port[T], value: T, root: int) -> T | None:
    """For operations that may be evaluated in any order; the order is always the same."""
    call = port.call
    place = branch(call.rank, call.size, root)
    call.need(neighbours(call.rank, call.size, root))
    result = port.copy(value)
    for child in reversed(place.children):
        result = port.combine(result, port.receive(child))
    if place.parent < 0:
        return result
    port.send(place.parent, result)
    return None


def strict(port: Port[T], value: T, root: int) -> T | None:
    """``f(f(f(x0, x1), x2), x3)`` on the root; holds one value of another rank at a time."""
    call = port.call
    if call.rank != root:
        call.need([root])
        port.send(root, value)
        return None
    call.need(range(call.size))
    result = _value(port, value, 0)
    for rank in range(1, call.size):
        result = port.combine(result, _value(port, value, rank))
    return result


def _value(port: Port[T], mine: T, rank: int) -> T:
    return port.copy(mine) if rank == port.call.rank else port.receive(rank)
