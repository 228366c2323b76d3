"""The outcome of a run in a few lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from perseid.api.progress_display import duration
from perseid.api.terminal import width
from perseid.pipeline import layout
from perseid.pipeline.run_state import RunResult
from perseid.pipeline.run_summary import (
    AnomalySummary,
    ClassificationSummary,
    DistributionSummary,
    RedshiftSummary,
    RunSummary,
)
from perseid.plaintext import counted, option
from perseid.storage import Storage

NAMED = 20
"""How many missing ranks and partitions are listed."""


def outcome_lines(result: RunResult, store: Storage) -> Iterator[str]:
    """The outcome of the run: results, times, cost, and the next command."""
    summary = result.summary
    yield _head(summary)
    yield from _missing(result)
    yield from _redshift(summary.get("redshift"))
    yield from _classes(summary.get("classification"))
    yield from _distributions(summary.get("distributions"))
    yield from _anomalies(summary.get("anomaly"))
    yield _work(result)
    yield from (f"note: {warning}" for warning in summary.get("warnings", ()))
    yield from result.mapped.notes
    yield ""
    yield _table(store)
    if result.manifest.script is None:
        yield f"catalogue  {store.where(layout.CATALOGUE)}"
    yield f"summary    {store.where(layout.SUMMARY)}"
    yield f"next       {_next(result, store)}"


def _next(result: RunResult, store: Storage) -> str:
    if not result.incomplete:
        return f"perseid report {store.where()}"
    if result.summary["ranks"]["missing"]:
        return f"perseid resume {store.where()}"
    # No rank is missing, so resuming would only fail on the same files again.
    again = option("replace", True)
    return f"fix or remove these partitions, then start a new run ({again} removes this one)"


def _head(summary: RunSummary) -> str:
    ranks, parts, rows = summary["ranks"], summary["partitions"], summary["rows"]
    text = (
        f"{summary['status']}: {ranks['received']} of {ranks['expected']} ranks, "
        f"{parts['received']} of {parts['expected']} partitions, "
        f"{counted(rows['received'], 'object')}"
    )
    if rows.get("flagged"):
        text += f" ({rows['flagged']:,} of them without a prediction)"
    engine = summary.get("engine")
    resumed = engine is not None and engine.get("drivers", 1) > 1
    since = "since it began" if resumed else "in all"
    return f"{text}, {duration(summary['timing']['total'])} {since}"


def _missing(result: RunResult) -> Iterator[str]:
    """One line per missing rank, then one line per missing partition of the other ranks."""
    lost = {entry["rank"]: entry["reason"] for entry in result.summary["ranks"]["missing"]}
    of_lost = {ref.key for rank in lost for ref in result.manifest.of_rank(rank)}
    lines = [f"rank {rank} ({_keys(result, rank)}): {lost[rank]}" for rank in sorted(lost)]
    lines += [
        f"{entry['key']}: {entry['reason']}"
        for entry in result.summary["partitions"]["missing"]
        if entry["key"] not in of_lost
    ]
    yield from (f"missing    {line}" for line in lines[:NAMED])
    if len(lines) > NAMED:
        yield f"missing    and {len(lines) - NAMED} more: {layout.SUMMARY} names all"


def _keys(result: RunResult, rank: int) -> str:
    keys = [ref.key for ref in result.manifest.of_rank(rank)]
    shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    return shown or "no data"


def _redshift(found: RedshiftSummary | None) -> Iterator[str]:
    if not found:
        return
    named = {
        "MAE": found.get("mae"),
        "bias": found.get("bias"),
        "NMAD": found.get("nmad"),
        "R2": found.get("r2"),
    }
    words = [f"{name} {value:.4g}" for name, value in named.items() if value is not None]
    outliers = found.get("outliers")
    if outliers is not None:
        words.append(f"{outliers:.2%} outliers (|dz| > {found['outlier_threshold']:g})")
    yield f"redshift   {' · '.join(words)} · {counted(found['n'], 'object')} with a known redshift"


def _classes(found: ClassificationSummary | None) -> Iterator[str]:
    if found and found["accuracy"] is not None:
        error = found["calibration_error"]
        words = [f"accuracy {found['accuracy']:.2%}"]
        words += [] if error is None else [f"calibration error {error:.2%}"]
        yield f"classes    {' · '.join(words)} · {found['n']:,} labeled objects"


def _distributions(found: DistributionSummary | None) -> Iterator[str]:
    if found and found["crps"] is not None:
        words = [f"CRPS {found['crps']:.4g}"]
        words += [f"{share:.1%} inside {float(level):.0%} intervals"
                  for level, share in found["coverage"].items()]  # fmt: skip
        yield (
            f"PDFs       {' · '.join(words)} · {counted(found['n'], 'object')} with a known "
            "redshift"
        )


def _anomalies(found: AnomalySummary | None) -> Iterator[str]:
    for entry in found["detection"] if found else ():
        area, precision = entry.get("roc_auc"), entry.get("average_precision")
        if entry["kind"] == "all" and area is not None and precision is not None:
            yield (
                f"anomalies  ROC AUC {area:.3f} · average precision "
                f"{precision:.3f} · {entry['n']:,} labeled ones"
            )


def _work(result: RunResult) -> str:
    mapped = result.mapped
    if not mapped.attempts:
        return "workers    none: no rank was missing"
    ranks = len({attempt.rank for attempt in mapped.attempts})
    cold = sum(attempt.cold for attempt in mapped.attempts)
    extra = len(mapped.attempts) - ranks
    beyond = f"{mapped.overhead_per_rank * 1000:.1f} ms per rank beyond its own work"
    return (
        f"workers    {ranks} {_plural('rank', ranks)} in {duration(mapped.wall_seconds)}, "
        f"{mapped.concurrency} at once, {cold} cold {_plural('start', cold)}, {extra} further "
        f"{_plural('attempt', extra)}; {beyond}"
    )


def _plural(word: str, number: int) -> str:
    return word if number == 1 else word + "s"


def _table(store: Storage) -> str:
    """The table of `perseid table` with this run as its only row, without the footnotes."""
    from perseid.measure.present.run_tables import run_table
    from perseid.measure.prices import Prices
    from perseid.measure.sources.load import load_runs

    table = run_table(load_runs([store.where()]), Prices())
    columns = tuple(column for column in table.columns if column.key != "notes")
    return (
        replace(table, title="", columns=columns, footnotes=()).render("text", width()).strip("\n")
        + "\n"
    )
