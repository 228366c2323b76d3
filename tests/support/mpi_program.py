"""A program of mpi4py's interface: prints what every call gave, the same on any implementation.

``mpi_program.py mpi4py`` under ``mpiexec``, ``mpi_program.py perseid`` under ``perseid comm run``.
"""

from __future__ import annotations

import json
import sys

import numpy as np

if sys.argv[1] == "mpi4py":
    from mpi4py import MPI
else:
    from perseid.compat import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
left, right = (rank - 1) % size, (rank + 1) % size
said = {}


def say(name, value):
    said[name] = value.tolist() if isinstance(value, np.ndarray) else value


def objects():
    say("bcast", comm.bcast({"seed": [1, 2]} if rank == 1 else None, root=1))
    say("scatter", comm.scatter([f"for {r}" for r in range(size)] if rank == 0 else None))
    say("gather", comm.gather((rank, "x"), root=2))
    say("allgather", comm.allgather(rank * 1.5))
    say("alltoall", comm.alltoall([[rank, to] for to in range(size)]))
    for name in ("SUM", "PROD", "MAX", "MIN", "LAND", "BAND", "LOR", "BOR", "LXOR", "BXOR"):
        op = getattr(MPI, name)
        say(f"reduce {name}", comm.reduce(rank + 1, op=op, root=1))
        say(f"allreduce {name}", comm.allreduce(rank + 1, op=op))
        if not name.startswith("L"):  # mpi4py gives the operand of one rank as it is
            say(f"scan {name}", comm.scan(rank + 2, op=op))
            say(f"exscan {name}", comm.exscan(rank + 2, op=op))
    say("maxloc", list(comm.allreduce((rank * 7 % 4, rank), op=MPI.MAXLOC)))
    say("minloc", list(comm.allreduce((rank * 7 % 4, rank), op=MPI.MINLOC)))
    join = MPI.Op.Create(lambda a, b, _: a + b, commute=False)
    say("own reduction", comm.allreduce(str(rank), op=join))


def arrays():
    mine = np.arange(4.0) + 10 * rank
    for name in ("SUM", "PROD", "MAX", "MIN"):
        into = np.full(4, -1.0)
        comm.Allreduce(mine, into, op=getattr(MPI, name))
        say(f"Allreduce {name}", into)
        into = np.full(4, -1.0)
        comm.Reduce(mine, into, op=getattr(MPI, name), root=1)
        say(f"Reduce {name}", into)
        into = np.full(4, -1.0)
        comm.Scan(mine, into, op=getattr(MPI, name))
        say(f"Scan {name}", into)
        into = np.full(4, -1.0)
        comm.Exscan(mine, into, op=getattr(MPI, name))
        say(f"Exscan {name}", into if rank else None)
    same = mine.copy()
    comm.Allreduce(MPI.IN_PLACE, same)
    say("Allreduce in place", same)
    part = np.empty(2)
    comm.Reduce_scatter_block(np.arange(2.0 * size) + rank, part)
    say("Reduce_scatter_block", part)
    own = np.empty(rank + 1)
    counts = list(range(1, size + 1))
    comm.Reduce_scatter(np.arange(float(sum(counts))), own, counts)
    say("Reduce_scatter", own)
    say("dtype", [_dtype(code) for code in ("i4", "u2", "f4", "c16", "?")])


def _dtype(code):
    array = np.zeros(3, code) if rank else np.array([1, 0, 1], code)
    comm.Bcast(array)
    return [complex(one).real for one in array]


