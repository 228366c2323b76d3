"""Allreduce: recursive doubling for small values, reduce-scatter and allgather for large arrays.

Each algorithm gives the same bits on all ranks and in every repetition: a partial result is either
computed once and sent on, or computed from the same two operands in the same order on both sides.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from perseid.comm.collectives import allgather, reduce, trees
from perseid.comm.group import Call
from perseid.comm.ops import Array, Op
from perseid.comm.ports import Port, array_bytes

T = TypeVar("T")
LARGE_BYTES = 64 * 1024
"""Size of an array, in bytes, from which on the work of reducing is divided among the ranks."""
PAIR_BYTES = 256 * 1024
"""The same for two ranks: they send each other the whole array, in one round instead of two."""
STRAIGHT_RANKS = 32
"""Up to this number of ranks that share cores, all ranks send their value directly to rank 0. It
adds the values without sleeping in between, and no rank is woken only to pass a value on."""
_LAST = 1 << 20
"""Step number of the message that carries the result; no round of an algorithm is that large."""


def divided(nbytes: int, size: int) -> bool:
    """Whether the work of an array of at least `LARGE_BYTES` is divided among so many ranks."""
    return size > 2 or (size == 2 and nbytes >= PAIR_BYTES)


class Fold(NamedTuple):
    """Maps a world of any size to a power of two: each of the first pairs of ranks acts as one."""

    core: int
    """Number of acting ranks: a power of two."""
    extra: int
    """Number of pairs that act as one rank each."""

    def actor(self, rank: int) -> int:
        """The number of a rank among the acting ranks; the even rank of a pair acts for both."""
        return rank // 2 if rank < 2 * self.extra else rank - self.extra

    def rank(self, actor: int) -> int:
        """The rank with this number among the acting ranks."""
        return 2 * actor if actor < self.extra else actor + self.extra

    def passive(self, rank: int) -> bool:
        """Whether another rank acts for this one."""
        return rank < 2 * self.extra and bool(rank & 1)


def fold(size: int) -> Fold:
    """Map ``size`` ranks to the largest power of two that is not above it."""
    core = 1 << (size.bit_length() - 1)
    return Fold(core, size - core)


@dataclass(frozen=True, eq=False, slots=True)
class RecursiveDoublingPlan:
    """What one rank does in recursive doubling."""

    passive: bool
    """Whether the previous rank acts for this one."""
    folded: bool
    """Whether this rank acts for the next one."""
    rounds: tuple[tuple[int, int, bool], ...]
    """For each round: the partner, the step, and whether the partner stands for lower ranks."""
    peers: tuple[int, ...]
    """All ranks that this one exchanges messages with."""


# Cached, since small allreduces are called thousands of times with the same arguments.
@functools.cache
def plan(rank: int, size: int) -> RecursiveDoublingPlan:
    """What a rank does in recursive doubling among ``size`` ranks, any number."""
    shape = fold(size)
    if shape.passive(rank):
        return RecursiveDoublingPlan(True, False, (), (rank - 1,))
    actor, folded = shape.actor(rank), rank < 2 * shape.extra
    bits = [1 << k for k in range(shape.core.bit_length() - 1)]
    rounds = tuple((shape.rank(actor ^ bit), bit, bool(actor & bit)) for bit in bits)
    peers = tuple(partner for partner, _, _ in rounds)
    return RecursiveDoublingPlan(False, folded, rounds, (*peers, rank + 1) if folded else peers)


def doubling(port: Port[T], value: T) -> T:
    """Exchange whole values in log2(size) rounds; both partners combine the same pair."""
    call = port.call
    rank = call.rank
    mine = plan(rank, call.size)
    if mine not in call.group.reached:
        call.reach(mine, mine.peers)
    if mine.passive:
        result = port.begin(value)
        port.send(rank - 1, result)
        return port.take(rank - 1, result, _LAST)
    result = port.begin(value)
    if mine.folded:
        # The partner's value is added first, so that the pair acts as one rank in all rounds.
        result = port.recv_reduce(rank + 1, result)
    for partner, step, lower in mine.rounds:
        # The ranks decide which operand is the left one, not who computes: both sides get the same
        # bits.
        result = port.exchange_reduce(partner, result, lower, step)
    if mine.folded:
        port.send(rank + 1, result, _LAST)
    return result


def tree(port: Port[T], value: T) -> T:
    """Reduce up a binomial tree, broadcast down it: the fewest messages, for ranks that share
    cores."""
    return _broadcast_from_0(port, reduce.tree(port, value, 0))


def _broadcast_from_0(port: Port[T], result: T | None) -> T:
    """Broadcast rank 0's result down a tree."""
    call = port.call
    place = trees.branch(call.rank, call.size, 0)
    if place not in call.group.reached:
        call.reach(place, place.near)
    if place.parent >= 0:
        result = port.receive(place.parent, _LAST)
    assert result is not None
    for child in place.children:
        port.send(child, result, _LAST)
    return result


@dataclass(frozen=True, eq=False, slots=True)
class ReduceBcastPlan:
    """What one rank does if ranks share cores: values go directly to rank 0 or up a tree, and the
    result comes down a tree."""

    sources: tuple[int, ...]
    """Ranks whose values this rank adds, in this order."""
    up: int
    """Rank that this one sends its sum to; -1 on rank 0."""
    parent: int
    """Rank that sends the result to this one; -1 on rank 0."""
    children: tuple[int, ...]
    """Ranks that this one passes the result on to."""
    peers: tuple[int, ...]
    """All ranks that this one exchanges messages with."""


