"""mpi4py and gloo behind the interface that is measured: one rank's side.

Run as a program by ``comm_measure``: ``python comm_libraries.py LIBRARY OUT ITERATIONS``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from perseid.comm.bench import Library, Ours, write
from perseid.comm.ops import Array


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


LIBRARIES: dict[str, Callable[[], Library]] = {"perseid": Ours, "mpi4py": Mpi, "gloo": Gloo}


if __name__ == "__main__":
    write(LIBRARIES[sys.argv[1]], sys.argv[2], int(sys.argv[3]))
