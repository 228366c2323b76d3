"""What a run of ours used and is billed for: invocations, requests, bytes, the rendezvous."""

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
"""Predictions, features, moments, record: what a rank PUTs; summarize GETs all but the first."""
OBJECTS_A_RUN = 6
"""Manifest, items, payload, combined records, catalogue, summary."""
LISTINGS_OF_A_RUN = 2
"""Before the place is claimed and while it is; those of the data are counted by the page."""
LOOKS_A_PARTITION, LOOKS_A_RANK = 2, 2
"""HEADs around reading a partition, and looks for a rank's record before and after its work."""
READS_OF_A_RUN = 13
"""Manifest, merged records and catalogue by summarize, the items by the map; of initialize the look
for a run among the data, and two readings with two HEADs of the first partition. Each of both looks
once whether the bucket is one, like every cold worker, and initialize twice more, for a place
without objects (`Storage`)."""
KEYS_A_PAGE = 1000
BYTES_A_ROW = 40
"""Sent to rank 0 where ranks meet: columns and scores of an object."""
BYTES_A_RANK = 250_000
"""Of a rank in the merge beside that: two sets of statistics of 80 kB, a matrix of 80 kB, a record
(docs/architecture.md, "The merge")."""


def usage_of(
    folder: RunFolder,
    records: Sequence[RankMeasures],
    reports: Sequence[Report],
    logs: RunLogs,
    whole: Span | None,
    architecture: str,
) -> Usage:
    """What the run used; S3 requests of a local run are those the same run makes on S3."""
    engine, manifest = folder.engine, folder.manifest
    counted = sum(max(record.requests, len(record.partitions)) for record in records)
    pages = -(-len(manifest.partitions) // KEYS_A_PAGE) or 1
    fetched = logs.count + 1 if engine.on_aws else 0  # what fetching logs and times wrote
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
    """GB-seconds; the function's /tmp is as the template has it."""
    seconds = sum(report.billed_ms for report in logs.summarize) / 1e3
    return tmp_gb_seconds(engine.summarize_tmp_mb or FREE_TMP_MB, seconds)


def _public_bytes(records: Sequence[RankMeasures]) -> float:
    """What ranks that met sent each other, estimated; through the relay all of it goes twice."""
    found = [record for record in records if (record.transport or "store") != "store"]
    each = (
        (BYTES_A_RANK + BYTES_A_ROW * record.rows) * (2 if "relay" in record.transport else 1)
        for record in found
        if record.transport is not None
    )
    return float(sum(each)) if len(found) > 1 else 0.0


def _rendezvous(records: Sequence[RankMeasures], whole: Span | None) -> Rendezvous | None:
    """The server's task for as long as the run lasted, where ranks talked to each other.

    It is an x86 one whatever the workers are: so the stack's template has it.
    """
    used = {record.transport or "store" for record in records}
    if whole is None or not used - {"store"}:
        return None
    return Rendezvous(whole.seconds)
