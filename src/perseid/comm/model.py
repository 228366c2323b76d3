"""What an operation is expected to take and to cost over each way, and which way to choose.

The time of a message is ``latency + bytes / bandwidth``; the time of a collective is that of its
algorithm's longest path (Thakur, Rabenseifner and Gropp, 2005). The price is the workers' time
while they wait, the server's share, and the requests to the store. Prices are given by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, log2

from perseid.errors import BadInput


@dataclass(frozen=True, slots=True)
class Way:
    """How messages travel."""

    name: str
    latency: float
    """Seconds for an empty message, from the call to its arrival."""
    bandwidth: float
    """Bytes a second of one message on its way."""
    puts: float = 0.0
    """Writing requests of one message."""
    gets: float = 0.0
    """Reading requests of one message, polling included."""
    server: bool = False
    """Whether a rendezvous server must run meanwhile."""
    shared: float = 0.0
    """Bytes a second of all messages together; 0: no common bottleneck."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices in USD; all zero where only the time matters."""

    worker_second: float = 0.0
    """One worker for one second (on Lambda: its gigabytes times the price of a GB-second)."""
    server_second: float = 0.0
    """The rendezvous server for one second."""
    put: float = 0.0
    """One writing request."""
    get: float = 0.0
    """One reading request."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one operation is expected to take."""

    way: str
    seconds: float
    usd: float
    messages: int
    """Of all ranks together."""
    moved: float
    """Bytes, of all ranks together."""


WAYS = (
    Way("direct", 25e-6, 1.5e9, server=True),
    Way("relay", 53e-6, 0.7e9, server=True, shared=0.7e9),
    Way("store", 40e-3, 80e6, puts=1.0, gets=3.0),
)
"""Direct and relay: measured over the loopback of a two-core machine, `perseid comm bench`
(November 2026). Store: a PUT and a GET of S3 of 20 ms each, a single stream of 80 MB/s, and two
questions in vain: assumed, not measured here."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """One algorithm: rounds on the longest path, bytes on it, messages and bytes in all."""

    rounds: float
    path: float
    messages: int
    moved: float


def _tree(n: int, m: float) -> _Shape:
    depth = ceil(log2(n))
    return _Shape(depth, depth * m, n - 1, (n - 1) * m)


def _gather(n: int, m: float) -> _Shape:
    return _Shape(ceil(log2(n)), (n - 1) * m, n - 1, m * n * ceil(log2(n)) / 2)


def _rounds(n: int, m: float) -> _Shape:
    depth = ceil(log2(n))
    return _Shape(depth, depth * m, n * depth, n * depth * m)


def _allgather(n: int, m: float) -> _Shape:
    return _Shape(ceil(log2(n)), (n - 1) * m, n * ceil(log2(n)), n * (n - 1) * m)


def _allreduce(n: int, m: float) -> _Shape:
    if m < 64 * 1024:
        return _rounds(n, m)
    part = 2 * m * (n - 1) / n
    return _Shape(2 * ceil(log2(n)), part, 2 * n * ceil(log2(n)), n * part)


def _pairwise(n: int, m: float) -> _Shape:
    return _Shape(n - 1, (n - 1) * m, n * (n - 1), n * (n - 1) * m)


def _single(_n: int, m: float) -> _Shape:
    return _Shape(1, m, 1, m)


def _barrier(n: int, _m: float) -> _Shape:
    return _Shape(2 * ceil(log2(n)), 0, 2 * (n - 1), 0)


OPERATIONS: dict[str, Callable[[int, float], _Shape]] = {
    "send": _single,
    "barrier": _barrier,
    "bcast": _tree,
    "gather": _gather,
    "allgather": _allgather,
    "scatter": _gather,
    "reduce": _tree,
    "allreduce": _allreduce,
    "reduce_scatter": _pairwise,
    "alltoall": _pairwise,
    "scan": _rounds,
}
"""Each takes the number of ranks and the bytes of one rank (of one pair in ``alltoall``)."""


def estimate(
    operation: str, ranks: int, nbytes: float, way: Way, rates: Rates | None = None
) -> Estimate:
    """Expected time and price of one operation.

    Parameters
    ----------
    operation
        One of ``OPERATIONS``.
    ranks
        How many take part; at least 1.
    nbytes
        Bytes that each rank contributes (``bcast``: that the root sends).

    Raises
    ------
    BadInput
        Another operation, or no rank.
    """
    if operation not in OPERATIONS or ranks < 1 or nbytes < 0:
        raise BadInput(
            f"no estimate of {operation!r} for {ranks} ranks and {nbytes} bytes; operations are "
            f"{', '.join(OPERATIONS)}"
        )
    rates = rates or Rates()
    if ranks == 1:
        return Estimate(way.name, 0.0, 0.0, 0, 0.0)
    shape = OPERATIONS[operation](ranks, nbytes)
    seconds = shape.rounds * way.latency + shape.path / way.bandwidth
    if way.shared:
        seconds = max(seconds, shape.moved / way.shared)
    usd = seconds * ranks * rates.worker_second
    usd += shape.messages * (way.puts * rates.put + way.gets * rates.get)
    if way.server:
        usd += seconds * rates.server_second
    return Estimate(way.name, seconds, usd, shape.messages, shape.moved)


def choose(
    operation: str,
    ranks: int,
    nbytes: float,
    hint: str = "fast",
    ways: Iterable[Way] = WAYS,
    rates: Rates | None = None,
) -> Estimate:
    """The fastest or the cheapest way; of equal ones the first.

    Raises
    ------
    BadInput
        The hint is neither ``fast`` nor ``cheap``, or there is no way.
    """
    if hint not in ("fast", "cheap"):
        raise BadInput(f"the hint is fast or cheap, not {hint!r}")
    found = [estimate(operation, ranks, nbytes, way, rates) for way in ways]
    if not found:
        raise BadInput("no way to choose from: enable one")
    return min(found, key=lambda one: (one.seconds if hint == "fast" else one.usd, one.seconds))
