"""Estimates the time and price of an operation over each transport, and chooses a transport.

A message takes ``latency + bytes / bandwidth``; a collective takes as long as the longest path of
its algorithm (Thakur, Rabenseifner and Gropp, 2005). The price is that of the workers' time while
they wait, of the server meanwhile, and of the requests to the store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil, inf, isfinite, log2
from pathlib import Path

from perseid.comm import arguments
from perseid.errors import BadInputError
from perseid.jsontext import parse_json
from perseid.textfile import read_text


@dataclass(frozen=True, slots=True)
class TransportCosts:
    """What messages over one transport take and cost: latency, bandwidth, requests."""

    name: str
    """``direct``, ``relay`` or ``store``."""
    latency: float
    """Seconds that an empty message takes, from the call to its arrival."""
    bandwidth: float
    """Bytes per second of a single message."""
    puts: float = 0.0
    """Write requests to the store per message."""
    gets: float = 0.0
    """Read requests to the store per message, polling included."""
    server: bool = False
    """Whether a rendezvous server must run while ranks communicate."""
    shared: float = 0.0
    """Bytes per second of all messages together; 0 if they share no bottleneck."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices in USD; all are zero if only the time matters."""

    worker_second: float = 0.0
    """Price of one worker for one second (on Lambda: its memory in GB times the price of a
    GB-second)."""
    server_second: float = 0.0
    """Price of the rendezvous server for one second."""
    put: float = 0.0
    """Price of one write request to the store."""
    get: float = 0.0
    """Price of one read request to the store."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected time and price of one operation over one transport."""

    transport: str
    """``direct``, ``relay`` or ``store``."""
    seconds: float
    """Expected time, in seconds."""
    usd: float
    """Expected price, in USD."""
    messages: int
    """Number of messages of all ranks together."""
    moved: float
    """Number of bytes that all ranks send together."""


TRANSPORTS = (
    TransportCosts("direct", 0.5e-3, 77.6e6, server=True),
    TransportCosts("relay", 1.04e-3, 77.6e6, server=True, shared=175e6),
    TransportCosts("store", 40.4e-3, 50e6, puts=1.0, gets=3.0),
)
"""Transports between functions on AWS Lambda. Direct: published measurements between two functions,
621 Mbit/s and a round trip below 1 ms. Relay: derived from these, with twice the latency plus 40 us
in the server, whose quarter of a core relays a quarter of the 0.7 GB/s that one core relayed over
loopback. Store: the constants of FMI for S3, 40.4 ms and 50 MB/s, assuming two unsuccessful reads
per message. `perseid comm bench --constants FILE` measures all of them on its own machine."""
RATES = Rates(2 * 0.0000166667, (0.25 * 0.04048 + 0.5 * 0.004445 + 0.005) / 3600, 5e-6, 4e-7)
"""Prices of a Lambda worker with 2,048 MB (x86), a Fargate server with 1/4 vCPU, 0.5 GB and a
public address, and S3 requests, all in us-east-1; `perseid.measure.prices` names the sources."""
HINTS = ("fast", "cheap")


@dataclass(frozen=True, slots=True)
class Constants:
    """What the model knows about an environment: its transports and prices."""

    transports: tuple[TransportCosts, ...] = TRANSPORTS
    rates: Rates = RATES
    source: str = "published figures of AWS Lambda and S3"
    """Origin of the transports' numbers."""

    @classmethod
    def load(cls, path: str | Path) -> Constants:
        """Read a file that `dump` wrote; what the file leaves out keeps its built-in value.

        Raises
        ------
        BadInputError
            The file cannot be read, names an unknown transport or constant, or has a number that
            makes no sense.
        """
        text = read_text(path, "the constants")
        try:
            told = parse_json(text)
            # "ways" is an older word for transports; files that were written with it stay readable.
            given = told.get("ways", {})
            known = {one.name for one in TRANSPORTS}
            unknown = ({*told} - {"source", "ways", "rates"}) | ({*given} - known)
            if unknown:
                raise ValueError(f"no such constants: {', '.join(sorted(unknown))}")
            costs = tuple(_with_given(one, given.get(one.name, {})) for one in TRANSPORTS)
            rates = replace(RATES, **_numbers(told.get("rates", {})))
        except (ValueError, TypeError, AttributeError) as error:
            raise BadInputError(f"the constants in {path} cannot be used: {error}") from error
        return cls(costs, rates, str(told.get("source", path)))

    def dump(self, path: str | Path) -> None:
        """Write the constants to a JSON file for `load`; raises `BadInputError` if that fails."""
        costs = {one.name: asdict(one) for one in self.transports}
        for one in costs.values():
            del one["name"]
        told = {"source": self.source, "ways": costs, "rates": asdict(self.rates)}
        try:
            Path(path).write_text(json.dumps(told, indent=1) + "\n")
        except OSError as error:
            raise BadInputError(f"{path} cannot be written: {error.strerror}") from error


def _with_given(costs: TransportCosts, told: Mapping[str, object]) -> TransportCosts:
    numbers = _numbers({name: value for name, value in told.items() if name != "server"})
    if numbers.get("bandwidth") == 0:
        raise ValueError(f"the bandwidth of {costs.name} is 0")
    server = bool(told.get("server", costs.server))
    return replace(costs, **numbers, server=server)  # type: ignore[arg-type]


def _numbers(told: Mapping[str, object]) -> dict[str, float]:
    # As text first: true would otherwise count as 1.
    numbers = {name: float(str(value)) for name, value in told.items()}
    for name, value in numbers.items():
        if value < 0 or not isfinite(value):
            raise ValueError(f"{name} is {value}")
    return numbers


