"""A run of ours, from the objects under its prefix; finished, unfinished or broken off."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from perseid.errors import BadInputError, NotFoundError
from perseid.measure.cost import FREE_TMP_MB, Rendezvous, Usage, map_transitions
from perseid.measure.report_line import Report, find_reports
from perseid.measure.runs import MeasuredRun, ModelTime, Place, Span, size_label
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage

READERS = 16
OBJECTS_A_RANK = 4
"""Predictions, features, moments, record: what a rank PUTs; summarize GETs all but the first."""
OBJECTS_A_RUN = 6
"""Manifest, items, payload, combined records, catalogue, summary."""
LOOKS_A_PARTITION, LOOKS_A_RANK = 2, 2
"""HEADs around reading a partition, and looks for a rank's record before and after its work."""
READS_OF_A_RUN = 3
"""Manifest and merged records by summarize, the items by the map."""
KEYS_A_PAGE = 1000


def read_stored(store: Storage, keys: Collection[str], architecture: str = "x86") -> MeasuredRun:
    """What was measured of the run under a prefix.

    Parameters
    ----------
    store
        The run's own prefix.
    keys
        All keys below it.

    Raises
    ------
    BadInputError
        Its manifest, or an object that goes with it, cannot be read.
    """
    manifest = Manifest.load(store)
    summary = read_json(store, layout.SUMMARY) if layout.SUMMARY in keys else {}
    engine = read_json(store, layout.ENGINE) if layout.ENGINE in keys else {}
    records = _records(store, keys, manifest)
    logs = _logs(store, keys)
    reports = _reports(text for key, text in logs.items() if _of_rank(key))
    reports = reports or _engine_reports(engine)
    others = _reports(text for key, text in logs.items() if not _of_rank(key))
    received = sorted({int(r["rank"]) for r in records if "rank" in r})
    missing = tuple(sorted(set(range(manifest.world_size)) - set(received)))
    partition, data = _labels(manifest)
    model = tuple(_model_time(record) for record in records)
    return MeasuredRun(
        name=store.where(),
        partition=partition,
        data=data,
        batch_size=int(manifest.settings.get("batch_size", 0)) or None,
        expected=manifest.world_size,
        expected_from="manifest",
        received=len(received),
        complete=_complete(summary, missing),
        missing=missing,
        rows=sum(int(r.get("rows", 0)) for r in records),
        whole=_whole(summary, engine),
        map=_map(summary, engine, records),
        durations=_durations(records, reports),
        duration_of="REPORT Duration" if reports else "total of the rank's record",
        model=model,
        reports=reports,
        usage=_usage(manifest, records, reports, others, logs, summary, engine, architecture),
        function="script" if manifest.script else "inference worker",
        bits=sum(part.bits for part in model),
        notes=_notes(summary, engine, reports, manifest),
        unreported=int(engine.get("unreported", 0)),
        extra={
            "manifest": manifest,
            "summary": summary,
            "engine": engine,
            "records": records,
            "store": store,
            "keys": frozenset(keys),
        },
    )


def read_json(store: Storage, key: str) -> Any:
    """A JSON object; raises `BadInputError` naming it where it is none."""
    try:
        return json.loads(store.get(key))
    except ValueError as error:
        raise BadInputError(f"{store.where(key)} is not JSON: {error}") from error


def _records(store: Storage, keys: Collection[str], manifest: Manifest) -> list[Mapping[str, Any]]:
    """The newest of the run's own records, in rank order; from the ranks where none combined."""
    if layout.COMBINED in keys:
        found = read_json(store, layout.COMBINED)
    else:
        names = [layout.record(rank) for rank in range(manifest.world_size)]
        names = [name for name in names if name in keys]
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(lambda name: _named(store, name), names))
    own = [r for r in found if r.get("run_id", manifest.run_id) == manifest.run_id]
    return sorted(own, key=lambda r: int(r.get("rank", 0)))


def _named(store: Storage, name: str) -> Mapping[str, Any]:
    """A rank's record; scripts write theirs without the rank, which then is in the name."""
    record = read_json(store, name)
    return {"rank": int(name.removesuffix(".json")), **record}


def _logs(store: Storage, keys: Collection[str]) -> dict[str, str]:
    wanted = sorted(key for key in keys if key.startswith(layout.LOGS + "/"))
    with ThreadPoolExecutor(READERS) as pool:
        texts = pool.map(lambda key: _text(store, key), wanted)
        return dict(zip(wanted, texts, strict=True))


def _text(store: Storage, key: str) -> str:
    try:
        return store.get(key).decode("utf-8", "replace")
    except NotFoundError:
        return ""


def _reports(texts: Iterable[str]) -> tuple[Report, ...]:
    return tuple(report for text in texts for report in find_reports(text))


def _of_rank(key: str) -> bool:
    """Whether a log is a rank's; those of initialize and summarize bear their names."""
    return key.removeprefix(layout.LOGS + "/").removesuffix(".log").isdecimal()


def _engine_reports(engine: Mapping[str, Any]) -> tuple[Report, ...]:
    """The engine's attempts, where no logs were kept."""
    return tuple(
        Report(
            request_id=str(a["request_id"]),
            duration_ms=float(a["duration_ms"]),
            billed_ms=float(a["billed_ms"]),
            memory_mb=float(a["memory_mb"]),
            max_memory_mb=float(a["max_memory_mb"]),
            init_ms=a.get("init_ms"),
            status="success" if a.get("ending") == "done" else "error",
        )
        for a in engine.get("attempts", ())
    )


