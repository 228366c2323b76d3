"""Measure a distributed map over a survey with many partitions, and its bill."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perseid.aws.executions import Executions, Started
from perseid.aws.observe.calls import Calls
from perseid.aws.observe.execution_progress import MapProgress
from perseid.aws.prove.functions import Found
from perseid.aws.prove.proof import Value
from perseid.aws.session import aws_errors
from perseid.aws.stack_resources import StackResources
from perseid.errors import RunInterruptedError
from perseid.measure.cost import Cost, billed_gb_seconds, cost
from perseid.measure.measured_run import MeasuredRun, percentiles
from perseid.measure.sources.load import load_runs
from perseid.pipeline.request import RunRequest
from perseid.survey.simulation.simulate import simulate

DATA, RUN = "prove/data", "prove/run"
SEED = 7
COPIERS = 16
WATCH_SECONDS = 3600.0
Tell = Callable[[str], None]


@dataclass(frozen=True)
class MapSize:
    """Size of the survey that is mapped."""

    ranks: int = 517
    """Number of partitions, which is also the number of ranks."""
    distinct: int = 8
    """Number of simulated partitions; the others are copies made inside S3."""
    rows: int = 1278
    """Rows of each partition, which make up 25 MB of pixels."""


def put_survey(s3: Any, bucket: str, size: MapSize, tell: Tell) -> None:
    """Simulate a few partitions, upload them, and copy them inside the bucket."""
    distinct = min(size.distinct, size.ranks)
    tell(f"simulating and uploading {distinct} partitions of {size.rows} rows")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "survey"
        simulate(place, distinct * size.rows, SEED, rows_per_file=size.rows)
        for number in range(1, distinct + 1):
            with aws_errors(), (place / f"{number}.pt").open("rb") as body:
                s3.put_object(Bucket=bucket, Key=f"{DATA}/{number}.pt", Body=body)
    tell(f"copying them inside S3 until there are {size.ranks}")

    def copy(number: int) -> None:
        source = f"{DATA}/{1 + (number - 1) % distinct}.pt"
        s3.copy_object(
            Bucket=bucket, Key=f"{DATA}/{number}.pt", CopySource={"Bucket": bucket, "Key": source}
        )

    with aws_errors(), ThreadPoolExecutor(COPIERS) as pool:
        list(pool.map(copy, range(distinct + 1, size.ranks + 1)))


def run_map(
    calls: Calls, place: StackResources, size: MapSize, most_usd: float, tell: Tell
) -> tuple[Found, Found]:
    """Run the default model over the survey; returns measurements of the map and its bill.

    Raises `RunInterruptedError` if its workers have cost `most_usd`, after stopping it.
    """
    executions = Executions(calls, place)
    bucket = f"s3://{place.bucket}"
    request = {"data": f"{bucket}/{DATA}", "results": f"{bucket}/{RUN}", "retries": 0}
    started = executions.start(RunRequest.parse(request))

    def look(now: MapProgress) -> None:
        if now.usd + now.usd_running > most_usd and not now.ended:
            executions.stop(started)
            raise RunInterruptedError(f"stopped: its workers have cost about {most_usd:.3f} USD")

    executions.watch(started, look, seconds=WATCH_SECONDS, note=tell)
    return _found(executions, started)


def _found(executions: Executions, started: Started) -> tuple[Found, Found]:
    result = executions.finish(started)
    [run] = load_runs([started.results_url])
    assert run.usage is not None
    bill = cost(run.usage)
    return _map(run, bill, result.mapped.concurrency), _bill(run, bill)


def _map(run: MeasuredRun, bill: Cost, at_once: int) -> Found:
    p50, p90, p99, most = percentiles(run.durations)
    whole, mapped = run.whole, run.map
    values: dict[str, Value] = {
        "ranks": run.expected,
        "received": run.received,
        "rows": run.rows,
        "whole_seconds": whole.seconds if whole else None,
        "map_seconds": mapped.seconds if mapped else None,
        "worker_seconds": {"p50": p50, "p90": p90, "p99": p99, "max": most},
        "cold_starts": sum(report.cold for report in run.reports),
        "at_once": at_once,
        "max_memory_mb": run.max_memory_mb,
        "gigabits_per_second": dict(run.throughput()),
        "refused_calls": run.usage.refused if run.usage else None,
    }
    took = f"{mapped.seconds:.1f} s" if mapped else "an unknown time"
    sentence = (
        f"{run.received} of {run.expected} ranks, {run.rows or 0:,} rows: the map took {took}, a "
        f"worker {p50:.2f} s (p50) to {most:.2f} s, {at_once} at once"
    )
    return Found(sentence, values, bill.total)


def _bill(run: MeasuredRun, bill: Cost) -> Found:
    billed = sum(report.billed_ms for report in run.reports)
    handled = sum(report.duration_ms for report in run.reports)
    init = sum(report.init_ms or 0.0 for report in run.reports)
    lines: Mapping[str, Value] = {line.name: round(line.usd, 9) for line in bill.lines}
    values: dict[str, Value] = {
        "invocations": len(run.reports),
        "unreported": run.unreported,
        "billed_ms": billed,
        "duration_ms": round(handled, 2),
        "init_ms": round(init, 2),
        "billed_beyond_both_ms": round(billed - handled - init, 2),
        "billed_gb_seconds": round(billed_gb_seconds(run.reports), 3),
        "expected_usd": lines,
        "expected_total_usd": round(bill.total, 6),
    }
    each = (billed - handled - init) / max(1, len(run.reports))
    sentence = (
        f"REPORT lines of {len(run.reports)} invocations bill {billed / 1e3:,.1f} s, "
        f"{each:+.2f} ms per invocation beyond handler and init; perseid expects {bill.total:.4f} "
        "USD for the run. AWS's own bill comes a day later: Cost Explorer has it by the tag "
        "perseid:stack"
    )
    return Found(sentence, values, 0.0)
