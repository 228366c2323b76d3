"""Message passing against its targets, with mpi4py over TCP and gloo in the same run.

``python benchmarks/comm.py [--iterations N] [--repeat N] [--ranks 2 4 8 16] [--json FILE]
[--profile]``

The libraries take turns, each in fresh processes; a figure is the median over the turns of the
median over the iterations. Plain TCP is measured between the same two processes as each library's
round trip, block by block. Between ranks of one machine our connections use another congestion
control than the system's, if that paces (it is printed); the others use the system's. Prints the
table and, for each target, what was measured, as a ratio, and whether it is met. ``--profile``
adds where the time of small calls goes.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import pstats
import statistics
import sys
from pathlib import Path

import avx2
import numpy as np
from comm_measure import installed, run_library

from perseid.comm import Communicator
from perseid.comm.connection import LOCAL_CONGESTION
from perseid.errors import PerseidError
from perseid.rendezvous import EmbeddedServer

QUOTED = {
    "FMI C++ over TCPunch, 8 ranks: barrier": "197 us",
    "FMI C++ over TCPunch, 8 ranks: bcast 1 MiB": "2.7 ms",
    "FMI C++ over TCPunch, 8 ranks: allreduce 1e6 doubles": "339 ms",
    "FMI C++ over TCPunch, 16 ranks: first collective": "404-504 ms",
}
"""Measured on such a machine on another day: for orientation, not for comparison."""


Columns = dict[str, dict[str, float]]
"""Seconds by library and operation."""


def targets(by_ranks: dict[int, Columns]) -> list[tuple[str, float, float, float]]:
    """(what, measured, baseline, allowed ratio) of every target that could be measured."""
    rows = []
    ours = by_ranks.get(2, {}).get("perseid")
    if ours:
        for size, ratio in (("8 B", 2.0), ("64 MiB", 1.25)):
            pair = ours[f"round trip {size}"], ours[f"plain TCP {size}"]
            rows.append((f"round trip {size} / plain TCP", *pair, ratio))
    ours = by_ranks.get(16, {}).get("perseid")
    if ours:
        name = "last start to first collective"
        rows.append((f"16 ranks: {name} / 50 ms", ours[name], 0.05, 1.0))
    eight = by_ranks.get(8, {})
    if "perseid" in eight and "mpi4py" in eight:
        for name, ratio in (
            ("barrier", 1.5),
            ("allreduce 1 double", 1.5),
            ("bcast 1 MiB", 1.0),
            ("allreduce 1e6 doubles", 1.0),
        ):
            pair = eight["perseid"][name], eight["mpi4py"][name]
            rows.append((f"8 ranks: {name} / mpi4py", *pair, ratio))
    return rows


def in_turns(peers: list[str], ranks: int, iterations: int, repeat: int) -> Columns:
    """The median over ``repeat`` turns of each library's figures."""
    taken: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
    for _ in range(repeat):
        for peer in peers:
            try:
                taken[peer].append(run_library(peer, ranks, iterations))
            except PerseidError as error:
                print(error, file=sys.stderr)
    return {
        peer: {name: statistics.median(one[name] for one in turns) for name in turns[0]}
        for peer, turns in taken.items()
        if turns
    }


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
        with Communicator.join("profile", rank, 2, server.address) as comm:
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
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="turns of each library")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--peers", nargs="+", default=installed())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", action="store_true")
    avx2.add_argument(parser)
    args = parser.parse_args()
    avx2.rerun(args)
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    print(
        f"{len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f}; congestion control "
        f"of the system: {control}, of ours between ranks of one machine: "
        f"{LOCAL_CONGESTION.decode()}"
    )
    by_ranks: dict[int, Columns] = {}
    for ranks in args.ranks:
        by_ranks[ranks] = in_turns(args.peers, ranks, args.iterations, args.repeat)
        print(f"\n{ranks} ranks{'':25s}" + "".join(f"{peer:>14s}" for peer in by_ranks[ranks]))
        names = dict.fromkeys(name for one in by_ranks[ranks].values() for name in one)
        for name in names:
            cells = (show(one.get(name)) for one in by_ranks[ranks].values())
            print(f"{name:32s}" + "".join(f"{cell:>14s}" for cell in cells))
    print("\ntargets: measured / baseline = ratio, at most")
    for what, measured, baseline, most in targets(by_ranks):
        word = "met" if measured <= most * baseline else "NOT MET"
        ratio = f"{measured / baseline:.2f}, at most {most:g}"
        print(f"{what:48s} {show(measured):>9s} / {show(baseline):>9s} = {ratio:20s} {word}")
    print("\nquoted, of another day")
    for what, value in QUOTED.items():
        print(f"{what:60s} {value}")
    if args.json:
        args.json.write_text(json.dumps(by_ranks, indent=1))
    if args.profile:
        print(profile_small_calls())
    return 0


if __name__ == "__main__":
    sys.exit(main())