@functools.cache
def reduce_bcast_plan(rank: int, size: int) -> ReduceBcastPlan:
    """What a rank does among ``size`` ranks that share cores."""
    place = trees.branch(rank, size, 0)
    if size > STRAIGHT_RANKS:
        # Smallest subtree first: it is ready first.
        sources = place.children[::-1]
        return ReduceBcastPlan(sources, place.parent, place.parent, place.children, place.near)
    if rank == 0:
        others = tuple(range(1, size))
        return ReduceBcastPlan(others, -1, -1, place.children, others)
    return ReduceBcastPlan((), 0, place.parent, place.children, tuple({0, *place.near}))


def in_place(call: Call, ufunc: np.ufunc, array: Array, into: Array) -> None:
    """Reduce small arrays by a NumPy ufunc, for ranks that share cores.

    Each function call and each sleep costs more here than the addition itself: ranks that take
    turns on a core find their data gone from its caches. So this does without a `Port`.
    """
    part = reduce_bcast_plan(call.rank, call.size)
    if part not in call.group.reached:
        call.reach(part, part.peers)
    channels, signature, progress = call.channels, call.signature, call.group.progress
    if into is not array:
        into[...] = array
    if part.sources:
        # One buffer for all sources: they are added in a fixed order, one at a time.
        other = np.empty_like(into)
        room = array_bytes(other)
        for source in part.sources:
            progress.receive_into(channels[source], signature, 0, room)
            ufunc(into, other, out=into, casting="unsafe")
    if part.up >= 0:
        progress.send(channels[part.up], signature, 0, into.tobytes())
        progress.receive_into(channels[part.parent], signature, _LAST, array_bytes(into))
    if part.children:
        data = into.tobytes()
        for child in part.children:
            progress.send(channels[child], signature, _LAST, data)


def strict(port: Port[T], value: T) -> T:
    """Combine all values strictly in rank order on rank 0, then broadcast down a tree."""
    return _broadcast_from_0(port, reduce.strict(port, value, 0))


def large(call: Call, op: Op, array: Array, into: Array) -> None:
    """Reduce arrays by an operation that may be evaluated in any order.

    ``into`` may be ``array`` itself. Nothing is copied beforehand: the first step reads from
    ``array`` and writes to ``into``.
    """
    flat = into.reshape(-1)
    mine = flat if into is array else np.ascontiguousarray(array).reshape(-1)
    if mine is not flat and np.may_share_memory(mine, flat):
        # The two overlap: writing one part would change another that has not been read yet.
        flat[...] = mine
        mine = flat
    # Recursive halving needs a power of two.
    algorithm = ring if call.size & (call.size - 1) else halving
    algorithm(call, op, mine, flat)


def cuts(length: int, parts: int) -> list[int]:
    """Boundaries that cut an array into equal parts: ``parts + 1`` indices."""
    return [length * part // parts for part in range(parts + 1)]


def halving(call: Call, op: Op, array: Array, into: Array) -> None:
    """Reduce-scatter by recursive halving, allgather by recursive doubling (Rabenseifner, 2004).

    The number of ranks must be a power of two.
    """
    rank, size = call.rank, call.size
    call.need(plan(rank, size).peers)
    at = cuts(into.size, size)
    # Half of the array, and one more element per rank, since parts may differ by one.
    spare = call.group.scratch(into.size - into.size // 2 + size, into.dtype)
    low, high, bit = 0, size, size >> 1
    trail: list[tuple[int, int, int]] = []
    have = array
    while bit:
        middle = (low + high) // 2
        # The allgather goes back the same way.
        trail.append((low, high, bit))
        lower, upper = slice(at[low], at[middle]), slice(at[middle], at[high])
        # Each rank keeps the half that its own part lies in, and gives the other one away.
        give, keep = (lower, upper) if rank & bit else (upper, lower)
        mine = have[keep]
        came = spare[: mine.size]
        call.exchange(rank ^ bit, array_bytes(have[give]), rank ^ bit, array_bytes(came), bit)
        op.arrays(*((came, mine) if rank & bit else (mine, came)), into[keep])
        low, high = (middle, high) if rank & bit else (low, middle)
        bit >>= 1
        # Only the first round reads the caller's array; later rounds combine what is in the result.
        have = into
    _collect(call, into, at, trail)


def _collect(call: Call, flat: Array, at: list[int], trail: list[tuple[int, int, int]]) -> None:
    # The rounds of the reduce-scatter backwards: each returns the half that was given away,
    # reduced.
    for low, high, bit in reversed(trail):
        middle = (low + high) // 2
        lower, upper = flat[at[low] : at[middle]], flat[at[middle] : at[high]]
        mine, other = (upper, lower) if call.rank & bit else (lower, upper)
        peer = call.rank ^ bit
        call.exchange(peer, array_bytes(mine), peer, array_bytes(other), bit | _LAST)


def ring(call: Call, op: Op, array: Array, into: Array) -> None:
    """Each part travels around the ring once to be reduced, and once more to be shared.

    For any number of ranks.
    """
    rank, size = call.rank, call.size
    after, before = (rank + 1) % size, (rank - 1) % size
    call.need([after, before])
    at = cuts(into.size, size)
    inputs = [array[at[part] : at[part + 1]] for part in range(size)]
    parts = [into[at[part] : at[part + 1]] for part in range(size)]
    spare = call.group.scratch(max(part.size for part in parts), into.dtype)
    # Part r starts at the rank after r, so that it is complete on rank r, where allgather expects
    # it.
    give = inputs[(rank - 1) % size]
    for step in range(size - 1):
        number = (rank - step - 2) % size
        mine, result = inputs[number], parts[number]
        came = spare[: mine.size]
        call.exchange(after, array_bytes(give), before, array_bytes(came), step)
        op.arrays(came, mine, result)
        give = result
    allgather.ring(call, [array_bytes(part) for part in parts], _LAST)
