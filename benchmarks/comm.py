"""Message passing against its targets, with mpi4py over TCP and gloo in the same run.

``python benchmarks/comm.py [--iterations N] [--ranks 2 4 8 16] [--json FILE] [--profile]``

Prints the table and, for each target, what was measured and whether it is met. ``--profile`` adds
where the time of small calls goes: the floor of a Python process is its two system calls.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import pstats
import sys
from pathlib import Path

import numpy as np

from perseid.comm import Communicator
from perseid.comm.measure import installed, plain_tcp, run_peer
from perseid.errors import PerseidError
from perseid.rendezvous import EmbeddedServer

QUOTED = {
    "FMI C++ over TCPunch, 8 ranks: barrier": "197 us",
    "FMI C++ over TCPunch, 8 ranks: bcast 1 MiB": "2.7 ms",
    "FMI C++ over TCPunch, 8 ranks: allreduce 1e6 doubles": "339 ms",
    "FMI C++ over TCPunch, 16 ranks: first collective": "404-504 ms",
}
"""Measured on such a machine on another day: for orientation, not for comparison."""


def targets(tcp: dict[str, float], by_ranks: dict[int, dict[str, dict[str, float]]]) -> list[tuple]:
    """(what, measured seconds, limit in seconds) of every target that could be measured."""
    rows = []
    ours = by_ranks.get(2, {}).get("perseid")
    if ours:
        rows.append(("round trip 8 B: 2x plain TCP", ours["round trip 8 B"], 2 * tcp["8"]))
        limit = tcp["64M"] / 0.8
        rows.append(("round trip 64 MiB: 0.8x plain TCP's rate", ours["round trip 64 MiB"], limit))
    ours = by_ranks.get(16, {}).get("perseid")
    if ours:
        name = "last start to first collective"
        rows.append((f"16 ranks: {name}: 50 ms", ours[name], 0.05))
    eight = by_ranks.get(8, {})
    if "perseid" in eight and "mpi4py" in eight:
        for name, factor in (
            ("barrier", 1.5),
            ("allreduce 1 double", 1.5),
            ("bcast 1 MiB", 1.0),
            ("allreduce 1e6 doubles", 1.0),
        ):
            limit = factor * eight["mpi4py"][name]
            rows.append((f"8 ranks: {name}: {factor:g}x mpi4py", eight["perseid"][name], limit))
    return rows


def show(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def profile_small_calls(calls: int = 5000) -> str:
    """Where the time of an 8-byte round trip goes, in the process that starts it."""
    out = io.StringIO()
    with EmbeddedServer() as server:
        child = os.fork()
        rank = 0 if child else 1
        with Communicator.join("profile", rank, 2, server.address, heartbeat=10.0) as comm:
            data = np.zeros(8, np.uint8)
            if rank:
                for _ in range(calls):
                    comm.Recv(data, 0)
                    comm.Send(data, 0)
            else:
                profiler = cProfile.Profile()
                profiler.enable()
                for _ in range(calls):
                    comm.Send(data, 1)
                    comm.Recv(data, 1)
                profiler.disable()
                pstats.Stats(profiler, stream=out).sort_stats("tottime").print_stats(8)
        if not child:
            os._exit(0)
    os.waitpid(child, 0)
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--peers", nargs="+", default=installed())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    tcp = {"8": plain_tcp(8, args.iterations), "64M": plain_tcp(64 << 20, 7)}
    print(f"{len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f}")
    print(f"plain TCP: round trip 8 B {show(tcp['8'])}, 64 MiB {show(tcp['64M'])}")
    by_ranks: dict[int, dict[str, dict[str, float]]] = {}
    for ranks in args.ranks:
        by_ranks[ranks] = {}
        for peer in args.peers:
            try:
                by_ranks[ranks][peer] = run_peer(peer, ranks, args.iterations)
            except PerseidError as error:
                print(error, file=sys.stderr)
        print(f"\n{ranks} ranks{'':25s}" + "".join(f"{peer:>14s}" for peer in by_ranks[ranks]))
        names = dict.fromkeys(name for one in by_ranks[ranks].values() for name in one)
        for name in names:
            cells = (show(one.get(name)) for one in by_ranks[ranks].values())
            print(f"{name:32s}" + "".join(f"{cell:>14s}" for cell in cells))
    print("\ntargets")
    for what, measured, limit in targets(tcp, by_ranks):
        word = "met" if measured <= limit else "NOT MET"
        print(f"{what:52s} {show(measured):>10s} of {show(limit):>10s}  {word}")
    print("\nquoted, of another day")
    for what, value in QUOTED.items():
        print(f"{what:60s} {value}")
    if args.json:
        args.json.write_text(json.dumps({"tcp": tcp, "ranks": by_ranks}, indent=1))
    if args.profile:
        print(profile_small_calls())
    return 0


if __name__ == "__main__":
    sys.exit(main())
