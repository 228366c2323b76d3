"""Backend ``perseid`` of torch.distributed against gloo, in one run.

``python benchmarks/torch_backend.py [--ranks 2 4] [--iterations N] [--repeat N]
[--operations all_reduce …] [--bytes N …] [--json FILE] [--profile]``

The backends take turns, each in fresh processes. A figure is the median over the turns of the
median over the iterations of the slowest rank's time; ranks meet in a barrier before each. Prints a
table of times for each number of ranks, and the ratio to gloo, with a star where the target is
missed: at most 1.0 up to 1 MB, 1.3 beyond, plain.
``perseid, TLS`` is the same with encrypted links, for which no target is set.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib.util
import json
import os
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import avx2

from perseid.comm.launch import run_local
from perseid.errors import PerseidError

OPERATIONS = (
    "all_reduce", "broadcast", "all_gather_into_tensor", "reduce_scatter_tensor",
    "all_to_all_single", "send and recv", "barrier",
)  # fmt: skip
SIZES = (8, 4_096, 65_536, 1_000_000, 8_000_000, 64_000_000)
"""Bytes of the tensor that a rank gives; for reduce_scatter and all_to_all, cut by the ranks."""
SMALL_BYTES, SMALL_RATIO, LARGE_RATIO = 1_000_000, 1.0, 1.3
"""Targets: times of gloo's at most, up to this size and beyond."""
BACKENDS = ("gloo", "perseid", "perseid, TLS")
TURN_SECONDS = 900.0
"""Longest time of one backend at one number of ranks."""
BYTES_AN_OPERATION = 1.5e9
"""Large tensors are sent fewer times than ``--iterations``: about so much for each operation."""

Times = dict[str, float]
"""Seconds by operation and size."""


# --- one rank --------------------------------------------------------------------------------


