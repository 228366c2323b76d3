"""Run folders made by the real steps; only the model's answers are drawn from a generator.

`initialize` and `summarize` are the real ones, records, predictions and features are written by
the types that workers use. So a run of 517 ranks takes seconds, and its numbers are known.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perseid.errors import RunIncompleteError
from perseid.measure.report_line import Report, format_report
from perseid.pipeline import layout
from perseid.pipeline.columns import PartitionResult, Stamp
from perseid.pipeline.initialize import initialize
from perseid.pipeline.items import WorkItem
from perseid.pipeline.rankfiles import RankFiles
from perseid.pipeline.records import RankRecord
from perseid.pipeline.request import RunRequest
from perseid.pipeline.summarize import summarize
from perseid.storage import Storage
from perseid.survey import Cutouts, read_cutouts, write_cutouts
from perseid.survey.kinds import ANOMALY_KINDS

CAI = Path(__file__).parents[2] / "data" / "cai"
BEGAN = 1_790_000_000.0
SIMULATED = {str(label): name for label, name in ANOMALY_KINDS.items()}


@dataclass
class MadeRun:
    """A run folder and what was put into it."""

    path: Path
    data: Path
    reports: list[Report] = field(default_factory=list)
    rows: int = 0


@pytest.fixture(scope="session")
def cai() -> Path:
    return CAI


@pytest.fixture(scope="session")
def run_builder() -> Callable[..., MadeRun]:
    """For fixtures that make their runs once for all tests of a module."""
    return build_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., MadeRun]:
    def make(**options: Any) -> MadeRun:
        return build_run(tmp_path, **options)

    return make


def build_run(
    home: Path,
    *,
    ranks: int = 4,
    partitions: int | None = None,
    rows: int = 12,
    labels: bool = True,
    z_spec: bool = True,
    ids: bool = True,
    lost: tuple[int, ...] = (),
    finish: bool = True,
    name: str = "run",
    retried: tuple[int, ...] = (),
    seed: int = 7,
    kinds: Mapping[str, str] | None = SIMULATED,
) -> MadeRun:
    rng = np.random.default_rng(seed)
    data = home / "data"
    if not data.exists():
        data.mkdir()
        if kinds:
            (data / "survey.json").write_text(json.dumps({"anomaly_kinds": kinds}))
        for number in range(1, (partitions or ranks) + 1):
            cutouts = draw_cutouts(rng, rows, number, labels=labels, z_spec=z_spec, ids=ids)
            write_cutouts(cutouts, data / f"{number}.pt")
            if labels or ids:  # .pt holds images, magnitudes, redshift: the rest is in .npz
                (data / f"{number}.pt").unlink()
                write_cutouts(cutouts, data / f"{number}.npz")
    request = RunRequest.parse(
        {"data": str(data), "results": str(home / name), "world_size": ranks, "batch_size": 512}
    )
    begun = initialize(request)
    made = MadeRun(home / name, data)
    store = Storage(home / name)
    for item in begun.items:
        if item.rank in lost:
            store.put(layout.log(item.rank), _lost_log(item, made).encode())
            continue
        _work(item, store, rng, made, home, twice=item.rank in retried)
    if finish:
        with contextlib.suppress(RunIncompleteError):
            summarize(store, map_seconds=12.5)
    return made


def draw_cutouts(
    rng: np.random.Generator, rows: int, number: int, *, labels: bool, z_spec: bool, ids: bool
) -> Cutouts:
    """Round blobs on noise; one in ten labeled objects is something else."""
    y, x = np.mgrid[:32, :32] - 15.5
    flux = rng.lognormal(3.0, 0.6, (rows, 1, 1, 1)) * np.array([0.2, 0.6, 1, 1.3, 1.5]).reshape(
        1, 5, 1, 1
    )
    width = rng.uniform(1.5, 4, (rows, 1, 1, 1))
    blob = np.exp(-(x**2 + (y * rng.uniform(0.6, 1, (rows, 1, 1, 1))) ** 2) / 2 / width**2)
    images = flux * blob / width**2 + rng.normal(0, 0.03, (rows, 5, 32, 32))
    label = np.where(rng.random(rows) < 0.15, rng.integers(1, 10, rows), 0).astype(np.int32)
    if rows > 2:
        label[0], label[1] = 1, 0
    images[label > 0, :, 10:12] += 3.0
    return Cutouts(
        images.astype(np.float32),
        rng.normal(18, 1, (rows, 5)),
        rng.gamma(4, 0.03, rows) if z_spec else None,
        (np.arange(rows) + 100_000 * number).astype(np.int64) if ids else None,
        label if labels else None,
    )


def _work(
    item: WorkItem,
    store: Storage,
    rng: np.random.Generator,
    made: MadeRun,
    folder: Path,
    *,
    twice: bool,
) -> None:
    scratch = folder / f"scratch-{item.rank}"
    scratch.mkdir(exist_ok=True)
    done, total = [], 0
    stamp = Stamp(item.run_id, item.rank, {"embedding": 6} if item.partitions else {})
    with RankFiles(scratch, stamp) as files:
        for ref in item.partitions:
            cutouts = read_cutouts(f"{item.data_url}/{ref.key}")
            files.add(_result(ref.key, cutouts, rng))
            total += len(cutouts)
            done.append({"key": ref.key, "rows": len(cutouts), "bytes": ref.size})
    files.publish(store)
    made.rows += total
    start = BEGAN + 0.8 * (item.rank // 8) + rng.uniform(0, 0.1)
    took = 0.05 * total + rng.gamma(3, 0.1)
    attempt = 2 if twice else 1
    record = _record(item, done, total, start, took, attempt)
    store.put(layout.record(item.rank), json.dumps(record.to_json()).encode())
    reports = [_report(item, attempt, took, cold=item.rank < 8)]
    if twice:
        failed = Report(
            f"{item.run_id}-{item.rank}-1", 900.0, 1100, 1769, 411, 199.5, status="timeout"
        )
        reports.insert(0, failed)
    made.reports += reports
    lines = [
        f"START RequestId: {r.request_id} Version: $LATEST\n{format_report(r)}" for r in reports
    ]
    store.put(layout.log(item.rank), ("\n".join(lines) + "\n").encode())


def _lost_log(item: WorkItem, made: MadeRun) -> str:
    report = Report(
        f"{item.run_id}-{item.rank}-1",
        1500.0,
        1501,
        1769,
        1769,
        None,
        status="error",
        error_type="Runtime.OutOfMemory",
    )
    made.reports.append(report)
    return f"START RequestId: {report.request_id} Version: $LATEST\n{format_report(report)}\n"


def _result(key: str, cutouts: Cutouts, rng: np.random.Generator) -> PartitionResult:
    rows = len(cutouts)
    truth = cutouts.redshift if cutouts.redshift is not None else np.full(rows, 0.1)
    features = rng.normal(0, 1, (rows, 6))
    if cutouts.label is not None:
        features[cutouts.label > 0] += 4.0
    return PartitionResult(
        key=key,
        z_pred=(truth + rng.normal(0, 0.012, rows)).astype(np.float32),
        flag=np.zeros(rows, np.int32),
        object_id=cutouts.object_id,
        z_spec=None if cutouts.redshift is None else np.asarray(cutouts.redshift, np.float64),
        label=cutouts.label,
        features=features.astype(np.float32),
    )


def _report(item: WorkItem, attempt: int, took: float, *, cold: bool) -> Report:
    init = 612.25 if cold else None
    duration = round(1000 * took, 2)
    billed = -(-(duration + (init or 0)) // 1)
    return Report(
        f"{item.run_id}-{item.rank}-{attempt}", duration, billed, 1769, 300 + item.rank % 50, init
    )


def _record(
    item: WorkItem, done: list[dict[str, Any]], rows: int, start: float, took: float, attempt: int
) -> RankRecord:
    stages = {
        "init": 0.6,
        "rendezvous": 0.0,
        "fetch": 0.3 * took,
        "decode": 0.1 * took,
        "inference": 0.8 * took,
        "collectives": 0.0,
        "publish": 0.05 * took,
        "total": took,
    }
    marks = (
        ("init", start - 0.6, start),
        ("fetch", start, start + 0.3 * took),
        ("decode", start + 0.2 * took, start + 0.35 * took),
        ("inference", start + 0.1 * took, start + 0.9 * took),
        ("publish", start + 0.92 * took, start + 0.97 * took),
    )
    return RankRecord(
        run_id=item.run_id,
        rank=item.rank,
        world_size=item.world_size,
        attempt=attempt,
        rows=rows,
        rows_flagged=0,
        partitions=tuple(done),
        failed_partitions=(),
        result_path=item.results_url,
        data_path=[p["key"] for p in done],
        batch_size=512,
        micro_batch=64,
        num_batches=1 if rows else 0,
        device="cpu",
        precision="float32",
        bands=("u", "g", "r", "i", "z"),
        transport="store",
        stages=stages,
        timeline=marks if rows else marks[:1],
        model_seconds=0.8 * took,
        allocated_mb=13.9 * rows,
        peak_memory_mb=300.0,
        cold_start=True,
        pixel_bits=rows * 164_000,
        s3={"num_requests": float(2 * len(done))},
    )
