"""Prefix reductions: in log2(size) rounds, or along a chain if the rank order is strict."""

from __future__ import annotations

from typing import TypeVar

from perseid.comm.ports import Port

T = TypeVar("T")


def doubling(port: Port[T], value: T) -> tuple[T, T | None]:
    """The inclusive and the exclusive prefix (Hillis and Steele, 1986).

    Rank 0 has no exclusive prefix: None.
    """
    call = port.call
    rank, size = call.rank, call.size
    jumps = [1 << k for k in range((size - 1).bit_length())]
    peers = {rank + sign * jump for jump in jumps for sign in (1, -1)}
    call.need([peer for peer in peers if 0 <= peer < size])
    result, before = port.copy(value), None
    for step, jump in enumerate(jumps):
        lower, higher = rank - jump, rank + jump
        if lower >= 0 and higher < size:
            other = port.exchange(higher, result, lower, step)
        elif higher < size:
            port.send(higher, result, step)
            # The lowest ranks have their result already and only pass it on.
            continue
        elif lower >= 0:
            other = port.receive(lower, step)
        else:
            continue
        # Copies, since combining may overwrite its operands, and the received value is used twice.
        before = other if before is None else port.combine(port.copy(other), before)
        result = port.combine(port.copy(other), result)
    return result, before


def chain(port: Port[T], value: T) -> tuple[T, T | None]:
    """`doubling` strictly in rank order: each rank waits for the one before it."""
    call = port.call
    rank, size = call.rank, call.size
    call.need([peer for peer in (rank - 1, rank + 1) if 0 <= peer < size])
    before = port.receive(rank - 1) if rank else None
    result = port.copy(value)
    if before is not None:
        result = port.combine(port.copy(before), result)
    if rank + 1 < size:
        port.send(rank + 1, result)
    return result, before