def calls(dist: Any, torch: Any, nbytes: int) -> dict[str, Callable[[], Any]]:
    """What is measured with tensors of this size."""
    rank, size = dist.get_rank(), dist.get_world_size()
    elements = max(1, nbytes // 4)
    each = max(1, elements // size)
    mine, cut = torch.ones(elements), torch.ones(each * size)
    whole, part, other = torch.empty(elements * size), torch.empty(each), torch.empty(each * size)

    def there_and_back() -> None:
        if rank == 0:
            dist.send(mine, 1)
            dist.recv(mine, 1)
        elif rank == 1:
            dist.recv(mine, 0)
            dist.send(mine, 0)

    return {
        # A maximum leaves the numbers as they are, and takes the time of a sum.
        "all_reduce": lambda: dist.all_reduce(mine, op=dist.ReduceOp.MAX),
        "broadcast": lambda: dist.broadcast(mine, 0),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(whole, mine),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(part, cut),
        "all_to_all_single": lambda: dist.all_to_all_single(other, cut),
        "send and recv": there_and_back,
        "barrier": dist.barrier,
    }


def measure(operations: Sequence[str], sizes: Sequence[int], iterations: int) -> Times:
    """Seconds of each operation; on rank 0."""
    import torch
    import torch.distributed as dist

    found: Times = {}
    for nbytes in sizes:
        count = int(max(5, min(iterations, BYTES_AN_OPERATION / (nbytes * dist.get_world_size()))))
        for name in operations:
            if name == "barrier" and nbytes != sizes[0]:
                continue
            call = calls(dist, torch, nbytes)[name]
            call()
            times = torch.empty(count, dtype=torch.float64)
            for index in range(count):
                dist.barrier()
                began = time.perf_counter()
                call()
                times[index] = time.perf_counter() - began
            dist.all_reduce(times, op=dist.ReduceOp.MAX)
            found[key(name, nbytes)] = float(times.median())
    return found


def key(name: str, nbytes: int) -> str:
    """The name of a figure."""
    return name if name == "barrier" else f"{name}, {nbytes:,} B"


def run_rank(backend: str, out: str, told: dict[str, Any]) -> None:
    """One rank of one backend."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if backend == "gloo":
        method = f"file://{told['folder']}/gloo"
        dist.init_process_group("gloo", init_method=method, rank=rank, world_size=size)
    else:
        import perseid.torch  # noqa: F401  # registers the backend

        dist.init_process_group("perseid", init_method="perseid://")
    profiler = cProfile.Profile()
    if told["profile"] and rank == 0:
        profiler.enable()
    found = measure(told["operations"], told["sizes"], told["iterations"])
    profiler.disable()
    if rank == 0:
        Path(out).write_text(json.dumps(found))
        if told["profile"]:
            pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(30)
    dist.destroy_process_group()


# --- all ranks -------------------------------------------------------------------------------


def one_turn(backend: str, ranks: int, told: dict[str, Any]) -> Times:
    """Seconds by operation of one backend.

    Raises
    ------
    PerseidError
        It did not finish.
    """
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore",
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [
            "-P",
            __file__,
            "--rank",
            backend,
            str(out),
            json.dumps(told | {"folder": folder}),
        ]
        encrypt = backend.endswith("TLS")
        run_local(command, ranks, timeout=TURN_SECONDS, encrypt=encrypt, environment=variables)
        if not out.exists():
            raise PerseidError(f"{backend} on {ranks} ranks gave no result")
        found: Times = json.loads(out.read_text())
        return found


def in_turns(
    backends: Sequence[str], ranks: int, repeat: int, told: dict[str, Any]
) -> dict[str, Times]:
    """The median over the turns of each backend's figures."""
    taken: dict[str, list[Times]] = {backend: [] for backend in backends}
    for _ in range(repeat):
        for backend in backends:
            taken[backend].append(one_turn(backend, ranks, told))
    return {
        backend: {name: statistics.median(one[name] for one in turns) for name in turns[0]}
        for backend, turns in taken.items()
    }


def show(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def allowed(name: str) -> float:
    """The target's ratio of an operation with its size."""
    nbytes = int(name.rsplit(", ", 1)[1].removesuffix(" B").replace(",", "")) if ", " in name else 0
    return SMALL_RATIO if nbytes <= SMALL_BYTES else LARGE_RATIO


def print_table(ranks: int, found: dict[str, Times]) -> int:
    """Times and ratios; how many targets are missed."""
    ours = [backend for backend in found if backend != "gloo"]
    head = "".join(f"{backend:>14s}" for backend in found) + "".join(
        f"{backend + ' / gloo':>22s}" for backend in ours if "gloo" in found
    )
    print(f"\n{ranks} ranks{'':33s}{head}")
    missed = 0
    for name in next(iter(found.values())):
        row = "".join(f"{show(times[name]):>14s}" for times in found.values())
        for backend in ours if "gloo" in found else ():
            ratio = found[backend][name] / found["gloo"][name]
            row += f"{ratio:22.2f}"
            if backend == "perseid":
                bad = ratio > allowed(name)
                missed += bad
                row += "*" if bad else " "
        print(f"{name:40s}{row}")
    return missed


def main() -> int:
    if sys.argv[1:2] == ["--rank"]:
        run_rank(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], metavar="N")
    parser.add_argument("--iterations", type=int, default=300, metavar="N")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="turns of each backend")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument("--bytes", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--profile", action="store_true", help="where rank 0's time goes")
    avx2.add_argument(parser)
    args = parser.parse_args()
    avx2.rerun(args)
    backends = list(args.backends)
    if importlib.util.find_spec("cryptography") is None and BACKENDS[2] in backends:
        backends.remove(BACKENDS[2])
    told = {"operations": list(args.operations), "sizes": list(args.bytes),
            "iterations": args.iterations, "profile": args.profile}  # fmt: skip
    print(f"{len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f}")
    by_ranks, missed = {}, 0
    for ranks in args.ranks:
        by_ranks[ranks] = in_turns(backends, ranks, args.repeat, told)
        missed += print_table(ranks, by_ranks[ranks])
    print(f"\ntargets of plain perseid missed (marked *): {missed}")
    if args.json:
        args.json.write_text(json.dumps(by_ranks, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
