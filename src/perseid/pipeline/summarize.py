"""The third step: check that everything is there, merge, score, and publish the result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from perseid.errors import RunIncompleteError
from perseid.pipeline import layout, rank_outputs
from perseid.pipeline.catalogue_limits import LIMITS, CatalogueLimits
from perseid.pipeline.catalogue_reader import catalogue_bytes
from perseid.pipeline.environment import differences
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.publish import dump, strict
from perseid.pipeline.records import STORE
from perseid.pipeline.run_summary import EngineSummary, ExecutionSummary, RunSummary
from perseid.pipeline.store_merge import publish_from_store
from perseid.pipeline.stored import Findings, Plain, Records
from perseid.pipeline.summary import (
    completeness,
    missing_sentence,
    missing_values,
    throughput,
    timings,
    transports,
    workers,
)
from perseid.plaintext import counted
from perseid.storage import Storage

FOUND = ("redshift", "classification", "distributions", "anomaly", "top")
"""Keys of the summary that are fields of `Findings`."""


@dataclass(frozen=True)
class Merged:
    """The ranks' records and findings, merged over the survey."""

    records: Records
    """The records that count, by rank."""
    missing: Mapping[int, str]
    """The other ranks, with one sentence each that says why they do not count."""
    found: Findings
    """Findings about the whole survey."""
    used: str
    """How the ranks' statistics were transported."""


def summarize(
    storage: Storage,
    *,
    map_seconds: float | None = None,
    failures: Mapping[int, str] | None = None,
    engine: EngineSummary | ExecutionSummary | None = None,
    transport_note: str = "",
    limits: CatalogueLimits = LIMITS,
) -> RunSummary:
    """Merge and publish a run's results; ``summary.json`` is written last.

    Parameters
    ----------
    storage
        Storage of the run's own prefix.
    map_seconds
        Seconds from the first worker's start to the last one's end, as measured by the engine;
        taken from the records if not given.
    failures
        What the engine knows about ranks that left no record, one sentence per rank.
    engine
        The engine's measurements, for the summary.
    transport_note
        Why the engine merged the statistics through the store, if it did.
    limits
        Numbers of rows above which the catalogue is written in parts.

    Returns
    -------
    The content of ``summary.json``.

    Raises
    ------
    RunIncompleteError
        Ranks or partitions are missing, or some ranks used another model; the message names them.
        It is raised after everything that is there has been published.
    NotFoundError
        There is no run at the prefix.
    """
    began = time.time()
    manifest = Manifest.load(storage)
    merged = _of_communicator(storage, manifest) or _of_store(
        storage, manifest, failures or {}, limits
    )
    records, missing = merged.records, merged.missing
    state = completeness(manifest, records, missing, rank_outputs.other_models(records, manifest))
    timing = timings(manifest, records, map_seconds, summarize_began=began)
    transport = transports(manifest, records, merged.used, transport_note)
    summary = {
        "run_id": manifest.run_id,
        "version": manifest.version,
        "model": manifest.model.to_json() if manifest.model else None,
        **state,
        **{key: getattr(merged.found, key) for key in FOUND},
        "catalogue_bytes": catalogue_bytes(storage) if manifest.script is None else None,
        "missing": missing_values(records),
        "timing": timing,
        "throughput": throughput(records, timing),
        "workers": workers(records),
        "transport": transport,
        "warnings": [*manifest.warnings, *_remarks(manifest, merged, transport)],
        **({} if engine is None else {"engine": engine}),
    }
    finite = cast(RunSummary, strict(summary))
    # Published even if incomplete: the results so far are useful, and the summary lists the gaps.
    storage.put(layout.SUMMARY, dump(finite))
    if state["status"] != "complete":
        raise RunIncompleteError(missing_sentence(storage.where(), state))
    return finite


def _of_communicator(storage: Storage, manifest: Manifest) -> Merged | None:
    """The results that rank 0 published; None if it published nothing, or not everything."""
    read = rank_outputs.read_merged(storage, manifest)
    if read is None:
        return None
    records, merged = read
    found = {transport for record in records.values() for transport in record.transport.split("+")}
    return Merged(records, {}, merged, "+".join(sorted(found)))


def _of_store(
    storage: Storage, manifest: Manifest, failures: Mapping[int, str], limits: CatalogueLimits
) -> Merged:
    """Merge what is in the store and publish everything but the summary."""
    records, missing = rank_outputs.read_records(storage, manifest)
    missing = {rank: failures.get(rank, reason) for rank, reason in missing.items()}
    found, used = Findings(), "none"
    if manifest.script is None:
        found, broken = publish_from_store(storage, records, manifest, limits)
        missing |= broken
        records = {rank: records[rank].through(STORE) for rank in records
                   if rank not in missing}  # fmt: skip
        used = STORE
    combined = {rank: record.plain for rank, record in records.items() if record.had_data}
    if manifest.script is not None:
        combined, gone = rank_outputs.read_results(storage, records)
        missing |= gone
        records = {rank: record for rank, record in records.items() if rank not in gone}
    storage.put(layout.COMBINED, dump([combined[rank] for rank in sorted(combined)]))
    return Merged(records, missing, found, used)


def _remarks(manifest: Manifest, merged: Merged, transport: Plain) -> list[str]:
    said, records, found = [], merged.records, merged.found
    flagged = sum(record.rows_flagged for record in records.values())
    lacking = missing_values(records)
    if flagged:
        said.append(
            f"{counted(flagged, 'object has', 'objects have')} no prediction: a magnitude is "
            "missing (flag 3: "
            f"{lacking.get('input', 0)}), pixels are not finite (flag 1), or the model gave no "
            "finite answer (flag 2)"
        )
    said += _unlabeled(lacking)
    twice = found.repeated_ids
    if twice:
        said.append(
            f"{counted(twice, 'object has', 'objects have')} the id of another one: is a file "
            "there twice?"
        )
    if manifest.settings.anomaly != "none" and found.rows and not found.anomaly:
        said.append("no object has an anomaly score: the model has no features")
    if transport["reason"]:
        asked = transport["asked"]
        said.append(f"transport is {asked}, but statistics went through the store: "
                    f"{transport['reason']}")  # fmt: skip
    unnamed = sum(record.model is None for record in records.values())
    if manifest.script is None and 0 < unnamed < len(records):
        said.append(
            f"{unnamed} of {len(records)} ranks were made by an earlier version, which does not "
            "tell models apart: whether all ranks used one model cannot be verified"
        )
    wanted = manifest.settings.precision
    other = sum((r.precision or wanted) != wanted for r in records.values())
    if other and manifest.script is None:
        said.append(
            f"{counted(other, 'rank')} did not work in {wanted}: see `precision` in their records"
        )
    computed = {rank: r.environment for rank, r in records.items() if r.environment}
    return [*said, *differences(computed)]


def _unlabeled(lacking: Mapping[str, int]) -> Iterator[str]:
    for name, where in (("redshift", "metrics"), ("label", "detection rates")):
        if count := lacking.get(name):
            whom = "it is" if count == 1 else "they are"
            lack = counted(count, "object lacks", "objects lack")
            yield f"{lack} a {name}: {whom} not in the {where}"
