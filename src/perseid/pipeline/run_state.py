"""The state of a run according to its own objects: missing ranks, the report, the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import cast

from perseid.errors import BadInputError, NotFoundError
from perseid.jsontext import json_bytes, parse_json
from perseid.pipeline import layout
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.catalogue_reader import is_whole
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import READERS, read_records
from perseid.pipeline.run_summary import EngineDocument, EngineSummary, RunSummary
from perseid.pipeline.schema import fits
from perseid.pipeline.summary import missing_sentence
from perseid.storage import Storage
from perseid.survey.partition import natural_key
from perseid.textfile import decode


@dataclass(frozen=True)
class RunResult:
    """The result of a run that has ended: its manifest, the engine's report and the summary."""

    manifest: Manifest
    mapped: EngineReport
    """The engine's report; after a resumption it covers only the ranks that were missing."""
    summary: RunSummary
    """The content of ``summary.json``."""
    incomplete: str | None
    """One sentence that names what is missing; None if nothing is missing."""


def finished(store: Storage, manifest: Manifest) -> RunResult | None:
    """The result of a run that is complete and published; None if anything is missing."""
    last = last_summary(store)
    if last is None or last["status"] != "complete" or last["run_id"] != manifest.run_id:
        return None
    if missing_ranks(store, manifest):
        return None
    if manifest.script is None and not is_whole(store, last.get("catalogue_bytes")):
        return None
    return RunResult(manifest, EngineReport(), last, None)


def published(store: Storage, manifest: Manifest) -> RunResult | None:
    """The result of a run that was summarized, complete or not; None if it was not summarized
    yet."""
    last = last_summary(store)
    if last is None or last["run_id"] != manifest.run_id:
        return None
    if not all(0 <= entry["rank"] < manifest.world_size for entry in last["ranks"]["missing"]):
        return None
    report = last_report(store) or EngineReport()
    whole = last["status"] == "complete"
    incomplete = None if whole else missing_sentence(store.where(), last)
    return RunResult(manifest, replace(report, published=True), last, incomplete)


def missing_ranks(store: Storage, manifest: Manifest) -> list[int]:
    """Ranks that must be worked on again, in ascending order.

    These are the ranks without a record of this run, those whose record names partitions that could
    not be read, and those that the last summary found broken. If any rank is missing in a script
    whose ranks talk to each other, all ranks are returned.
    """
    records, missing = read_records(store, manifest)
    partly = {rank for rank, record in records.items() if record.failed}
    last = last_summary(store)
    # A record can exist without its objects: only the summary, which read them, knows.
    broken = {entry["rank"] for entry in last["ranks"]["missing"]} if last else set[int]()
    found = {*missing, *partly, *broken} & set(range(manifest.world_size))
    # Ranks of a script that exchange messages need each other: one alone would wait forever.
    return list(range(manifest.world_size)) if found and manifest.talks else sorted(found)


def last_summary(store: Storage) -> RunSummary | None:
    """``summary.json`` of the run; None if it has none, or one with impossible values."""
    try:
        summary = parse_json(store.get(layout.SUMMARY))
    except (NotFoundError, ValueError):
        return None
    return cast(RunSummary, summary) if fits(RunSummary, summary) else None


def last_report(store: Storage) -> EngineReport | None:
    """The content of ``engine.json``: the attempts of all engines that worked on the run."""
    try:
        return EngineReport.from_json(parse_json(store.get(layout.ENGINE)))
    except (NotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def stored_logs(store: Storage, rank: int | None = None) -> Iterator[tuple[int, str]]:
    """Logs in the run's own folder as (rank, text), in order of the ranks."""
    wanted = None if rank is None else layout.log(rank)
    found = {key: layout.rank_of(key) for key in (info.key for info in store.list(layout.LOGS))}
    # People keep files of their own there, too.
    ours = {key: n for key, n in found.items() if n is not None and key == layout.log(n)}
    keys = sorted((key for key in ours if wanted in (None, key)), key=natural_key)
    ranks = [ours[key] for key in keys]
    with ThreadPoolExecutor(READERS) as pool:
        for number, data in zip(ranks, pool.map(store.get, keys), strict=True):
            yield number, _log_text(data)


def _log_text(data: bytes) -> str:
    """The text of a log; of one that is not text, or cut off, whatever can be shown."""
    try:
        return decode(data, "the log")
    except BadInputError:
        return data.decode("utf-8", "replace")


def keep_report(store: Storage, engine: str, report: EngineReport) -> EngineSummary:
    """Write ``engine.json``; after a resumption it holds the attempts of all drivers."""
    plain, drivers = report.to_json(), 1
    former = _former(store)
    if former is not None:
        known = {entry["request_id"] for entry in former["attempts"]}
        own = {entry["request_id"] for entry in plain["attempts"]}
        if own and own <= known:
            # Of several processes that waited for the same ranks, another one wrote them.
            return cast(EngineSummary, {k: v for k, v in former.items() if k != "attempts"})
        plain["attempts"] = [*former["attempts"], *plain["attempts"]]
        drivers += former.get("drivers", 1)
        plain["wall_seconds"] += former["wall_seconds"]
        plain["work_seconds"] += former["work_seconds"]
        plain["overhead_seconds"] += former["overhead_seconds"]
        plain["cold_starts"] += former["cold_starts"]
        ranks = {entry["rank"] for entry in plain["attempts"]}
        plain["overhead_seconds_per_rank"] = plain["overhead_seconds"] / max(1, len(ranks))
    plain["engine"], plain["drivers"] = engine, drivers
    store.put(layout.ENGINE, json_bytes(plain))
    return cast(EngineSummary, {key: value for key, value in plain.items() if key != "attempts"})


def result_of(store: Storage, manifest: Manifest, report: EngineReport) -> RunResult:
    """The result of a run that the engine itself summarized."""
    summary = with_reasons(store, report.failures)
    whole = summary["status"] == "complete"
    incomplete = None if whole else missing_sentence(store.where(), summary)
    return RunResult(manifest, report, summary, incomplete)


def with_reasons(store: Storage, failures: Mapping[int, str]) -> RunSummary:
    """The summary, extended by what the engine knows about ranks that left no record.

    An engine that summarized the run itself did so before its logs could be read. If they say more,
    the summary is written again.
    """
    text = store.get(layout.SUMMARY)
    summary: RunSummary = parse_json(text)
    for entry in summary["ranks"]["missing"]:
        entry["reason"] = failures.get(entry["rank"]) or entry["reason"]
    told = {entry["rank"]: entry["reason"] for entry in summary["ranks"]["missing"]}
    for part in summary["partitions"]["missing"]:
        rank, _, _ = part["reason"].removeprefix("rank ").partition(":")
        if part["reason"].startswith("rank ") and rank.isdecimal() and int(rank) in told:
            part["reason"] = f"rank {rank}: {told[int(rank)]}"
    changed = json_bytes(summary)
    if changed != text:
        store.put(layout.SUMMARY, changed)
    return summary


def _former(store: Storage) -> EngineDocument | None:
    """The report of an earlier driver; None if there is none or it is incomplete."""
    try:
        former = parse_json(store.get(layout.ENGINE))
    except (NotFoundError, ValueError):
        return None
    needed = ("attempts", "wall_seconds", "work_seconds", "overhead_seconds", "cold_starts")
    whole = isinstance(former, dict) and all(key in former for key in needed)
    return cast(EngineDocument, former) if whole else None
