"""What a rank costs beyond its own work: many ranks of tiny partitions on the local engine.

    python benchmarks/local_engine.py --ranks 517 --workers 2

Overhead = wall x workers - the sum of the ranks' own work (as each worker timed it), over the
ranks; it holds the workers' starts, handing over items, logs, and idle workers at the end. Let the
machine do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import avx2

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=517)
    parser.add_argument("--rows", type=int, default=3, help="objects per partition")
    parser.add_argument("--workers", type=int, default=None)
    avx2.add_argument(parser)
    args = parser.parse_args()
    avx2.rerun(args)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args)


def measure(folder: Path, args: argparse.Namespace) -> None:
    from tiny import tiny_model, tiny_survey

    from perseid.engines.driver import start
    from perseid.engines.local import LocalEngine
    from perseid.engines.local.local_options import LocalOptions
    from perseid.pipeline.request import RunRequest

    tiny_model(folder / "tiny.onnx")
    tiny_survey(folder / "survey", args.ranks * args.rows, args.rows)
    names = {"data": "survey", "results": "run", "model": "tiny.onnx"}
    request = RunRequest.parse({key: str(folder / name) for key, name in names.items()})
    began = time.monotonic()
    engine = LocalEngine(LocalOptions(workers=args.workers))
    result = start(request, engine, lambda event: None)
    mapped = result.mapped
    warm = sorted(a.duration_ms - 1000 * a.work_seconds for a in mapped.attempts if not a.cold)
    starts = [a.init_ms for a in mapped.attempts if a.init_ms is not None]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{result.summary['status']}: {args.ranks} ranks, {mapped.concurrency} workers")
    print(f"whole run            {time.monotonic() - began:8.2f} s")
    print(f"map                  {mapped.wall_seconds:8.2f} s")
    print(f"ranks' own work      {mapped.work_seconds:8.2f} s in all")
    print(f"overhead             {1000 * mapped.overhead_per_rank:8.2f} ms per rank")
    print(
        f"  of it, starts      {sum(starts) / args.ranks:8.2f} ms per rank ({len(starts)} starts)"
    )
    if warm:
        print(f"  item to answer     {warm[len(warm) // 2]:8.2f} ms beyond the work, median, warm")
    print(f"driver's peak memory {peak:8.0f} MiB")


if __name__ == "__main__":
    main()
