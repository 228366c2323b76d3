"""Estimate the time, memory and cost of a run by a simple model, which is described here.

A rank takes the start of its worker (if the process is new), a fixed time per partition, and its
rows divided by the rate. Each rank goes to the first free worker. On Lambda, all ranks would start
at once, each in its own cold environment.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from perseid.engines.local.local_options import LocalOptions
from perseid.engines.worker_speed import refuse_beyond
from perseid.measure.calibration import Pace
from perseid.measure.cost import Cost, Usage, cost, map_transitions
from perseid.measure.prices import Prices
from perseid.measure.report_line import Report
from perseid.pipeline.checks import RowCount
from perseid.pipeline.manifest import Manifest
from perseid.plaintext import counted, html_table

RANK_SECONDS = 0.01
"""Fixed time per rank besides reading and the model, in seconds (on a local disk)."""
PARTITION_SECONDS = 0.01
"""Time to open a partition, in seconds (on a local disk)."""
OBJECTS_A_RANK = 4
"""PUT requests per rank: predictions, features, moments, record. Summarize GETs each of them."""
REQUESTS_A_PARTITION = 5
"""GET requests per partition: its directory, then blocks of pixels."""


@dataclass(frozen=True)
class RunPlan:
    """The estimate for a run."""

    manifest: Manifest
    rows: int
    """Number of rows in all partitions, according to their headers."""
    unreadable: tuple[RowCount, ...]
    """Partitions that cannot be read, each with the reason."""
    rank_seconds: tuple[float, ...]
    """For each rank, the time of its work in seconds, without the start of its worker."""
    workers: int
    map_seconds: float
    """Time for all ranks on this machine, in seconds."""
    lambda_seconds: float
    """Time for all ranks at once on Lambda, in seconds: the longest rank, started cold, at this
    machine's pace."""
    worker_mb: float
    """Peak memory of one worker, in MiB."""
    cost: Cost
    """Cost on AWS with these durations and the configured memory."""
    pace: Pace
    """Speed of a single worker, measured or given."""
    options: LocalOptions
    """Options of the workers."""

    @property
    def price_stamp(self) -> str:
        """Region and date of the prices that `cost` is computed with."""
        return Prices().stamp()

    @property
    def total_mb(self) -> float:
        """Peak memory of all workers together, in MiB."""
        return self.worker_mb * self.workers

    def _repr_html_(self) -> str:
        rows = [("ranks", f"{len(self.rank_seconds):,}"), ("workers", f"{self.workers:,}"),
                ("seconds on this machine", f"{self.map_seconds:.1f}"),
                ("seconds on Lambda", f"{self.lambda_seconds:.1f}"),
                ("memory of a worker (MB)", f"{self.worker_mb:,.0f}"),
                ("cost on AWS (USD)", f"{self.cost.total:.4f}")]  # fmt: skip
        return html_table(("plan", counted(self.rows, "row")), rows)

    def to_json(self) -> dict[str, object]:
        """The plan as JSON values, for ``--dry-run --json``."""
        return {
            "data_url": self.manifest.data_url,
            "results_url": self.manifest.results_url,
            "partitions": [ref.key for ref in self.manifest.partitions],
            "assignment": list(self.manifest.assignment),
            "rows": self.rows,
            "unreadable": {part.key: part.error for part in self.unreadable},
            "workers": self.workers,
            "map_seconds": self.map_seconds,
            "lambda_seconds": self.lambda_seconds,
            "worker_mb": self.worker_mb,
            "total_mb": self.total_mb,
            "cost_usd": self.cost.total,
            "cost_lines": {line.name: line.usd for line in self.cost.lines},
            "warnings": list(self.manifest.warnings),
        }


def make_plan(
    manifest: Manifest, options: LocalOptions, pace: Pace, counts: Sequence[RowCount]
) -> RunPlan:
    """Estimate times, memory and cost of a run.

    Parameters
    ----------
    manifest
        The manifest from `perseid.pipeline.initialize.plan`.
    options
        Options of the local engine.
    pace
        Pace of a single worker. Several workers at once slow each other down somewhat, which is
        not modeled.
    counts
        The counts from `perseid.pipeline.checks.count_rows`.

    Raises
    ------
    BadInputError
        One worker needs more memory than a rank may take.
    """
    refuse_beyond(pace, options.memory_mb)
    found = {count.key: count.rows for count in counts}
    sizes = [[ref.size for ref in manifest.of_rank(rank)] for rank in range(manifest.world_size)]
    rows = [
        sum(found[ref.key] for ref in manifest.of_rank(rank)) for rank in range(manifest.world_size)
    ]
    seconds = tuple(
        RANK_SECONDS + PARTITION_SECONDS * len(rank) + n / pace.rows_per_second
        for n, rank in zip(rows, sizes, strict=True)
    )
    workers = min(options.concurrency, manifest.world_size)
    # Ranks that exchange messages must all run at once.
    workers = manifest.world_size if manifest.talks else workers
    # Features are kept until the rank is done: about 100 float32 columns of each row.
    features = max(rows, default=0) * 400 / 2**20
    return RunPlan(
        manifest=manifest,
        rows=sum(rows),
        unreadable=tuple(count for count in counts if count.error),
        rank_seconds=seconds,
        workers=workers,
        map_seconds=makespan(seconds, workers, pace.ready_seconds),
        lambda_seconds=pace.ready_seconds + max(seconds),
        worker_mb=pace.peak_mb + features,
        cost=cost(_usage(manifest, seconds, options.memory_mb, pace)),
        pace=pace,
        options=options,
    )


def makespan(seconds: Sequence[float], workers: int, start: float) -> float:
    """When the last of these jobs ends, if the first free worker takes each in order."""
    # Each worker can begin once it has loaded the model.
    free = [start] * workers
    for job in seconds:
        heapq.heapreplace(free, free[0] + job)
    return max(free)


def _usage(manifest: Manifest, seconds: Sequence[float], memory_mb: int, pace: Pace) -> Usage:
    init = pace.ready_seconds * 1000
    reports = [
        Report("", s * 1000, float(round(s * 1000 + init)), memory_mb, pace.peak_mb, init)
        for s in seconds
    ]
    ranks, files = manifest.world_size, len(manifest.partitions)
    return Usage(
        reports=reports,
        transitions=map_transitions(ranks, ranks),
        s3_gets=files * REQUESTS_A_PARTITION + ranks * OBJECTS_A_RANK,
        # 6 objects of the run itself; S3 bills a LIST request, of 1,000 keys each, like a PUT.
        s3_puts=ranks * OBJECTS_A_RANK + 6 + -(-files // 1000),
        stored_bytes=float(sum(ref.size for ref in manifest.partitions)),
        # Storage is counted for the time of the run only.
        stored_seconds=pace.ready_seconds + max(seconds),
        # START, END and REPORT of a rank take about this much.
        log_bytes=500.0 * ranks,
    )