def parts():
    everything = np.empty(2 * size, "i4")
    comm.Allgather(np.array([rank, -rank], "i4"), everything)
    say("Allgather", everything)
    comm.Alltoall(np.arange(2 * size, dtype="i4") + 100 * rank, everything)
    say("Alltoall", everything)
    on_root = np.full(2 * size, -1, "i4")
    comm.Gather([np.array([rank, 7], "i4"), MPI.INT], on_root if rank == 0 else None)
    say("Gather", on_root)
    own = np.empty(2, "i4")
    comm.Scatter(np.arange(2 * size, dtype="i4") if rank == 1 else None, own, root=1)
    say("Scatter", own)
    counts = np.arange(1, size + 1)
    starts = 2 * np.arange(size)
    spread = np.full(3 * size, -1.0)
    comm.Gatherv(np.full(rank + 1, float(rank)), [spread, counts, starts, MPI.DOUBLE], root=0)
    say("Gatherv", spread)
    spread = np.full(3 * size, -1.0)
    comm.Allgatherv(np.full(rank + 1, float(rank)), [spread, (counts, starts), MPI.DOUBLE])
    say("Allgatherv", spread)
    got = np.empty(rank + 1)
    comm.Scatterv([np.arange(3.0 * size), counts, starts, MPI.DOUBLE] if rank == 0 else None, got)
    say("Scatterv", got)
    there = np.full(size, -1.0)
    comm.Alltoallv([np.arange(float(size)) + 10 * rank, [1] * size], [there, [1] * size])
    say("Alltoallv", there)


def messages():
    status = MPI.Status()
    comm.send({"from": rank}, dest=right, tag=5)
    say("recv", comm.recv(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG, status=status))
    say("status", [status.Get_source(), status.Get_tag()])
    requests = [comm.irecv(source=left, tag=tag) for tag in (3, 1, 2)]
    for tag in (1, 2, 3):
        comm.isend(("tag", tag), dest=right, tag=tag).wait()
    say("waitall", [list(found) for found in MPI.Request.waitall(requests)])
    big, into = np.full(500_000, float(rank)), np.empty(500_000)
    pair = [comm.Irecv(into, source=left), comm.Isend(big, dest=right)]
    MPI.Request.Waitall(pair)
    say("Isend and Irecv", [into[0], into[-1]])
    comm.Sendrecv(big[:3], dest=right, recvbuf=into, source=left, status=status)
    say("Sendrecv", [into[:4], status.Get_count(MPI.DOUBLE)][1])
    say("sendrecv", comm.sendrecv(rank, dest=left, source=right))
    sync = [comm.issend((rank, i), dest=right, tag=0) for i in range(3)]
    say("issend", [list(comm.recv(source=left, tag=0)) for _ in range(3)])
    MPI.Request.waitall(sync)
    request = comm.irecv(source=left, tag=9)
    say("test before", request.test()[0])
    comm.Barrier()
    comm.ssend("now", dest=right, tag=9) if rank == 0 else None
    if rank == 1:
        say("test after", request.wait())
        comm.ssend("on", dest=right, tag=9)
    elif rank != 0:
        request.wait()
        comm.ssend("on", dest=right, tag=9)
    else:
        request.wait()
    if rank == 0:
        order = sorted(comm.recv(source=MPI.ANY_SOURCE, tag=11) for _ in range(size - 1))
        say("from any source", order)
    else:
        comm.send(rank, dest=0, tag=11)
    comm.send(b"to myself", dest=rank, tag=12)
    say("probe", comm.Iprobe(source=rank, tag=12))
    say("to myself", comm.recv(source=rank, tag=12).decode())


def groups():
    half = comm.Split(rank % 2, key=-rank)
    say("Split", [half.Get_rank(), half.Get_size(), half.allreduce(rank)])
    none = comm.Split(MPI.UNDEFINED if rank else 0, 0)
    say("Split undefined", none == MPI.COMM_NULL)
    twin = comm.Dup()
    into = np.empty(1)
    request = twin.Iallreduce(np.ones(1), into)
    comm.Barrier()
    request.Wait()
    say("Dup and Iallreduce", into)
    say("Compare", MPI.Comm.Compare(comm, twin) == MPI.CONGRUENT)
    twin.Free()
    say("SELF", [MPI.COMM_SELF.Get_size(), MPI.COMM_SELF.allreduce(3)])


for part in (objects, arrays, parts, messages, groups):
    part()
print("SAID" + json.dumps({"rank": rank, "said": said}), flush=True)
