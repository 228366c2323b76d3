"""Measures the cost model's constants on this machine, by round trips of messages.

This module is also the program that each rank runs: ``python -m
perseid.comm.cost_measurement TRANSPORT OUT ITERATIONS``.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from perseid.comm.communicator import Communicator
from perseid.comm.cost_model import TRANSPORTS, Constants, TransportCosts
from perseid.comm.launch import run_local
from perseid.comm.store_channel import ObjectStore
from perseid.errors import PerseidError
from perseid.jsontext import parse_json

COMMAND = ("-P", "-m", "perseid.comm.cost_measurement")
RUN_SECONDS = 120.0
"""Time limit for measuring one transport."""
SMALL, LARGE = 8, 4 << 20
"""Sizes in bytes of the messages whose times give the latency and the bandwidth."""
LARGE_SHARE = 0.1
"""Number of large messages for each small one."""


def one_way(comm: Communicator, nbytes: int, iterations: int) -> float:
    """Median time of a message from one rank of a pair to the other, in seconds.

    Ranks 0 and 1, 2 and 3, … are pairs; all pairs measure at the same time.
    """
    first, peer = comm.rank % 2 == 0, comm.rank ^ 1
    data, times = np.zeros(nbytes, np.uint8), []
    for _ in range(iterations + 1):
        began = time.perf_counter()
        if first:
            comm.Send(data, peer)
        comm.Recv(data, peer)
        if not first:
            comm.Send(data, peer)
        times.append(time.perf_counter() - began)
    # The first round trip also connects the two ranks.
    return statistics.median(times[1:]) / 2


def both(comm: Communicator, iterations: int) -> list[float]:
    """Measure `one_way` for a small and for a large message; returns both times in seconds."""
    counts = (iterations, max(3, int(iterations * LARGE_SHARE)))
    return [one_way(comm, size, n) for size, n in zip((SMALL, LARGE), counts, strict=True)]


def connected(transport: str, iterations: int) -> TransportCosts:
    """Measure ``direct`` or ``relay`` between processes, over this machine's loopback.

    Raises
    ------
    PerseidError
        The measurement did not finish in time.
    """
    costs = _costs(transport, _pairs(transport, 2, iterations))
    if not costs.shared:
        return costs
    # Two pairs at once show what a common bottleneck (the relay) lets through in total.
    together = 2 * LARGE / _pairs(transport, 4, iterations)[1]
    return replace(costs, shared=max(together, costs.bandwidth))


def _pairs(transport: str, ranks: int, iterations: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        run_local([*COMMAND, transport, str(out), str(iterations)], ranks, timeout=RUN_SECONDS)
        if not out.exists():
            raise PerseidError(f"the {transport} transport gave no result within {RUN_SECONDS:g} s")
        found: list[float] = parse_json(out.read_text())
        return found


def _costs(name: str, seconds: Sequence[float]) -> TransportCosts:
    small, large = seconds
    shipped = next(costs for costs in TRANSPORTS if costs.name == name)
    # On a very fast transport, the two times may differ by no more than noise: avoid dividing by
    # zero or a negative number.
    return replace(shipped, latency=small, bandwidth=(LARGE - SMALL) / max(large - small, 1e-9))


class _Counted:
    """Wraps a store and counts its billed requests; deletions are free."""

    def __init__(self, store: ObjectStore) -> None:
        self._store, self._lock = store, threading.Lock()
        self.puts = self.gets = 0

    def put(self, key: str, data: bytes) -> None:
        with self._lock:
            self.puts += 1
        self._store.put(key, data)

    def get(self, key: str) -> bytes:
        with self._lock:
            self.gets += 1
        return self._store.get(key)

    def delete(self, keys: Sequence[str]) -> None:
        self._store.delete(keys)


def through(store: ObjectStore, iterations: int) -> TransportCosts:
    """Measure a store, between two threads of this process.

    Threads are enough, since they wait for the store most of the time.

    Raises
    ------
    PerseidError
        The measurement failed or took too long.
    """
    counted, job = _Counted(store), f"bench-{secrets.token_hex(4)}"
    found: dict[int, list[float]] = {}
    errors: list[Exception] = []

    def rank(number: int) -> None:
        try:
            with Communicator.join(
                job, number, 2, transport="store", store=counted, timeout=RUN_SECONDS
            ) as comm:
                found[number] = both(comm, iterations)
        except Exception as error:  # the other thread ends by its time-out
            errors.append(error)

    threads = [threading.Thread(target=rank, args=(number,), daemon=True) for number in (0, 1)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + RUN_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
        if errors:
            raise errors[0]
    if 0 not in found:
        raise PerseidError(f"the store gave no result within {RUN_SECONDS:g} s")
    messages = counted.puts
    return replace(_costs("store", found[0]), puts=1.0, gets=counted.gets / messages)


def measure(
    iterations: int,
    store: ObjectStore | None = None,
    report: Callable[[TransportCosts], None] | None = None,
) -> Constants:
    """Measure the constants of this machine; without a store, its built-in ones are kept.

    Parameters
    ----------
    iterations
        Number of round trips with small messages over each transport; a tenth as many are made
        with large messages.
    store
        Store to measure as well; the objects that are written are deleted again.
    report
        Called with the costs of each transport once they are measured.
    """
    found = {costs.name: costs for costs in TRANSPORTS}
    for name in found:
        if name != "store":
            found[name] = connected(name, iterations)
        elif store is not None:
            # A tenth of the iterations: a message through a store takes many times as long.
            found[name] = through(store, max(5, iterations // 10))
        else:
            continue
        if report is not None:
            report(found[name])
    left = "" if store is not None else "; the store's are those shipped"
    where = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    source = f"measured on {where}, {datetime.now(UTC):%Y-%m-%d}{left}"
    return Constants(tuple(found.values()), source=source)


def main(arguments: list[str]) -> None:
    """Run one rank: measure, and on rank 0 write the times to a file."""
    transport, out, iterations = arguments
    with Communicator.from_environment(transport=transport) as comm:
        # The barriers keep a fast pair from leaving, or starting, while others still connect.
        comm.barrier()
        seconds = both(comm, int(iterations))
        comm.barrier()
    if comm.rank == 0:
        Path(out).write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
