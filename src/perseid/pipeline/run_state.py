"""What a run's own objects say of it: which ranks are missing, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from perseid.errors import NotFoundError
from perseid.pipeline import layout
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import READERS, read_records
from perseid.pipeline.resumption import has_catalogue
from perseid.pipeline.summary import missing_sentence
from perseid.storage import Storage
from perseid.survey.partition import natural_key


@dataclass(frozen=True)
class RunResult:
    """A run that has ended: its manifest, the engine's report and the summary."""

    manifest: Manifest
    mapped: EngineReport
    """What the engine did; on a resumption only with the ranks that were missing."""
    summary: dict[str, Any]
    """What ``summary.json`` holds."""
    incomplete: str | None
    """One sentence that names what is missing; None where nothing is."""


def finished(store: Storage, manifest: Manifest) -> RunResult | None:
    """What there is of a run that is complete and published; None where something is missing."""
    last = last_summary(store)
    if last.get("status") != "complete" or last.get("run_id") != manifest.run_id:
        return None
    if missing_ranks(store, manifest):
        return None
    if not has_catalogue(store, manifest, last.get("catalogue_bytes")):
        return None
    return RunResult(manifest, EngineReport(), last, None)


def published(store: Storage, manifest: Manifest) -> RunResult | None:
    """The result of a run that was summarized, complete or not; None where it was not yet."""
    last = last_summary(store)
    if last.get("run_id") != manifest.run_id:
        return None
    report = last_report(store) or EngineReport()
    whole = last.get("status") == "complete"
    incomplete = None if whole else missing_sentence(store.where(), last)
    return RunResult(manifest, replace(report, published=True), last, incomplete)


def missing_ranks(store: Storage, manifest: Manifest) -> list[int]:
    """Ranks to work on again, ascending.

    Those without a record of this run, those whose record names partitions it could not read, and
    those that the last summary found broken; all of them where one is missing and the ranks of a
    script talk to each other.
    """
    records, missing = read_records(store, manifest)
    partly = {rank for rank, record in records.items() if record.failed}
    broken = {int(entry["rank"]) for entry in last_summary(store)["ranks"]["missing"]}
    found = {*missing, *partly, *broken}
    return list(range(manifest.world_size)) if found and manifest.talks else sorted(found)


def last_summary(store: Storage) -> dict[str, Any]:
    """``summary.json``; where there is none, one that names no missing rank and no run."""
    try:
        summary = json.loads(store.get(layout.SUMMARY))
        summary["ranks"]["missing"]
    except (NotFoundError, ValueError, KeyError, TypeError):
        return {"ranks": {"missing": []}}
    return dict(summary)


def last_report(store: Storage) -> EngineReport | None:
    """What ``engine.json`` holds: the attempts of all engines that worked on the run."""
    try:
        return EngineReport.from_json(json.loads(store.get(layout.ENGINE)))
    except (NotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def stored_logs(store: Storage, rank: int | None = None) -> Iterator[tuple[int, str]]:
    """(rank, text) of the logs in the run's own folder, in order of the ranks."""
    wanted = None if rank is None else layout.log(rank)
    keys = [info.key for info in store.list(layout.LOGS) if wanted in (None, info.key)]
    keys.sort(key=natural_key)
    ranks = [int(key.rpartition("/")[2].removesuffix(".log")) for key in keys]
    with ThreadPoolExecutor(READERS) as pool:
        for number, data in zip(ranks, pool.map(store.get, keys), strict=True):
            yield number, data.decode("utf-8", "replace")


def keep_report(store: Storage, engine: str, report: EngineReport) -> dict[str, Any]:
    """Write ``engine.json``; after a resumption it holds the attempts of all drivers."""
    plain = report.to_json() | {"engine": engine, "drivers": 1}
    former = _former(store)
    if former is not None:
        plain["attempts"] = [*former["attempts"], *plain["attempts"]]
        plain["drivers"] = former.get("drivers", 1) + 1
        for key in ("wall_seconds", "work_seconds", "overhead_seconds", "cold_starts"):
            plain[key] += former.get(key, 0)
        ranks = {entry["rank"] for entry in plain["attempts"]}
        plain["overhead_seconds_per_rank"] = plain["overhead_seconds"] / max(1, len(ranks))
    store.put(layout.ENGINE, json.dumps(plain, indent=1).encode())
    return plain


def result_of(store: Storage, manifest: Manifest, report: EngineReport) -> RunResult:
    """The result of a run that the engine summarized itself."""
    summary = with_reasons(store, report.failures)
    whole = summary["status"] == "complete"
    incomplete = None if whole else missing_sentence(store.where(), summary)
    return RunResult(manifest, report, summary, incomplete)


def with_reasons(store: Storage, failures: Mapping[int, str]) -> dict[str, Any]:
    """The summary, with what the engine knows of ranks that left no record.

    An engine that summarized the run itself did so before its logs could be read; the summary is
    written again where they say more.
    """
    text = store.get(layout.SUMMARY)
    summary: dict[str, Any] = json.loads(text)
    for entry in summary["ranks"]["missing"]:
        entry["reason"] = failures.get(entry["rank"]) or entry["reason"]
    told = {entry["rank"]: entry["reason"] for entry in summary["ranks"]["missing"]}
    for part in summary["partitions"]["missing"]:
        rank, _, _ = part["reason"].removeprefix("rank ").partition(":")
        if part["reason"].startswith("rank ") and rank.isdecimal() and int(rank) in told:
            part["reason"] = f"rank {rank}: {told[int(rank)]}"
    changed = json.dumps(summary, indent=1).encode()
    if changed != text:
        store.put(layout.SUMMARY, changed)
    return summary


def _former(store: Storage) -> dict[str, Any] | None:
    try:
        former = json.loads(store.get(layout.ENGINE))
    except (NotFoundError, ValueError):
        return None
    return former if isinstance(former, dict) and "attempts" in former else None
