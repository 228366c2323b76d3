"""A survey of a terabyte without its pixels: what each step of a run costs as ranks and rows grow.

    python benchmarks/terabyte.py --ranks 10240            # every step once; needs 10 GB of disk
    python benchmarks/terabyte.py --grow plot.svg          # 100 to 10,240 ranks, and how cost grows

A terabyte is 10,240 partitions of 100 MB, a rank each: 52 million rows. Nothing is inferred: the
objects that ranks leave for summarize (features, statistics, a record) are generated, with
``--width`` features a row (the default model has about 100: 24 GB of disk at 10,240 ranks). Every
step is a process of its own; its processor time and its peak of memory are those of that process.

- initialize: as many partitions of three rows, in a folder on disk
- summarize: the generated objects; reads each rank twice, the second time without its features
- local: the driver of this machine and its workers on partitions of three rows
- slurm: the job arrays of a submission (a real sbatch where there is a cluster)
- aws: the items that a Distributed Map reads, and the largest of them (an event may have 256 KB)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import avx2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

ROWS = 5113
"""Of a partition of 100 MB."""
TINY_ROWS = 3
STEPS = ("initialize", "summarize", "local", "slurm", "aws")
GROWTH = (100, 320, 1024, 3200, 10_240)
BLOCKS = 16
"""Different blocks of generated features; each rank has one of them, at a scale of its own."""


@dataclass(frozen=True)
class Cost:
    """What one step took."""

    step: str
    ranks: int
    rows: int
    wall: float
    """Seconds."""
    cpu: float
    """Seconds of processor time, children included."""
    peak_mb: float
    """Highest resident memory of the step's process, MiB."""
    note: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=ROWS, help="of a rank, in summarize")
    parser.add_argument("--width", type=int, default=32, help="features a row, in summarize")
    parser.add_argument("--steps", default=",".join(STEPS), help="of " + ", ".join(STEPS))
    parser.add_argument("--grow", type=Path, metavar="SVG", help="summarize at several sizes")
    parser.add_argument("--most", type=int, default=max(GROWTH), help="largest size of --grow")
    parser.add_argument("--folder", type=Path, help="where objects are generated")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    avx2.add_argument(parser)
    args = parser.parse_args()
    avx2.rerun(args)
    if args.one:
        print(json.dumps(vars(measure(args.one, args.folder, args))))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"load {os.getloadavg()[0]:.1f} at the start")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.grow:
            grow(Path(folder), args)
        else:
            for step in args.steps.split(","):
                show(apart(step, Path(folder), args.ranks, args))


