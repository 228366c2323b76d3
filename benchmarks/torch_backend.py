"""Backend ``perseid`` of torch.distributed against gloo, in one run.

``python benchmarks/torch_backend.py [--quick] [--ranks 2 4] [--operations all_reduce …]
[--bytes N …] [--json FILE] [--profile]``

Both backends live in the same processes and take turns, block by block, for each operation and
size, so that what else the machine does meets both. Ranks meet in a barrier before each operation.
Prints, for each number of ranks, the median over the blocks of the median time of the slowest rank;
the ratio is the median over the pairs of neighboring blocks. ``CPU`` is the processor time of a
rank (user and system, all its threads) for one operation, which depends less on what else runs.
Wanted are at most 1.0 times gloo's time up to 1 MB and 1.3 beyond, plain; a star marks what misses
it. ``TLS`` is the same with encrypted links, against gloo's plain ones; nothing is wanted of it.
``--quick`` takes less than three minutes for 2 and 4 ranks.
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
from typing import Any, NamedTuple

import avx2

from perseid.comm.launch import run_local
from perseid.errors import PerseidError

OPERATIONS = (
    "all_reduce", "broadcast", "all_gather_into_tensor", "reduce_scatter_tensor",
    "all_to_all_single", "send and recv", "barrier",
)  # fmt: skip
SIZES = (8, 4_096, 65_536, 1_000_000, 8_000_000, 64_000_000)
"""Bytes of the tensor that a rank gives; for reduce_scatter and all_to_all, cut by the ranks."""
QUICK_SIZES = (8, 65_536, 1_000_000, 8_000_000)
SMALL_BYTES, SMALL_RATIO, LARGE_RATIO = 1_000_000, 1.0, 1.3
"""Wanted: times of gloo's at most, up to this size and beyond."""
LINKS = ("plain", "TLS")
BLOCK_SECONDS, BLOCKS = 0.2, 9
"""Length of one block of one backend, and number of blocks."""
QUICK_BLOCK_SECONDS, QUICK_BLOCKS = 0.06, 5
LEAST, MOST = 5, 300
"""Fewest and most operations of a block."""
TURN_SECONDS = 900.0
"""Longest time of one number of ranks."""


class Figure(NamedTuple):
    """What was measured of one operation with one size."""

    gloo: float
    """Seconds."""
    ours: float
    ratio: float
    gloo_cpu: float
    """Seconds of processor time of a rank."""
    ours_cpu: float


Figures = dict[str, Figure]
"""By operation and size."""


# --- one rank --------------------------------------------------------------------------------


