"""The same measurements on our communicator, mpi4py and gloo: one rank's side.

Run as a program by ``perseid.comm.measure``: ``python -m perseid.comm.peers PEER OUT ITERATIONS``.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from perseid.comm import Communicator
from perseid.comm.call import Array

MEBIBYTE = 1 << 20


class Peer(Protocol):
    """What is measured of a library."""

    rank: int
    size: int

    def barrier(self) -> None:
        """All have come."""

    def bcast(self, array: Array) -> None:
        """From rank 0."""

    def allreduce(self, array: Array, into: Array) -> None:
        """Sum."""

    def gather(self, array: Array, into: Array | None) -> None:
        """To rank 0."""

    def scatter(self, array: Array | None, into: Array) -> None:
        """From rank 0."""

    def send(self, array: Array, dest: int) -> None:
        """To one."""

    def receive(self, array: Array, source: int) -> None:
        """From one."""

    def collect(self, value: list[float]) -> list[list[float]] | None:
        """Objects to rank 0, not measured."""


class Ours:
    """This package."""

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


class Mpi:
    """mpi4py, its buffer interface."""

    def __init__(self) -> None:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
        self.rank, self.size = comm.rank, comm.size
        self.barrier, self.bcast, self.allreduce = comm.Barrier, comm.Bcast, comm.Allreduce
        self.gather, self.scatter = comm.Gather, comm.Scatter
        self.send, self.receive, self.collect = comm.Send, comm.Recv, comm.gather


class Gloo:
    """torch.distributed with gloo over TCP."""

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method="file://" + os.environ["PERSEID_GLOO_FILE"],
            rank=int(os.environ["PERSEID_RANK"]),
            world_size=int(os.environ["PERSEID_WORLD_SIZE"]),
        )
        self.torch, self.dist = torch, dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def barrier(self) -> None:
        """All have come."""
        self.dist.barrier()

    def bcast(self, array: Array) -> None:
        """From rank 0."""
        self.dist.broadcast(self.torch.from_numpy(array), 0)

    def allreduce(self, array: Array, into: Array) -> None:
        """Sum, in place as torch has it."""
        into[...] = array
        self.dist.all_reduce(self.torch.from_numpy(into))

    def gather(self, array: Array, into: Array | None) -> None:
        """To rank 0."""
        parts = None if into is None else self._parts(into)
        self.dist.gather(self.torch.from_numpy(array), parts, 0)

    def scatter(self, array: Array | None, into: Array) -> None:
        """From rank 0."""
        parts = None if array is None else self._parts(array)
        self.dist.scatter(self.torch.from_numpy(into), parts, 0)

    def _parts(self, array: Array) -> list[Any]:
        return list(self.torch.from_numpy(array).chunk(self.size))

    def send(self, array: Array, dest: int) -> None:
        """To one."""
        self.dist.send(self.torch.from_numpy(array), dest)

    def receive(self, array: Array, source: int) -> None:
        """From one."""
        self.dist.recv(self.torch.from_numpy(array), source)

    def collect(self, value: list[float]) -> list[list[float]] | None:
        """Objects to rank 0."""
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        self.dist.gather_object(value, found, 0)
        return found


PEERS: dict[str, Callable[[], Peer]] = {"perseid": Ours, "mpi4py": Mpi, "gloo": Gloo}


def operations(peer: Peer) -> dict[str, tuple[Callable[[], None], float]]:
    """The columns: what is called, and its share of the iterations."""
    root = peer.rank == 0
    one, into_one = np.ones(1), np.empty(1)
    million, into_million = np.ones(1_000_000), np.empty(1_000_000)
    block = np.zeros(MEBIBYTE, np.uint8)
    whole = np.zeros(MEBIBYTE * peer.size, np.uint8) if root else None
    table: dict[str, tuple[Callable[[], None], float]] = {
        "barrier": (peer.barrier, 1.0),
        "allreduce 1 double": (lambda: peer.allreduce(one, into_one), 1.0),
        "bcast 1 MiB": (lambda: peer.bcast(block), 0.2),
        "allreduce 1e6 doubles": (lambda: peer.allreduce(million, into_million), 0.05),
        "gather 1 MiB each": (lambda: peer.gather(block, whole), 0.1),
        "scatter 1 MiB each": (lambda: peer.scatter(whole, block), 0.1),
    }
    return table


class PlainTcp:
    """A blocking socket between the same two processes: what the round trips are compared with.

    Where the system puts two processes (on one core or on two) changes a round trip more than any
    library does, so only what is measured in the same pair of processes can be compared.
    """

    def __init__(self, peer: Peer) -> None:
        self.first = peer.rank == 0
        port = np.zeros(1, np.int64)
        if self.first:
            with socket.create_server(("127.0.0.1", 0)) as server:
                port[0] = server.getsockname()[1]
                peer.send(port, 1)
                self.sock, _ = server.accept()
        else:
            peer.receive(port, 0)
            self.sock = socket.create_connection(("127.0.0.1", int(port[0])))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def there_and_back(self, array: Array) -> None:
        """To the other rank and back."""
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


def round_trips(peer: Peer, iterations: int) -> dict[str, float]:
    """Median seconds of the library's and of a plain socket's round trips, taken in turn."""

    def ours(array: Array) -> None:
        if peer.rank == 0:
            peer.send(array, 1)
            peer.receive(array, 1)
        else:
            peer.receive(array, 0)
            peer.send(array, 0)

    ways = {"round trip": ours, "plain TCP": PlainTcp(peer).there_and_back}
    results: dict[str, float] = {}
    for label, nbytes, blocks, count in (
        ("8 B", 8, max(1, iterations // 50), 50),
        ("64 MiB", 64 * MEBIBYTE, max(3, iterations // 50), 1),
    ):
        array = np.zeros(nbytes, np.uint8)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for block in range(blocks + 1):
            for way, call in ways.items():
                taken = [_timed(call, array) for _ in range(count)]
                times[way] += taken if block else []  # the first block warms up
        results |= {f"{way} {label}": statistics.median(times[way]) for way in ways}
    return results


def _timed(call: Callable[[Array], None], array: Array) -> float:
    began = time.perf_counter()
    call(array)
    return time.perf_counter() - began


def measure(peer: Peer, iterations: int) -> dict[str, float]:
    """Median over the iterations of the slowest rank's time, in seconds; on rank 0."""
    results = {}
    for name, (call, share) in operations(peer).items():
        count = max(3, int(iterations * share))
        call()
        times = []
        for _ in range(count):
            peer.barrier()
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        found = peer.collect(times)
        if found is not None:
            results[name] = statistics.median(max(column) for column in zip(*found, strict=True))
    if peer.size == 2:
        results |= round_trips(peer, iterations)
    return results


def main(arguments: list[str]) -> None:
    """Measure one library and write the numbers."""
    name, out, iterations = arguments
    began = time.monotonic()
    peer = PEERS[name]()
    joined = time.monotonic()
    peer.barrier()
    done = time.monotonic()
    found = peer.collect([began, joined, done])
    results = measure(peer, int(iterations))
    if found is not None:
        # The clock is the machine's: the last rank's start counts.
        start = max(one[0] for one in found)
        results["last start to all joined"] = max(one[1] for one in found) - start
        results["last start to first collective"] = max(one[2] for one in found) - start
        Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
