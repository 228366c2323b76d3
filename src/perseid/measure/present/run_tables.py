"""The two tables of a set of runs: one row per run, and one row per partition size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from perseid.measure.cost import MB_PER_GB, Cost, cost
from perseid.measure.measured_run import GRID_TOTAL_GB, MeasuredRun, percentiles
from perseid.measure.present.text import Cell, TableColumn, TextTable, number, seconds, whole, word
from perseid.measure.prices import Prices
from perseid.plaintext import counted

RUN_COLUMNS = (
    TableColumn("data", "Data Size", names_row=True),
    TableColumn("batch", "Batch Size", names_row=True),
    TableColumn("world", "World Size", names_row=True),
    TableColumn("ranks", "Ranks received / expected"),
    TableColumn("duration", "Duration (s)"),
    TableColumn("of", "Duration of", numeric=False),
    TableColumn("p50", "Worker p50 (s)"),
    TableColumn("p90", "p90 (s)"),
    TableColumn("p99", "p99 (s)"),
    TableColumn("max", "max (s)"),
    TableColumn("transport", "Transport", numeric=False),
    TableColumn("collectives", "Collectives (s)"),
    TableColumn("memory", "Memory Used (MB)"),
    TableColumn("cost", "Cost Estimate ($)"),
    TableColumn("used", "Cost by memory used ($)"),
    TableColumn("cores", "Core-hours"),
    TableColumn("notes", "Notes", numeric=False),
)
PARTITION_COLUMNS = (
    TableColumn("partition", "Partition", names_row=True),
    TableColumn("data", "Data Size", names_row=True),
    TableColumn("batch", "Batch Size", names_row=True),
    TableColumn("world", "World Size", names_row=True),
    TableColumn("ranks", "Ranks received / expected"),
    TableColumn("requests", "Requests"),
    TableColumn("p50", "Duration (s)"),
    TableColumn("p90", "p90 (s)"),
    TableColumn("p99", "p99 (s)"),
    TableColumn("max", "max (s)"),
    TableColumn("whole", "Whole run (s)"),
    TableColumn("memory", "Memory"),
    TableColumn("cost", "Cost ($)"),
    TableColumn("used", "Cost by memory used ($)"),
    TableColumn("runs", "Runs"),
)
RANKS_NOTE = (
    "Ranks: results received / ranks expected; a run with fewer results is INCOMPLETE, and its "
    "other figures cover the received ranks only."
)
USED_NOTE = (
    "Cost by memory used: the course reports' variant, sum of Duration x memory USED x 0.00001667 "
    "$ per GB-s. AWS does not bill it: configured memory is billed."
)


def tables(
    runs: Sequence[MeasuredRun], prices: Prices | None = None
) -> tuple[TextTable, TextTable]:
    """Make the table of runs and the table of partition sizes from the same runs.

    Footnotes that both tables need appear beneath the second one only.
    """
    prices = prices or Prices()
    first, second = run_table(runs, prices), partition_table(runs, prices)
    own = tuple(note for note in first.footnotes if note not in second.footnotes)
    return replace(first, footnotes=own), second


def run_table(runs: Sequence[MeasuredRun], prices: Prices) -> TextTable:
    """Make the table with one row per run."""
    rows = tuple(_run_row(run, prices) for run in runs)
    return TextTable("Runs", RUN_COLUMNS, rows, _run_notes(runs, prices))


def partition_table(runs: Sequence[MeasuredRun], prices: Prices) -> TextTable:
    """Make the table with one row per partition size, data size, world size and batch size."""
    groups: dict[tuple[str | None, str | None, int | None, int | None], list[MeasuredRun]] = {}
    for run in runs:
        key = (run.partition, run.data, run.expected, run.batch_size)
        groups.setdefault(key, []).append(run)
    rows = tuple(_partition_row(group, prices) for group in groups.values())
    return TextTable("Partition sizes", PARTITION_COLUMNS, rows, _partition_notes(runs, prices))


def bill(run: MeasuredRun, prices: Prices) -> Cost | None:
    """Cost of a run as billed; None if no REPORT says what was configured."""
    return None if run.usage is None or not run.reports else cost(run.usage, prices)


def _run_row(run: MeasuredRun, prices: Prices) -> Mapping[str, Cell]:
    span = run.duration
    return {
        "data": _data(run),
        "batch": whole(run.batch_size),
        "world": whole(run.expected),
        "ranks": _ranks([run]),
        "duration": seconds(span.seconds if span else None),
        "of": word(span.what if span else None),
        "transport": word(run.transport),
        "collectives": seconds(run.collectives_seconds),
        "memory": whole(run.max_memory_mb),
        "cores": number(run.core_hours),
        "notes": word(_notes(run)),
        **_worker_cells(run.durations),
        **_cost_cells([run], prices),
    }


def _partition_row(group: Sequence[MeasuredRun], prices: Prices) -> Mapping[str, Cell]:
    durations = [value for run in group for value in run.durations]
    wholes = [run.whole.seconds for run in group if run.whole is not None]
    # The highest, not the median: it decides which memory a function needs.
    memory = max((run.max_memory_mb or 0.0 for run in group), default=0.0)
    requests = [len(run.reports) for run in group if run.reports]
    return {
        "partition": word(group[0].partition),
        "data": _data(group[0]),
        "batch": whole(group[0].batch_size),
        "world": whole(group[0].expected),
        "ranks": _ranks(group),
        "requests": whole(median(requests)) if requests else whole(None),
        "whole": seconds(median(wholes) if wholes else None),
        "memory": Cell(f"{memory / MB_PER_GB:.1f}GB", memory / MB_PER_GB) if memory else word(None),
        "runs": whole(len(group)),
        **_worker_cells(durations),
        **_cost_cells(group, prices),
    }


def _data(run: MeasuredRun) -> Cell:
    return word(f"{GRID_TOTAL_GB:g}GB" if run.data == "total" else run.data)


def _worker_cells(durations: Sequence[float]) -> dict[str, Cell]:
    names = ("p50", "p90", "p99", "max")
    return {n: seconds(v) for n, v in zip(names, percentiles(durations), strict=True)}


def _cost_cells(group: Sequence[MeasuredRun], prices: Prices) -> dict[str, Cell]:
    """Cells of both costs: medians over the runs of a group."""
    bills = [found for run in group if (found := bill(run, prices)) is not None]
    if not bills:
        return {"cost": number(None), "used": number(None)}
    return {
        "cost": number(median(b.total for b in bills)),
        "used": number(median(b.memory_used_variant for b in bills)),
    }


def _ranks(group: Sequence[MeasuredRun]) -> Cell:
    """Ranks received and expected, like ``8/130``; for a group, those of the run that lost most."""
    # The ratio is 0 if the expected number is unknown, so such a run is shown.
    worst = min(group, key=lambda run: run.received / (run.expected or math.inf))
    expected = "?" if worst.expected is None else str(worst.expected)
    text = f"{worst.received}/{expected}"
    # The same text for programs: two numbers in one cell have no single value.
    return Cell(text, text)


def _notes(run: MeasuredRun) -> str:
    state = {True: "complete", False: "INCOMPLETE", None: "completeness not known"}
    parts = [state[run.is_complete], *run.notes]
    if run.partition:
        parts.append(f"partitions {run.partition}")
    if run.unreported:
        parts.append(f"{counted(run.unreported, 'invocation')} without REPORT")
    parts.append(f"{run.function or 'function not named'}: {_tail(run.name)}")
    return "; ".join(parts)


def _tail(name: str, parts: int = 3) -> str:
    """The last `parts` parts of a path: enough to recognize a run, short enough for a table."""
    pieces = name.rstrip("/").split("/")
    return "/".join(pieces[-parts:])


def _run_notes(runs: Sequence[MeasuredRun], prices: Prices) -> tuple[str, ...]:
    return (
        "Duration: the most complete time that is known, named in the next column. Whole run: from "
        "the start of initialize to the end of summarize; map: from the first start of a worker to "
        "the last end; slowest worker: the maximum at the right; whole execution and map state: "
        "from the history of Step Functions.",
        _worker_note(runs),
        "Memory Used: the highest Max Memory Used of all invocations.",
        *_transport_notes(runs),
        *_core_notes(runs),
        RANKS_NOTE,
        *_expected_notes(runs),
        *_cost_notes(runs, prices),
    )


def _transport_notes(runs: Iterable[MeasuredRun]) -> list[str]:
    if not any(run.collectives_seconds for run in runs):
        return []
    return [
        "Transport: how the ranks' statistics were exchanged. Collectives: seconds of the slowest "
        "rank in them, waiting for the others included."
    ]


def _core_notes(runs: Iterable[MeasuredRun]) -> list[str]:
    if not any(run.core_hours for run in runs):
        return []
    return [
        "Core-hours: threads of a worker x the time of every attempt, including starts and failed "
        "attempts; a cluster also accounts for the time in which its tasks are idle."
    ]


def _partition_notes(runs: Sequence[MeasuredRun], prices: Prices) -> tuple[str, ...]:
    return (
        "Duration: median (p50) over all workers of all runs of the row. " + _worker_note(runs),
        "Whole run, Requests, Cost: median over the runs. Memory: the highest of all invocations. "
        "Ranks: of the run that lost most.",
        RANKS_NOTE,
        *_expected_notes(runs),
        *_cost_notes(runs, prices),
    )


def _worker_note(runs: Sequence[MeasuredRun]) -> str:
    kinds = sorted({run.duration_of for run in runs})
    return (
        f"Worker p50, p90, p99, max: {', or '.join(kinds)}, of every invocation, including failed "
        "ones and retries; no value is left out."
    )


def _expected_notes(runs: Iterable[MeasuredRun]) -> list[str]:
    sources = sorted({run.expected_from for run in runs if run.expected_from})
    return [f"Expected ranks: from {', or '.join(sources)}."] if sources else []


def _cost_notes(runs: Sequence[MeasuredRun], prices: Prices) -> list[str]:
    notes = []
    if any(run.reports for run in runs):
        notes += [
            "Cost: as billed, configured memory x billed duration of every invocation, requests, "
            "state transitions, S3, logs; for a local run, what the same invocations would have "
            f"cost on AWS if they had taken as long there; {prices.stamp()}, no free tier.",
            USED_NOTE,
        ]
    if any(not run.reports for run in runs):
        notes.append(
            "No cost or memory if the source has no REPORT lines: the records of the existing "
            "system contain model time only, and their total_cpu_memory is a sum, not a peak."
        )
    return notes
