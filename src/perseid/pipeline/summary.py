"""The numbers in ``summary.json``, each with its definition."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from perseid.pipeline.manifest import Manifest
from perseid.pipeline.records import STAGES, STORE
from perseid.pipeline.run_summary import Completeness, Timing
from perseid.pipeline.stored import Records

THROUGHPUT = {
    "sum_of_workers_bps": "sum over workers of bits of images and magnitudes / model time",
    "map_bps": "all bits / time from the first worker's start to the last one's end",
    "execution_bps": "all bits / time of the whole run, from initialize to the summary",
}
"""The three definitions of throughput in the published figures."""
NAMED = 10
"""Number of ranks and partitions that an error message names; the summary names all."""


def completeness(
    manifest: Manifest,
    records: Records,
    missing: Mapping[int, str],
    mixed: Mapping[int, str],
) -> Completeness:
    """Status of the run, and what was expected and received: ranks, partitions, rows.

    `mixed` are ranks that used another model than the run began with, because the user allowed it.
    A run with such ranks is never complete.
    """
    lost = {
        ref.key: f"rank {rank}: {reason}"
        for rank, reason in sorted(missing.items())
        for ref in manifest.of_rank(rank)
    }
    for record in records.values():
        lost |= dict(record.failed)
    rows = sum(record.rows for record in records.values())
    expected = len(manifest.partitions)
    return {
        "status": "incomplete" if missing or lost else "mixed" if mixed else "complete",
        "ranks": {
            "expected": manifest.world_size,
            "received": len(records),
            "missing": [{"rank": r, "reason": missing[r]} for r in sorted(missing)],
        },
        "partitions": {
            "expected": expected,
            "received": expected - len(lost),
            "missing": [
                {"key": ref.key, "bytes": ref.size, "reason": lost[ref.key]}
                for ref in manifest.partitions
                if ref.key in lost
            ],
        },
        "other_models": [{"rank": r, "difference": mixed[r]} for r in sorted(mixed)],
        # The number of rows in a partition is known only after it was read.
        "rows": {
            "expected": None if lost else rows,
            "received": rows,
            "flagged": sum(record.rows_flagged for record in records.values()),
        },
    }


def missing_values(records: Records) -> dict[str, int]:
    """Number of rows that lack an input, a redshift, an id or a label, over all ranks."""
    total: dict[str, int] = {}
    for record in records.values():
        for name, count in record.rows_missing.items():
            total[name] = total.get(name, 0) + count
    return total


def missing_sentence(where: str, state: Completeness) -> str:
    """One sentence saying what is missing from an incomplete run, and what to do."""
    ranks = [str(entry["rank"]) for entry in state["ranks"]["missing"]]
    parts = state["partitions"]["missing"]
    if not ranks and not parts:
        others = [str(entry["rank"]) for entry in state.get("other_models", ())]
        return (
            f"the run at {where} is mixed: ranks {_list(others)} of {state['ranks']['expected']} "
            "used another model than it began with; start a new run for a catalogue of one model"
        )
    said = []
    if ranks:
        said.append(f"ranks {_list(ranks)} of {state['ranks']['expected']}")
    if parts:
        said.append(f"partitions {_list([entry['key'] for entry in parts])}")
    reasons = [entry["reason"] for entry in state["ranks"]["missing"]]
    reasons += [entry["reason"] for entry in parts]
    advice = "`perseid resume` redoes only what is missing"
    if not ranks:  # the partitions themselves are bad, so resuming would not help
        advice = "mend these partitions or leave them out, then start a new run"
    return (
        f"the run at {where} is incomplete: {' and '.join(said)} missing (first reason: "
        f"{reasons[0]}); {advice}"
    )


def timings(
    manifest: Manifest,
    records: Records,
    map_seconds: float | None,
    *,
    summarize_began: float,
) -> Timing:
    """Seconds of each step of the run and of the whole run."""
    now = time.time()
    spans = [(s[1], s[2]) for r in records.values() for s in r.timeline]
    if map_seconds is None:
        last = max((end for _, end in spans), default=0.0)
        map_seconds = last - min((begin for begin, _ in spans), default=0.0)
    first = min((begin for begin, _ in spans), default=summarize_began)
    return {
        "initialize": max(0.0, first - manifest.created),
        "map": map_seconds,
        "summarize": now - summarize_began,
        "total": now - manifest.created,
    }


def throughput(records: Records, timing: Timing) -> dict[str, object]:
    """Bits per second under each of the three definitions, and rows per second of the whole run."""
    bits = float(sum(record.pixel_bits for record in records.values()))
    rows = sum(record.rows for record in records.values())
    return {
        "sum_of_workers_bps": sum(r.throughput_bps for r in records.values()),
        "map_bps": _rate(bits, timing["map"]),
        "execution_bps": _rate(bits, timing["total"]),
        "map_rows_per_second": _rate(rows, timing["map"]),
        "execution_rows_per_second": _rate(rows, timing["total"]),
        "definitions": THROUGHPUT,
    }


def workers(records: Records) -> dict[str, object]:
    """Distribution of each stage's seconds and of peak memory over the ranks with data."""
    working = [r for r in records.values() if r.read is None or r.has_data]
    times = [record.stages for record in working]
    stages = {stage: spread([t[stage] for t in times if stage in t]) for stage in STAGES}
    memory = [r.peak_memory_mb for r in working if r.peak_memory_mb is not None]
    return {
        "stage_seconds": stages,
        "peak_memory_mb": spread(memory),
        "cold_starts": sum(r.cold_start for r in records.values()),
        "retried": sorted(rank for rank, r in records.items() if r.attempt > 1),
    }


def transports(manifest: Manifest, records: Records, used: str, note: str) -> dict[str, object]:
    """How the ranks' statistics were transported, and what the exchange took.

    Parameters
    ----------
    used
        The transport; `STORE` if summarize merged.
    note
        Why the engine merged them through the store, if it did.
    """
    asked = manifest.settings.transport
    used_by_rank = [r.transport for r in records.values() if r.transport]
    ends: dict[str, int] = {}
    for record in records.values():
        for transport in record.routes.values():
            ends[transport] = ends.get(transport, 0) + 1
    stages = [r.stages for r in records.values()]
    reason = None
    if used == STORE != asked:
        told = [r for r in records.values() if r.transport_note]
        # A rank without a path to a peer knows the reason; the others only know that it left.
        told.sort(key=lambda record: STORE not in record.routes.values())
        notes = [record.transport_note for record in told]
        reason = note or (notes[0] if notes else "the ranks had no rendezvous")
    return {
        "asked": asked,
        "used": used,
        "ranks": {name: used_by_rank.count(name) for name in sorted(set(used_by_rank))},
        "connections": {name: -(-count // 2) for name, count in sorted(ends.items())},
        "rendezvous_seconds": max((s.get("rendezvous", 0.0) for s in stages), default=0.0),
        "collectives_seconds": max((s.get("collectives", 0.0) for s in stages), default=0.0),
        "reason": reason,
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p90, p99 and the maximum of some values; None if there are no values."""
    if not values:
        return None
    p50, p90, p99 = np.percentile(np.asarray(values, np.float64), [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "max": max(values)}


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0


def _list(names: Sequence[str]) -> str:
    if len(names) <= NAMED:
        return ", ".join(names)
    return ", ".join(names[:NAMED]) + f" and {len(names) - NAMED} more"
