"""Measures how fast message passing is on this machine, compared with plain TCP.

This module is also the program that each rank runs: ``python -m perseid.comm.bench OUT
ITERATIONS``. ``benchmarks/comm.py`` measures other libraries in the same way.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from perseid.comm.communicator import Communicator
from perseid.comm.launch import run_local
from perseid.comm.ops import Array
from perseid.errors import PerseidError
from perseid.jsontext import parse_json

COMMAND = ("-P", "-m", "perseid.comm.bench")
RUN_SECONDS = 300.0
"""Time limit for measuring one library with one number of ranks."""
MEBIBYTE = 1 << 20


class Library(Protocol):
    """The operations of a message-passing library that are measured."""

    rank: int
    size: int

    def barrier(self) -> None:
        """Wait until all ranks have called it."""

    def bcast(self, array: Array) -> None:
        """Broadcast from rank 0."""

    def allreduce(self, array: Array, into: Array) -> None:
        """Sum over all ranks."""

    def gather(self, array: Array, into: Array | None) -> None:
        """Gather on rank 0."""

    def scatter(self, array: Array | None, into: Array) -> None:
        """Scatter from rank 0."""

    def send(self, array: Array, dest: int) -> None:
        """Send to one rank."""

    def receive(self, array: Array, source: int) -> None:
        """Receive from one rank."""

    def collect(self, value: list[float]) -> list[list[float]] | None:
        """Gather the measured times on rank 0; this call is not measured itself."""


class Ours:
    """Perseid's own communicator."""

    def __init__(self) -> None:
        self.comm = Communicator.from_environment()
        self.rank, self.size = self.comm.rank, self.comm.world_size
        self.barrier, self.bcast, self.allreduce = (
            self.comm.barrier, self.comm.Bcast, self.comm.Allreduce,
        )  # fmt: skip
        self.gather, self.scatter = self.comm.Gather, self.comm.Scatter
        self.send, self.receive, self.collect = (
            self.comm.Send, self.comm.Recv, self.comm.gather,
        )  # fmt: skip


def operations(library: Library) -> dict[str, tuple[Callable[[], None], float]]:
    """Operations to measure by column name: the call, and its share of the iterations."""
    root = library.rank == 0
    one, into_one = np.ones(1), np.empty(1)
    million, into_million = np.ones(1_000_000), np.empty(1_000_000)
    block = np.zeros(MEBIBYTE, np.uint8)
    whole = np.zeros(MEBIBYTE * library.size, np.uint8) if root else None
    # Large messages get a smaller share of the iterations, since each takes longer.
    table: dict[str, tuple[Callable[[], None], float]] = {
        "barrier": (library.barrier, 1.0),
        "allreduce 1 double": (lambda: library.allreduce(one, into_one), 1.0),
        "bcast 1 MiB": (lambda: library.bcast(block), 0.2),
        "allreduce 1e6 doubles": (lambda: library.allreduce(million, into_million), 0.05),
        "gather 1 MiB each": (lambda: library.gather(block, whole), 0.1),
        "scatter 1 MiB each": (lambda: library.scatter(whole, block), 0.1),
    }
    return table


class PlainTcp:
    """A blocking socket between the same two processes, for comparison.

    Whether the system runs two processes on one core or on two changes a round trip more than any
    library does, so only times from the same pair of processes can be compared.
    """

    def __init__(self, library: Library) -> None:
        self.first = library.rank == 0
        port = np.zeros(1, np.int64)
        if self.first:
            with socket.create_server(("127.0.0.1", 0)) as server:
                port[0] = server.getsockname()[1]
                library.send(port, 1)
                self.sock, _ = server.accept()
        else:
            library.receive(port, 0)
            self.sock = socket.create_connection(("127.0.0.1", int(port[0])))
        # As the communicator does: otherwise Nagle's algorithm would delay small messages.
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def there_and_back(self, array: Array) -> None:
        """Send an array to the other rank and receive it back."""
        if self.first:
            self.sock.sendall(array.data)
            self._receive(array.data)
        else:
            self._receive(array.data)
            self.sock.sendall(array.data)

    def _receive(self, view: memoryview) -> None:
        have = 0
        while have < len(view):
            count = self.sock.recv_into(view[have:])
            if not count:
                raise ConnectionError("the other rank of the measurement has gone")
            have += count


def round_trips(library: Library, iterations: int) -> dict[str, float]:
    """Median round trip of the library and of a plain socket, measured in turn, in seconds."""

    def ours(array: Array) -> None:
        if library.rank == 0:
            library.send(array, 1)
            library.receive(array, 1)
        else:
            library.receive(array, 0)
            library.send(array, 0)

    # In turn, block by block: a change of load on the machine meets both alike.
    calls = {"round trip": ours, "plain TCP": PlainTcp(library).there_and_back}
    results: dict[str, float] = {}
    for label, nbytes, blocks, count in (
        ("8 B", 8, max(1, iterations // 50), 50),
        ("64 MiB", 64 * MEBIBYTE, max(3, iterations // 50), 1),
    ):
        array = np.zeros(nbytes, np.uint8)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for block in range(blocks + 1):
            for name, call in calls.items():
                taken = [_timed(call, array) for _ in range(count)]
                times[name] += taken if block else []  # the first block warms up
        results |= {f"{name} {label}": statistics.median(times[name]) for name in calls}
    return results


def _timed(call: Callable[[Array], None], array: Array) -> float:
    began = time.perf_counter()
    call(array)
    return time.perf_counter() - began


def measure(library: Library, iterations: int) -> dict[str, float]:
    """Seconds of each operation, on rank 0: the median over iterations of the slowest rank."""
    results = {}
    for name, (call, share) in operations(library).items():
        # At least three calls, so that the median leaves out one outlier; the call before warms up.
        count = max(3, int(iterations * share))
        call()
        times = []
        for _ in range(count):
            # All ranks start together: otherwise the time includes waiting for a late one.
            library.barrier()
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        found = library.collect(times)
        if found is not None:
            results[name] = statistics.median(max(column) for column in zip(*found, strict=True))
    if library.size == 2:
        results |= round_trips(library, iterations)
    return results


def run(ranks: int, iterations: int) -> dict[str, float]:
    """Measure all operations among ranks of this machine; returns seconds by operation.

    Raises
    ------
    PerseidError
        The ranks did not finish in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [*COMMAND, str(out), str(iterations)]
        # One NumPy thread per rank: more would compete with the other ranks for the cores.
        run_local(command, ranks, timeout=RUN_SECONDS, environment={"OMP_NUM_THREADS": "1"})
        if not out.exists():
            raise PerseidError(f"{ranks} ranks gave no result within {RUN_SECONDS:g} s")
        found: dict[str, float] = parse_json(out.read_text())
        return found


def write(make: Callable[[], Library], out: str, iterations: int) -> None:
    """Run one rank: join, measure, and on rank 0 write the results to a file."""
    began = time.monotonic()
    library = make()
    joined = time.monotonic()
    library.barrier()
    done = time.monotonic()
    found = library.collect([began, joined, done])
    results = measure(library, iterations)
    if found is not None:
        # All ranks share the machine's clock. The last rank's start counts, since starting the
        # processes is not the work of the library.
        start = max(one[0] for one in found)
        results["last start to all joined"] = max(one[1] for one in found) - start
        results["last start to first collective"] = max(one[2] for one in found) - start
        Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    write(Ours, sys.argv[1], int(sys.argv[2]))