def grow(folder: Path, args: argparse.Namespace) -> None:
    """Summarize at each size; a plot, and the straight line through it."""
    sizes = [size for size in GROWTH if size <= args.most]
    costs = []
    for size in sizes:
        costs.append(apart("summarize", folder / str(size), size, args))
        show(costs[-1])
        shutil.rmtree(folder / str(size))
    args.grow.write_text(plot(costs))
    print(f"load {os.getloadavg()[0]:.1f} at the end; plot: {args.grow}")


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Offset and slope of the line of least relative squares."""
    weight = 1.0 / np.asarray(y)
    slope, offset = np.polyfit(x, y, 1, w=weight)
    return float(offset), float(slope)


def plot(costs: Sequence[Cost]) -> str:
    """Processor time and memory against ranks, with the fits."""
    from perseid.measure.present.charts import LineChart, Series

    x = [float(cost.ranks) for cost in costs]
    series = []
    for name, y in (("processor seconds", [c.cpu for c in costs]),
                    ("peak memory, MB", [c.peak_mb for c in costs])):  # fmt: skip
        offset, slope = fit(x, y)
        print(f"{name}: {offset:.1f} + {slope:.4f} a rank")
        lines = ((name, y), (f"{name}, fit", [offset + slope * one for one in x]))
        series += [Series(n, tuple((a, b, b, b) for a, b in zip(x, values, strict=True)))
                   for n, values in lines]  # fmt: skip
    return LineChart(tuple(series), "ranks", "seconds, MB").file(720)


def show(cost: Cost) -> None:
    rows = f"{cost.rows:,} rows" if cost.rows else ""
    per = f"{1e6 * cost.cpu / cost.rows:6.2f} us a row" if cost.rows else ""
    print(f"{cost.step:11s} {cost.ranks:6d} ranks {rows:>16s} wall {cost.wall:8.2f} s  cpu "
          f"{cost.cpu:8.2f} s {per} peak {cost.peak_mb:6.0f} MB  {cost.note}")  # fmt: skip


def apart(step: str, folder: Path, ranks: int, args: argparse.Namespace) -> Cost:
    """Prepare a step here, and measure it in a process of its own."""
    folder = folder / step
    folder.mkdir(parents=True, exist_ok=True)
    if step == "summarize":
        generate(folder, ranks, args.rows, args.width)
    elif step in ("initialize", "local"):
        survey_of(folder, ranks)
    command = [sys.executable, __file__, "--one", step, "--folder", str(folder), "--ranks",
               str(ranks), "--rows", str(args.rows), "--width", str(args.width)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def measure(step: str, folder: Path, args: argparse.Namespace) -> Cost:
    """Do one step in this process."""
    work: Callable[[Path, argparse.Namespace], tuple[int, str]] = globals()[f"step_{step}"]
    began, cpu = time.perf_counter(), _cpu()
    rows, note = work(folder, args)
    wall, cpu = time.perf_counter() - began, _cpu() - cpu
    return Cost(step, args.ranks, rows, wall, cpu, _peak_mb(), note)


def step_initialize(folder: Path, args: argparse.Namespace) -> tuple[int, str]:
    from perseid.pipeline.initialize import initialize

    initialize(_request(folder))
    size = (folder / "run/items.json").stat().st_size
    return 0, f"items.json {size / 1e6:.1f} MB"


def step_summarize(folder: Path, args: argparse.Namespace) -> tuple[int, str]:
    from perseid.pipeline.summarize import summarize
    from perseid.storage import Storage

    before = sum(info.size for info in Storage(folder / "run").list("ranks"))
    summary = summarize(Storage(folder / "run"))
    note = (
        f"{args.width} features; objects {before / 1e9:.2f} GB, catalogue "
        f"{summary['catalogue_bytes'] / 1e9:.2f} GB; {summary['status']}"
    )
    return summary["rows"]["received"], note


def step_local(folder: Path, args: argparse.Namespace) -> tuple[int, str]:
    from perseid.engines.driver import start
    from perseid.engines.local import LocalEngine
    from perseid.engines.local.local_options import LocalOptions

    result = start(_request(folder), LocalEngine(LocalOptions()), lambda event: None)
    return 0, (
        f"{result.summary['status']}; {1000 * result.mapped.overhead_per_rank:.1f} ms per rank "
        f"beyond its work; {result.mapped.concurrency} workers"
    )


def step_slurm(folder: Path, args: argparse.Namespace) -> tuple[int, str]:
    from perseid.engines.slurm.slurm_commands import DEFAULT_ARRAY
    from perseid.engines.slurm.slurm_engine import pack
    from perseid.engines.slurm.submission import Submission
    from perseid.storage import Storage

    ranks = tuple(range(args.ranks))
    per_task = pack(len(ranks), DEFAULT_ARRAY)
    plan = Submission("a", ranks, per_task, 1, 1, 1769, 900.0, 2)
    plan.put(Storage(folder))
    tasks = [Submission.get(Storage(folder), "a").of_task(i) for i in range(plan.tasks)]
    assert [rank for task in tasks for rank in task] == list(ranks)
    return 0, f"{plan.tasks} tasks of up to {per_task} ranks (MaxArraySize {DEFAULT_ARRAY})"


def step_aws(folder: Path, args: argparse.Namespace) -> tuple[int, str]:
    manifest = _manifest(folder, args.ranks)
    sizes = [len(json.dumps(item)) for item in manifest.plain_items()]
    return 0, f"map input {sum(sizes) / 1e6:.1f} MB, largest item {max(sizes) / 1e3:.2f} KB of 256"


def _request(folder: Path) -> object:
    from perseid.pipeline.request import RunRequest

    names = {"data": "survey", "results": "run", "model": "tiny.onnx"}
    return RunRequest.parse({key: str(folder / name) for key, name in names.items()})


def survey_of(folder: Path, ranks: int) -> None:
    """As many partitions of three rows: copies of one."""
    from tiny import tiny_model, tiny_survey

    tiny_model(folder / "tiny.onnx")
    tiny_survey(folder / "survey", TINY_ROWS, TINY_ROWS)
    one = (folder / "survey/1.pt").read_bytes()
    for number in range(2, ranks + 1):
        (folder / f"survey/{number}.pt").write_bytes(one)


def _manifest(folder: Path, ranks: int) -> object:
    from perseid import __version__
    from perseid.pipeline.items import PartitionRef
    from perseid.pipeline.manifest import Manifest
    from perseid.pipeline.run_settings import RunSettings
    from perseid.pipeline.schema import SCHEMA

    size = 104_857_600
    refs = tuple(PartitionRef(f"100MB/{n}.pt", size, f'"{n:032x}"') for n in range(1, ranks + 1))
    place = str(folder / "run")
    return Manifest("20261122T101500Z-1f0a9c3b", time.time(), __version__, place, place, refs,
                    (1,) * ranks, RunSettings(), {}, schema=SCHEMA)  # fmt: skip


def generate(folder: Path, ranks: int, rows: int, width: int) -> None:
    """What ranks leave: a scale of a rank's own makes its features, ids and redshifts differ."""
    from perseid.pipeline import layout
    from perseid.pipeline.columns import NpzWriter, PartitionResult, Stamp, add_moments, add_result
    from perseid.science import Moments
    from perseid.storage import Storage

    store, manifest = Storage(folder / "run"), _manifest(folder, ranks)
    store.put(layout.MANIFEST, json.dumps(manifest.to_json()).encode())
    random = np.random.default_rng(1)
    blocks = [random.normal(size=(rows, width)).astype(np.float32) for _ in range(BLOCKS)]
    moments = [Moments.of(block) for block in blocks]
    redshift = random.uniform(0.01, 0.6, rows)
    errors = random.normal(0, 0.012, rows)
    label = (random.random(rows) < 0.01).astype(np.int32) * random.integers(1, 9, rows)
    label = label.astype(np.int32)
    for rank, ref in enumerate(manifest.partitions):
        scale = np.float32(1 + rank * 1e-6)
        base = moments[rank % BLOCKS]
        result = PartitionResult(
            ref.key, (redshift + np.roll(errors, rank)).astype(np.float32),
            np.zeros(rows, np.int32), np.arange(rows) + rank * rows, redshift, label,
            blocks[rank % BLOCKS] * scale,
        )  # fmt: skip
        stamp = Stamp(manifest.run_id, rank, {"embedding": width // 2, "residual": -(-width // 2)})
        place = folder / f"run/ranks/{rank}"
        place.mkdir(parents=True)
        with NpzWriter(place / "features.npz", stamp) as file:
            add_result(file, result)
        with NpzWriter(place / "moments.npz", stamp) as file:
            s = float(scale)
            add_moments(file, ref.key, Moments(base.count, base.mean * s, base.scatter * s * s))
        store.put(layout.record(rank), json.dumps(_record(manifest, rank, rows)).encode())


def _record(manifest: object, rank: int, rows: int) -> dict[str, object]:
    from perseid.pipeline.records import STAGES, RankRecord

    ref, now = manifest.partitions[rank], time.time()
    part = {"key": ref.key, "rows": rows, "bytes": ref.size}
    stages = dict.fromkeys(STAGES, 1.5)
    timeline = tuple((stage, now, now + 1.5) for stage in STAGES)
    return RankRecord(
        manifest.run_id, rank, manifest.world_size, 1, rows, 0, (part,), (), "run", ref.key, 512,
        32, 10, "cpu", "float32", "store", stages, timeline, 7.0, 200.0, 150.0, True, 838_860_800,
    ).to_json()  # fmt: skip


def _cpu() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def _peak_mb() -> float:
    from perseid.pipeline.timeline import peak_memory_mb

    return peak_memory_mb()


if __name__ == "__main__":
    main()
