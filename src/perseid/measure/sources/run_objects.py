"""Reads a run of ours from the objects under its prefix, whether or not it was finished."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from perseid.errors import BadInputError, StorageError
from perseid.measure.fields import Fields
from perseid.measure.folder import (
    READERS,
    EngineMeasures,
    ExecutionTimes,
    RankMeasures,
    RunFolder,
    SummaryMeasures,
)
from perseid.measure.measured_run import MeasuredRun, ModelTime, ResultPath, Span, size_label
from perseid.measure.report_line import Report
from perseid.measure.sources import answer_measures
from perseid.measure.sources.folder_logs import read_logs, reports_of
from perseid.measure.sources.rank_measures import read_record
from perseid.measure.sources.run_usage import usage_of
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage
from perseid.textfile import decode, parse_json


def read_stored(store: Storage, keys: Collection[str], architecture: str = "x86") -> MeasuredRun:
    """Read what was measured of the run under a prefix.

    Parameters
    ----------
    store
        Storage at the run's own prefix.
    keys
        All keys below it.

    Raises
    ------
    BadInputError
        The manifest, the records or the summary cannot be read. An engine's report or a log that
        cannot be read becomes a note.
    """
    notes: list[str] = []
    folder = RunFolder(
        store,
        frozenset(keys),
        Manifest.load(store),
        _summary(store, keys),
        _engine(store, keys, notes),
    )
    records = _records(folder)
    logs = read_logs(folder, notes)
    reports = reports_of(folder.engine, logs)
    received = {record.rank for record in records if record.rank is not None}
    missing = tuple(sorted(set(range(folder.manifest.world_size)) - received))
    partition, data = _labels(folder.manifest)
    whole = _whole(folder)
    return MeasuredRun(
        name=store.where(),
        partition=partition,
        data=data,
        batch_size=folder.manifest.settings.batch_size,
        expected=folder.manifest.world_size,
        expected_from="manifest",
        received=len(received),
        complete=folder.summary is not None and folder.summary.complete and not missing,
        missing=missing,
        rows=sum(record.rows for record in records),
        whole=whole,
        map=_map(folder, records),
        durations=_durations(records, reports),
        duration_of="REPORT Duration" if reports else "total of the rank's record",
        model=tuple(ModelTime(one.model_seconds or 0.0, one.bits) for one in records),
        reports=reports,
        usage=usage_of(folder, records, reports, logs, whole, architecture) if reports else None,
        function="script" if folder.manifest.script else "inference worker",
        bits=sum(record.bits for record in records),
        notes=(*_notes(folder, reports), *notes),
        unreported=folder.engine.unreported,
        records=records,
        folder=folder,
    )


def read_json(store: Storage, key: str) -> object:
    """Read an object as JSON; raises a `BadInputError` that names it if it is not JSON."""
    where = store.where(key)
    return parse_json(decode(store.get(key), where), where)


def _summary(store: Storage, keys: Collection[str]) -> SummaryMeasures | None:
    if layout.SUMMARY not in keys:
        return None
    summary = Fields(read_json(store, layout.SUMMARY))
    lost = summary.inner("partitions").rows("missing")
    timing = summary.inner("timing")
    return SummaryMeasures(
        complete=summary.text("status") == "complete",
        lost={part.text("key") or "?": part.text("reason") or "no reason" for part in lost},
        total_seconds=timing.number("total"),
        map_seconds=timing.number("map"),
        execution=summary.inner("engine").text("execution") or "",
        warnings=summary.texts("warnings") if "warnings" in summary else None,
        classification=answer_measures.classification(summary),
        distributions=answer_measures.distributions(summary),
        coverage=answer_measures.coverage(summary.inner("redshift")),
    )


def _engine(store: Storage, keys: Collection[str], notes: list[str]) -> EngineMeasures:
    if layout.ENGINE not in keys:
        return EngineMeasures()
    try:
        engine = Fields(read_json(store, layout.ENGINE))
    # Only figures of the engine are missing then: the rest of the run can still be shown.
    except (BadInputError, StorageError) as error:
        notes.append(str(error))
        return EngineMeasures()
    times = [
        ExecutionTimes(one.number("seconds"), one.number("map_seconds"))
        for one in engine.rows("executions")
    ]
    reports = (_attempt(one) for one in engine.rows("attempts"))
    return EngineMeasures(
        name=engine.text("engine") or "",
        executions=tuple(times),
        attempts=tuple(report for report in reports if report is not None),
        wall_seconds=engine.number("wall_seconds"),
        unreported=engine.count("unreported") or 0,
        notes=engine.texts("notes"),
        architecture=engine.text("architecture"),
        tmp_mb=engine.number("tmp_mb"),
        transitions=engine.count("transitions"),
        refused=engine.count("refused_transitions") or 0,
        summarize_tmp_mb=engine.number("summarize_tmp_mb"),
        express_requests=engine.count("express_requests") or 0,
        express_gb_seconds=engine.number("express_gb_seconds") or 0.0,
        core_seconds=sum(map(_core_seconds, engine.rows("attempts"))),
    )


def _core_seconds(attempt: Fields) -> float:
    # A core is occupied while its worker starts, too.
    spent = (attempt.number("duration_ms") or 0.0) + (attempt.number("init_ms") or 0.0)
    return (attempt.count("cores") or 0) * spent / 1000


def _attempt(one: Fields) -> Report | None:
    """An attempt as a REPORT; None if the engine's report lacks a required value."""
    duration, billed = one.number("duration_ms"), one.number("billed_ms")
    memory, used = one.number("memory_mb"), one.number("max_memory_mb")
    if duration is None or billed is None or memory is None or used is None:
        return None
    return Report(
        request_id=one.text("request_id") or "",
        duration_ms=duration,
        billed_ms=billed,
        memory_mb=memory,
        max_memory_mb=used,
        init_ms=one.number("init_ms"),
        status="success" if one.text("ending") == "done" else "error",
    )


