"""Computes the billed usage of a run of ours: invocations, requests, bytes, rendezvous."""

from __future__ import annotations

from collections.abc import Sequence

from perseid.measure.cost import (
    FREE_TMP_MB,
    Rendezvous,
    Usage,
    map_transitions,
    tmp_gb_seconds,
)
from perseid.measure.folder import EngineMeasures, RankMeasures, RunFolder
from perseid.measure.measured_run import Span
from perseid.measure.report_line import Report
from perseid.measure.sources.folder_logs import RunLogs

OBJECTS_A_RANK = 4
"""Objects that a rank writes: predictions, features, moments, record. Summarize reads all but the
first."""
OBJECTS_A_RUN = 6
"""Objects written once per run: manifest, items, payload, combined records, catalogue, summary."""
LISTINGS_OF_A_RUN = 2
"""Listings of the prefix: before it is claimed, and while it is. Those of the data are counted per
page."""
LOOKS_A_PARTITION, LOOKS_A_RANK = 2, 2
"""HEAD requests before and after reading a partition; checks for a rank's record before and after
its work."""
READS_OF_A_RUN = 13
"""Read requests made once per run. Summarize reads the manifest, the merged records and the
catalogue, and the map its items. Initialize checks whether the data contains a run, and reads the
first partition twice, with two HEAD requests. Both check once whether the bucket exists, as does
every cold worker; initialize does so twice more, for a prefix without objects (`Storage`)."""
KEYS_A_PAGE = 1000
"""Keys that S3 lists with one request."""
BYTES_A_ROW = 40
"""Bytes per object, its columns and scores, that ranks send to rank 0 in a collective merge."""
BYTES_A_RANK = 250_000
"""Further bytes that a rank exchanges in a collective merge: two sets of statistics of 80 kB, a
matrix of 80 kB, and a record (docs/architecture.md, "The merge")."""


def usage_of(
    folder: RunFolder,
    records: Sequence[RankMeasures],
    reports: Sequence[Report],
    logs: RunLogs,
    whole: Span | None,
    architecture: str,
) -> Usage:
    """Usage of a run; for a local run, the S3 requests that the same run would make on S3."""
    engine, manifest = folder.engine, folder.manifest
    # A record without a count of requests has read each partition at least once.
    counted = sum(max(record.requests, len(record.partitions)) for record in records)
    # Rounded up; an empty folder takes one listing, too.
    pages = -(-len(manifest.partitions) // KEYS_A_PAGE) or 1
    fetched = logs.count + 1 if engine.on_aws else 0  # objects written by fetching logs and times
    transitions = engine.transitions
    if transitions is None:
        transitions = map_transitions(len(reports), manifest.world_size)
    return Usage(
        reports=reports,
        other_reports=logs.others,
        architecture=engine.architecture or architecture,
        tmp_mb=FREE_TMP_MB if engine.tmp_mb is None else engine.tmp_mb,
        transitions=transitions,
        refused=engine.refused,
        other_tmp_gb_seconds=_summarize_tmp(engine, logs),
        failed_init_ms=logs.failed_init_ms if engine.on_aws else 0.0,
        express_requests=engine.express_requests,
        express_gb_seconds=engine.express_gb_seconds,
        s3_gets=counted
        + len(manifest.partitions) * LOOKS_A_PARTITION
        + len(records) * (OBJECTS_A_RANK - 1 + LOOKS_A_RANK)
        + sum(report.cold for report in reports)
        + READS_OF_A_RUN,
        s3_puts=len(records) * OBJECTS_A_RANK + OBJECTS_A_RUN + LISTINGS_OF_A_RUN + pages + fetched,
        stored_bytes=float(sum(p.size for p in manifest.partitions)),
        stored_seconds=whole.seconds if whole else 0.0,
        log_bytes=logs.bytes,
        rendezvous=_rendezvous(records, whole),
        core_seconds=engine.core_seconds,
        public_bytes=_public_bytes(records) if engine.on_aws else 0.0,
    )


def _summarize_tmp(engine: EngineMeasures, logs: RunLogs) -> float:
    """Billed GB-seconds of summarize's /tmp, whose size the stack's template sets."""
    seconds = sum(report.billed_ms for report in logs.summarize) / 1e3
    return tmp_gb_seconds(engine.summarize_tmp_mb or FREE_TMP_MB, seconds)


def _public_bytes(records: Sequence[RankMeasures]) -> float:
    """Estimated bytes that ranks sent each other; through the relay, each byte is sent twice."""
    found = [record for record in records if (record.transport or "store") != "store"]
    each = (
        (BYTES_A_RANK + BYTES_A_ROW * record.rows) * (2 if "relay" in record.transport else 1)
        for record in found
        if record.transport is not None
    )
    # A single rank has nobody to send to.
    return float(sum(each)) if len(found) > 1 else 0.0


def _rendezvous(records: Sequence[RankMeasures], whole: Span | None) -> Rendezvous | None:
    """The rendezvous task for the duration of the run, if ranks communicated through it.

    The stack's template makes it an x86 task, whatever the architecture of the workers.
    """
    used = {record.transport or "store" for record in records}
    if whole is None or not used - {"store"}:
        return None
    return Rendezvous(whole.seconds)