@dataclass(frozen=True, slots=True)
class _Shape:
    """Size of an algorithm: rounds and bytes on its longest path, messages and bytes in total."""

    rounds: float
    path: float
    messages: int
    moved: float


def _tree(n: int, m: float) -> _Shape:
    # A binomial tree: the whole message passes one edge per level.
    depth = ceil(log2(n))
    return _Shape(depth, depth * m, n - 1, (n - 1) * m)


def _gather(n: int, m: float) -> _Shape:
    # A tree of bundles: the last edges carry most parts, and each part passes half the levels on
    # average.
    return _Shape(ceil(log2(n)), (n - 1) * m, n - 1, m * n * ceil(log2(n)) / 2)


def _rounds(n: int, m: float) -> _Shape:
    # Every rank sends the whole message in each round.
    depth = ceil(log2(n))
    return _Shape(depth, depth * m, n * depth, n * depth * m)


def _allgather(n: int, m: float) -> _Shape:
    # Bruck: the bundles double in each round, until each rank has received all other parts.
    return _Shape(ceil(log2(n)), (n - 1) * m, n * ceil(log2(n)), n * (n - 1) * m)


def _allreduce(n: int, m: float) -> _Shape:
    # The size from which on `collectives.allreduce` divides the work among the ranks.
    if m < 64 * 1024:
        return _rounds(n, m)
    # Reduce-scatter, then allgather: each moves all but one of n parts.
    part = 2 * m * (n - 1) / n
    return _Shape(2 * ceil(log2(n)), part, 2 * n * ceil(log2(n)), n * part)


def _pairwise(n: int, m: float) -> _Shape:
    # One round with each of the other ranks.
    return _Shape(n - 1, (n - 1) * m, n * (n - 1), n * (n - 1) * m)


def _single(_n: int, m: float) -> _Shape:
    return _Shape(1, m, 1, m)


def _barrier(n: int, _m: float) -> _Shape:
    # Empty messages up a tree and down again.
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
"""Function for each operation; it takes the number of ranks and the bytes per rank (per pair of
ranks for ``alltoall``)."""


def estimate(
    operation: str, ranks: int, nbytes: float, costs: TransportCosts, rates: Rates | None = None
) -> Estimate:
    """Estimate the time and price of one operation.

    Parameters
    ----------
    operation
        One of ``OPERATIONS``.
    ranks
        Number of ranks that take part; at least 1.
    nbytes
        Bytes that each rank contributes (for ``bcast``: bytes that the root sends).

    Raises
    ------
    BadInputError
        The operation is unknown, there is no rank, or ``nbytes`` is not a size.
    """
    if operation not in OPERATIONS or ranks < 1 or not 0 <= nbytes < inf:
        raise BadInputError(
            f"no estimate of {operation!r} for {ranks} ranks and {nbytes} bytes; operations are "
            f"{', '.join(OPERATIONS)}"
        )
    rates = rates or Rates()
    if ranks == 1:
        return Estimate(costs.name, 0.0, 0.0, 0, 0.0)
    shape = OPERATIONS[operation](ranks, nbytes)
    seconds = shape.rounds * costs.latency + shape.path / costs.bandwidth
    if costs.shared:
        # All messages pass the same bottleneck, so it needs at least the time for all bytes.
        seconds = max(seconds, shape.moved / costs.shared)
    # Every worker is paid for while the operation lasts, whether it sends or waits.
    usd = seconds * ranks * rates.worker_second
    usd += shape.messages * (costs.puts * rates.put + costs.gets * rates.get)
    if costs.server:
        usd += seconds * rates.server_second
    return Estimate(costs.name, seconds, usd, shape.messages, shape.moved)


def check_hint(hint: object) -> None:
    """Raise `BadInputError` unless it is one of `HINTS`."""
    if not (isinstance(hint, str) and hint in HINTS):
        raise BadInputError(f"the hint is {' or '.join(HINTS)}, not {arguments.short_repr(hint)}")


def choose(
    operation: str,
    ranks: int,
    nbytes: float,
    hint: str = "fast",
    transports: Iterable[TransportCosts] = TRANSPORTS,
    rates: Rates | None = None,
) -> Estimate:
    """Choose the fastest or the cheapest transport; the first if several are equal.

    Raises
    ------
    BadInputError
        The hint is neither ``fast`` nor ``cheap``, or no transport is given.
    """
    check_hint(hint)
    found = [estimate(operation, ranks, nbytes, costs, rates) for costs in transports]
    if not found:
        raise BadInputError("no transport to choose from: enable one")
    # Of equally cheap ones the faster one.
    return min(found, key=lambda one: (one.seconds if hint == "fast" else one.usd, one.seconds))


def choose_for_job(
    hint: str,
    transport: str,
    ranks: int,
    expects: tuple[str, float],
    constants: Constants,
    *,
    rendezvous: bool,
    store: bool,
) -> Estimate:
    """Choose the transport of a whole job; ranks that give the same arguments get the same result.

    Parameters
    ----------
    transport
        What may be used besides the store: ``auto`` (``direct`` and ``relay``), one of these two,
        or ``store`` for nothing else.
    expects
        What the job mostly does: an operation and its number of bytes, as for `estimate`.
    rendezvous, store
        Whether a rendezvous server is given, and a store.

    Raises
    ------
    BadInputError
        As `choose`; also if there is neither a server nor a store, so that no transport is left.
    """
    others: dict[str, tuple[str, ...]] = {"auto": ("direct", "relay"), "store": ()}
    names = others.get(transport, (transport,))
    possible = (*(names if rendezvous else ()), *(("store",) if store else ()))
    allowed = [costs for costs in constants.transports if costs.name in possible]
    operation, nbytes = expects
    return choose(operation, ranks, nbytes, hint, allowed, constants.rates)
