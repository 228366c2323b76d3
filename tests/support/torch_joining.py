"""How ranks of torch.distributed meet, end and come again: ``torch_joining.py WHAT RANK SIZE``.

Every rank is a process of its own with torch's variables; what it finds goes to standard output.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist

import perseid.torch  # noqa: F401  # registers the backend
from perseid.compat.torch import join
from perseid.errors import PeerLostError, PerseidError

warnings.simplefilter("ignore")
torch.set_num_threads(1)


def summed(group=None):
    one = torch.ones(1000)
    dist.all_reduce(one, group=group)
    return int(one[0])


def beside_gloo(rank, size):
    """Groups of ours beside a default group of gloo's: each a job of its own, also overlapping."""
    dist.init_process_group("gloo")
    pairs = [dist.new_group([r, (r + 1) % size], backend="perseid") for r in range(size)]
    everyone = dist.new_group(backend="perseid")
    mine = sorted((rank, (rank - 1) % size))
    print("SUMS", [summed(pairs[number]) for number in mine], summed(everyone), summed())
    dist.destroy_process_group(everyone)
    for number in reversed(mine):
        dist.destroy_process_group(pairs[number])
    print("LEFT", len(join._joined))
    dist.destroy_process_group()


def named(rank, size):
    """By MASTER_ADDR as given."""
    dist.init_process_group("perseid", timeout=timedelta(seconds=60))
    group = dist.distributed_c10d._get_default_group()
    print("SUM", summed(), "ENCRYPTED", group._group.world._comm.encrypted)
    dist.destroy_process_group()


def again(rank, size):
    """A job that a mismatch ended is destroyed, and another made over the same store."""
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size,
                          is_master=rank == 0)  # fmt: skip
    dist.init_process_group("perseid", store=store, rank=rank, world_size=size)
    dtype = torch.float32 if rank else torch.int32
    for call in (lambda: dist.all_reduce(torch.ones(3 + rank)),
                 lambda: dist.all_reduce(torch.ones(3, dtype=dtype)),
                 lambda: dist.all_gather([torch.empty(2)] * size, torch.ones(2 + rank)),
                 lambda: dist.all_reduce(torch.ones(3)) if rank else dist.barrier()):  # fmt: skip
        try:
            call()
            print("NO ERROR", call)
        except (PerseidError, RuntimeError) as error:
            print("MISMATCH", type(error).__name__)
        dist.destroy_process_group()
        dist.init_process_group("perseid", store=store, rank=rank, world_size=size)
        print("SUM", summed())
    dist.destroy_process_group()


def interrupted(rank, size):
    """Ctrl-C in the middle of a collective of rank 1; the others hear of it."""
    dist.init_process_group("perseid")
    summed()
    if rank == 1:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    try:
        if rank == 0:
            time.sleep(3600 if size == 1 else 30)
        dist.all_reduce(torch.ones(10)) if rank else dist.recv(torch.ones(1), 1)
    except KeyboardInterrupt:
        print("INTERRUPTED")
    except PeerLostError as error:
        print("LOST", error.rank, f"{time.monotonic() - began:.2f}")


def exits(rank, size):
    """Rank 0, which holds the rendezvous, ends in the middle: by SystemExit, which no hook sees."""
    dist.init_process_group("perseid")
    summed()
    if rank == 0:
        print("ENDS", time.time(), flush=True)
        sys.exit(3)
    try:
        summed()
    except PeerLostError as error:
        print("LOST", error.rank, time.time())


if __name__ == "__main__":
    what, given_rank, given_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    globals()[what](given_rank, given_size)