def _records(folder: RunFolder) -> tuple[RankMeasures, ...]:
    """The records of the run, in rank order: combined ones, and those of single ranks besides."""
    store, manifest = folder.store, folder.manifest
    # A script may have written objects under our keys, so only its own record is read.
    script = manifest.script is not None
    records: list[RankMeasures] = []
    if layout.COMBINED in folder.keys and not script:
        found = read_json(store, layout.COMBINED)
        if not isinstance(found, list):
            raise BadInputError(f"{store.where(layout.COMBINED)} is not a list of rank records")
        records = [read_record(plain) for plain in found]
    # Ranks without partitions are not among the combined records, but have records of their own.
    known = {record.rank for record in records}
    left = [r for r, count in enumerate(manifest.assignment) if not (records and count)]
    keys = {rank: layout.done_record(rank, script=script) for rank in left if rank not in known}
    ranks = [rank for rank, key in keys.items() if key in folder.keys]
    with ThreadPoolExecutor(READERS) as pool:
        plain = list(pool.map(lambda rank: read_json(store, keys[rank]), ranks))
    records += [read_record(one, rank) for one, rank in zip(plain, ranks, strict=True)]
    # A record that another run left under this prefix does not count.
    own = [record for record in records if record.run_id in (None, manifest.run_id)]
    return tuple(sorted(own, key=lambda record: record.rank or 0))


def _labels(manifest: Manifest) -> tuple[str | None, str | None]:
    """Labels of partition and data size, from the result path or else from the files' bytes."""
    place = ResultPath.of(manifest.results_url)
    sizes = [p.size for p in manifest.partitions]
    if place is not None and place.workers is not None:
        return place.partition, place.data
    return (size_label(max(sizes)) if sizes else None), size_label(sum(sizes))


def _whole(folder: RunFolder) -> Span | None:
    """Duration of the run: of all its executions on AWS, otherwise from the summary."""
    seconds = [execution.seconds for execution in folder.engine.executions]
    known = [value for value in seconds if value]
    # Only if all are known: a sum without one of them would look like a faster run.
    if seconds and len(known) == len(seconds):
        return Span(sum(known), "whole execution")
    total = folder.summary.total_seconds if folder.summary else None
    return Span(total, "whole run") if total else None


def _map(folder: RunFolder, records: Sequence[RankMeasures]) -> Span | None:
    states = [execution.map_seconds for execution in folder.engine.executions]
    known = [value for value in states if value]
    if states and len(known) == len(states):
        return Span(sum(known), "map state")
    told = folder.summary.map_seconds if folder.summary else None
    seconds = told or folder.engine.wall_seconds
    if seconds:
        return Span(seconds, "map")
    moments = [(start, end) for record in records for _, start, end in record.timeline]
    if not moments:
        return None
    return Span(max(end for _, end in moments) - min(start for start, _ in moments), "map")


def _durations(records: Sequence[RankMeasures], reports: Sequence[Report]) -> tuple[float, ...]:
    """Seconds of every invocation if there are REPORTs, otherwise those of every record."""
    if reports:
        return tuple(report.duration_ms / 1e3 for report in reports)
    totals = (record.stages.get("total") for record in records)
    return tuple(total for total in totals if total is not None)


def _notes(folder: RunFolder, reports: Sequence[Report]) -> tuple[str, ...]:
    summary, engine = folder.summary, folder.engine
    notes = [] if summary else ["no summary: the run is not finished"]
    # On AWS, engine.json is written when the logs are fetched.
    if not engine.name and summary and summary.execution:
        notes.append("its logs were not fetched: `perseid status` does so")
    notes += engine.notes
    failed = sum(not report.succeeded for report in reports)
    if failed:
        notes.append(f"{failed} of {len(reports)} invocations failed")
    warnings = summary.warnings if summary else None
    return tuple(notes) + (folder.manifest.warnings if warnings is None else warnings)