def calls(dist: Any, torch: Any, nbytes: int, group: Any = None) -> dict[str, Callable[[], Any]]:
    """What is measured with tensors of this size."""
    rank, size = dist.get_rank(), dist.get_world_size()
    elements = max(1, nbytes // 4)
    each = max(1, elements // size)
    mine, cut = torch.ones(elements), torch.ones(each * size)
    whole, part, other = torch.empty(elements * size), torch.empty(each), torch.empty(each * size)

    def there_and_back() -> None:
        if rank == 0:
            dist.send(mine, 1, group=group)
            dist.recv(mine, 1, group=group)
        elif rank == 1:
            dist.recv(mine, 0, group=group)
            dist.send(mine, 0, group=group)

    return {
        # A maximum leaves the numbers as they are, and takes the time of a sum.
        "all_reduce": lambda: dist.all_reduce(mine, op=dist.ReduceOp.MAX, group=group),
        "broadcast": lambda: dist.broadcast(mine, 0, group=group),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(whole, mine, group=group),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(part, cut, group=group),
        "all_to_all_single": lambda: dist.all_to_all_single(other, cut, group=group),
        "send and recv": there_and_back,
        "barrier": lambda: dist.barrier(group=group),
    }


class Block(NamedTuple):
    """One block of one backend."""

    seconds: float
    """Median over its operations of the slowest rank's time."""
    cpu: float
    """Mean over the ranks of the processor time of one operation."""


def one_block(dist: Any, torch: Any, call: Callable[[], Any], count: int, group: Any) -> Block:
    """Measure some operations in a row."""
    times, cpu = torch.empty(count, dtype=torch.float64), 0.0
    for index in range(count):
        dist.barrier(group=group)
        began, used = time.perf_counter(), time.process_time()
        call()
        cpu += time.process_time() - used
        times[index] = time.perf_counter() - began
    dist.all_reduce(times, op=dist.ReduceOp.MAX)
    total = torch.tensor([cpu / count / dist.get_world_size()], dtype=torch.float64)
    dist.all_reduce(total)
    return Block(float(times.median()), float(total))


def measure_one(
    dist: Any, torch: Any, pair: Sequence[Callable[[], Any]], groups: Any, told: Any
) -> Figure:
    """Measure one operation by gloo and by ours, in turns."""
    for call in pair:
        call()
    began = time.perf_counter()
    for call in pair:
        call()
    taken = torch.tensor([(time.perf_counter() - began) / 2], dtype=torch.float64)
    # The slowest rank's time, so that all ranks choose the same number.
    dist.all_reduce(taken, op=dist.ReduceOp.MAX)
    count = int(max(LEAST, min(MOST, told["seconds"] / float(taken))))
    blocks: tuple[list[Block], list[Block]] = ([], [])
    for _ in range(told["blocks"]):
        for found, call, group in zip(blocks, pair, groups, strict=True):
            found.append(one_block(dist, torch, call, count, group))
    gloo, ours = blocks
    return Figure(
        statistics.median(one.seconds for one in gloo),
        statistics.median(one.seconds for one in ours),
        statistics.median(b.seconds / a.seconds for a, b in zip(gloo, ours, strict=True)),
        statistics.median(one.cpu for one in gloo),
        statistics.median(one.cpu for one in ours),
    )


def measure(told: dict[str, Any], groups: Sequence[Any]) -> Figures:
    """Measure all operations with all sizes."""
    import torch
    import torch.distributed as dist

    found: Figures = {}
    for nbytes in told["sizes"]:
        gloo, ours = (calls(dist, torch, nbytes, group) for group in groups)
        for name in told["operations"]:
            if name == "barrier" and nbytes != told["sizes"][0]:
                continue
            pair = (gloo[name], ours[name])
            found[key(name, nbytes)] = measure_one(dist, torch, pair, groups, told)
    return found


def key(name: str, nbytes: int) -> str:
    """The name of a figure."""
    return name if name == "barrier" else f"{name}, {nbytes:,} B"


def run_rank(out: str, told: dict[str, Any]) -> None:
    """One rank, which has a group of each backend."""
    import torch
    import torch.distributed as dist

    import perseid.torch  # noqa: F401  # registers the backend

    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    method = f"file://{told['folder']}/store"
    dist.init_process_group("perseid", init_method=method, rank=rank, world_size=size)
    groups = (dist.new_group(backend="gloo"), dist.group.WORLD)
    profiler = cProfile.Profile()
    if told["profile"] and rank == 0:
        profiler.enable()
    found = measure(told, groups)
    profiler.disable()
    if rank == 0:
        Path(out).write_text(json.dumps(found))
        if told["profile"]:
            pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(30)
    dist.destroy_process_group()


# --- all ranks -------------------------------------------------------------------------------


def run_links(links: str, ranks: int, told: dict[str, Any]) -> Figures:
    """What was measured with plain or encrypted links.

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
        command = ["-P", __file__, "--rank", str(out), json.dumps(told | {"folder": folder})]
        encrypt = links == "TLS"
        run_local(command, ranks, timeout=TURN_SECONDS, encrypt=encrypt, environment=variables)
        if not out.exists():
            raise PerseidError(f"{links} links on {ranks} ranks gave no result")
        return {name: Figure(*one) for name, one in json.loads(out.read_text()).items()}


def show(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def wanted(name: str) -> float:
    """The ratio that is wanted of an operation with its size."""
    nbytes = int(name.rsplit(", ", 1)[1].removesuffix(" B").replace(",", "")) if ", " in name else 0
    return SMALL_RATIO if nbytes <= SMALL_BYTES else LARGE_RATIO


def print_table(ranks: int, found: dict[str, Figures]) -> int:
    """Times and ratios; returns how many plain ones miss what is wanted."""
    print(
        f"\n{f'{ranks} ranks':34s}{'gloo':>9s}{'perseid':>9s}{'ratio':>7s}{'wanted':>8s}"
        f"{'CPU: gloo':>12s}{'perseid':>9s}{'ratio':>7s}{'TLS':>10s}{'ratio':>7s}"
    )
    missed = 0
    for name in next(iter(found.values())):
        row = f"{name:34s}"
        if plain := found.get("plain", {}).get(name):
            bad = plain.ratio > wanted(name)
            missed += bad
            row += f"{show(plain.gloo):>9s}{show(plain.ours):>9s}{plain.ratio:7.2f}"
            row += f"{wanted(name):7.1f}{'*' if bad else ' '}"
            row += f"{show(plain.gloo_cpu):>12s}{show(plain.ours_cpu):>9s}"
            row += f"{plain.ours_cpu / plain.gloo_cpu:7.2f}"
        if secret := found.get("TLS", {}).get(name):
            row += f"{show(secret.ours):>10s}{secret.ratio:7.2f}"
        print(row)
    return missed


def main() -> int:
    if sys.argv[1:2] == ["--rank"]:
        run_rank(sys.argv[2], json.loads(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, shorter blocks")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], metavar="N")
    parser.add_argument("--blocks", type=int, metavar="N", help="blocks of each backend")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument("--bytes", type=int, nargs="+", metavar="N")
    parser.add_argument("--links", nargs="+", choices=LINKS, default=LINKS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--profile", action="store_true", help="where rank 0's time goes")
    avx2.add_argument(parser)
    args = parser.parse_args()
    avx2.rerun(args)
    links = list(args.links)
    if importlib.util.find_spec("cryptography") is None and "TLS" in links:
        links.remove("TLS")
    told = {
        "operations": list(args.operations),
        "sizes": list(args.bytes or (QUICK_SIZES if args.quick else SIZES)),
        "seconds": QUICK_BLOCK_SECONDS if args.quick else BLOCK_SECONDS,
        "blocks": args.blocks or (QUICK_BLOCKS if args.quick else BLOCKS),
        "profile": args.profile,
    }
    print(f"{len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f}")
    by_ranks, missed = {}, 0
    for ranks in args.ranks:
        by_ranks[ranks] = {kind: run_links(kind, ranks, told) for kind in links}
        missed += print_table(ranks, by_ranks[ranks])
    print(f"\nplain operations that miss what is wanted (marked *): {missed}")
    if args.json:
        args.json.write_text(json.dumps(by_ranks, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