def _labels(manifest: Manifest) -> tuple[str | None, str | None]:
    """Partition and data size: as the request's path says, else by the bytes of the files."""
    place = Place.of(manifest.results_url)
    sizes = [p.size for p in manifest.partitions]
    if place is not None and place.workers is not None:
        return place.partition, place.data
    return (size_label(max(sizes)) if sizes else None), size_label(sum(sizes))


def _complete(summary: Mapping[str, Any], missing: Sequence[int]) -> bool:
    """Complete only where the summary says so; a run without one is not."""
    return str(summary.get("status", "")) == "complete" and not missing


def _whole(summary: Mapping[str, Any], engine: Mapping[str, Any]) -> Span | None:
    """Of all executions together on AWS; elsewhere what the summary says."""
    executions = [e.get("seconds") for e in engine.get("executions", ())]
    if executions and all(executions):
        return Span(float(sum(executions)), "whole execution")
    seconds = summary.get("timing", {}).get("total")
    return Span(float(seconds), "whole run") if seconds else None


def _map(
    summary: Mapping[str, Any], engine: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> Span | None:
    states = [e.get("map_seconds") for e in engine.get("executions", ())]
    if states and all(states):
        return Span(float(sum(states)), "map state")
    seconds = summary.get("timing", {}).get("map") or engine.get("wall_seconds")
    if seconds:
        return Span(float(seconds), "map")
    moments = [(entry[1], entry[2]) for r in records for entry in r.get("timeline", ())]
    if not moments:
        return None
    first, last = min(start for start, _ in moments), max(end for _, end in moments)
    return Span(last - first, "map")


def _model_time(record: Mapping[str, Any]) -> ModelTime:
    seconds = float(record.get("total_cpu_time (seconds)", 0.0))
    return ModelTime(seconds, float(record.get("throughput_bps", 0.0)) * seconds)


def _durations(
    records: Sequence[Mapping[str, Any]], reports: Sequence[Report]
) -> tuple[float, ...]:
    """Every invocation's time where there are REPORTs, else every record's."""
    if reports:
        return tuple(report.duration_ms / 1e3 for report in reports)
    totals = [r.get("stages", {}).get("total") for r in records]
    return tuple(float(total) for total in totals if total is not None)


def _usage(
    manifest: Manifest,
    records: Sequence[Mapping[str, Any]],
    reports: Sequence[Report],
    others: Sequence[Report],
    logs: Mapping[str, str],
    summary: Mapping[str, Any],
    engine: Mapping[str, Any],
    architecture: str,
) -> Usage | None:
    """What the run used; S3 requests of a local run are those the same run makes on S3."""
    if not reports:
        return None
    counted = sum(
        max(int(r.get("s3_num_requests", 0)), len(r.get("partitions", ()))) for r in records
    )
    pages = -(-len(manifest.partitions) // KEYS_A_PAGE) or 1
    whole = _whole(summary, engine)
    transitions = engine.get("transitions")
    if transitions is None:
        transitions = map_transitions(len(reports), manifest.world_size)
    architecture = str(engine.get("architecture", architecture))
    return Usage(
        reports=reports,
        other_reports=others,
        architecture=architecture,
        tmp_mb=float(engine.get("tmp_mb", FREE_TMP_MB)),
        transitions=int(transitions),
        express_requests=int(engine.get("express_requests", 0)),
        express_gb_seconds=float(engine.get("express_gb_seconds", 0.0)),
        s3_gets=counted
        + len(manifest.partitions) * LOOKS_A_PARTITION
        + len(records) * (OBJECTS_A_RANK - 1 + LOOKS_A_RANK)
        + READS_OF_A_RUN,
        s3_puts=len(records) * OBJECTS_A_RANK + OBJECTS_A_RUN + pages + _fetched(engine, logs),
        stored_bytes=float(sum(p.size for p in manifest.partitions)),
        stored_seconds=whole.seconds if whole else 0.0,
        log_bytes=float(sum(len(text.encode()) for text in logs.values())),
        rendezvous=_rendezvous(records, whole),
    )


def _fetched(engine: Mapping[str, Any], logs: Mapping[str, str]) -> int:
    """Objects that fetching logs and times from AWS wrote; on this machine nothing is fetched."""
    return len(logs) + 1 if engine.get("engine") == "aws" else 0


def _rendezvous(records: Sequence[Mapping[str, Any]], whole: Span | None) -> Rendezvous | None:
    """The server's task for as long as the run lasted, where ranks talked to each other.

    It is an x86 one whatever the workers are: so the stack's template has it.
    """
    used = {str(record.get("transport", "store")) for record in records}
    if whole is None or not used - {"store"}:
        return None
    return Rendezvous(whole.seconds)


def _notes(
    summary: Mapping[str, Any],
    engine: Mapping[str, Any],
    reports: Sequence[Report],
    manifest: Manifest,
) -> tuple[str, ...]:
    notes = [] if summary else ["no summary: the run is not finished"]
    if not engine and summary.get("engine", {}).get("engine") == "aws":
        notes.append("its logs were not fetched: `perseid status` does so")
    notes += engine.get("notes", ())
    failed = sum(not report.succeeded for report in reports)
    if failed:
        notes.append(f"{failed} of {len(reports)} invocations failed")
    return tuple(notes + list(summary.get("warnings", manifest.warnings)))
