"""The third step: check that everything is there, merge, score, and publish the result."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perseid.errors import RunIncomplete
from perseid.pipeline import collect, layout, merge
from perseid.pipeline.collect import BrokenRank, Json
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.parquet import ParquetWriter
from perseid.pipeline.rankfiles import temporary_folder
from perseid.pipeline.summary import completeness, missing_sentence, throughput, timings, workers
from perseid.pipeline.tables import CATALOGUE, catalogue_table
from perseid.storage import Storage


@dataclass(frozen=True)
class Merged:
    """What the ranks left, scored."""

    survey: merge.Survey
    missing: Mapping[int, str]
    """Ranks whose objects turned out broken, with a sentence each."""
    groups: Mapping[str, int]
    """Features of the score; empty where nothing is scored."""


def summarize(
    storage: Storage,
    *,
    map_seconds: float | None = None,
    failures: Mapping[int, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Publish what a run found; ``summary.json`` is written last.

    Parameters
    ----------
    storage
        Of the run's own prefix.
    map_seconds
        From the first worker's start to the last one's end as the engine saw it, seconds; taken
        from the records where it is not given.
    failures
        What the engine knows of ranks that left no record: one sentence a rank.
    extra
        Further keys of the summary.

    Returns
    -------
    The summary, as written.

    Raises
    ------
    RunIncomplete
        Ranks or partitions are missing, after publishing all that is there; names them.
    NotFound
        There is no run at the prefix.
    """
    began = time.time()
    manifest = Manifest.load(storage)
    records, missing = collect.read_records(storage, manifest)
    missing = {rank: (failures or {}).get(rank, reason) for rank, reason in missing.items()}
    merged = None
    if manifest.script is None:
        merged = merge_from_store(storage, records)
        missing |= merged.missing
        records = {rank: records[rank] for rank in records if rank not in missing}
        publish_catalogue(storage, merged.survey, manifest)
    storage.put(layout.COMBINED, _dump([records[rank] for rank in sorted(records)]))
    state = completeness(manifest, records, missing)
    timing = timings(manifest, records, map_seconds, summarize_began=began)
    summary = {
        "run_id": manifest.run_id,
        "version": manifest.version,
        **state,
        **_found(manifest, merged),
        "timing": timing,
        "throughput": throughput(records, timing),
        "workers": workers(records),
        "transport": _transports(manifest, records),
        "warnings": [*manifest.warnings, *_remarks(manifest, merged, records)],
        **(extra or {}),
    }
    storage.put(layout.SUMMARY, _dump(summary))
    if state["status"] != "complete":
        raise RunIncomplete(missing_sentence(storage.where(), state))
    return summary


def merge_from_store(storage: Storage, records: Mapping[int, Json]) -> Merged:
    """Statistics of all partitions first, then every rank's objects against them.

    A rank whose objects are broken is left out, as if it had left no record.
    """
    left, missing = dict(records), dict[int, str]()
    while True:
        try:
            found = collect.read_moments(storage, left)
            groups = next((dict(stamp.groups) for _, stamp, _ in found if stamp.groups), {})
            for rank, stamp, _ in found:
                if dict(stamp.groups) != groups:
                    raise BrokenRank(rank, "its model scores by other features than the others'")
            parts = [moments for _, _, named in found for _, moments in named]
            metric = merge.survey_metric(parts, groups)
            scored = [
                merge.score(result, metric)
                for _, results in collect.stream_results(storage, left)
                for result in results
            ]
            return Merged(merge.rank(scored), missing, groups)
        except BrokenRank as error:
            missing[error.rank] = error.reason
            del left[error.rank]


def publish_catalogue(storage: Storage, survey: merge.Survey, manifest: Manifest) -> None:
    """Write ``catalogue.parquet``, a row group a partition."""
    with temporary_folder("summarize") as folder:
        path = folder / layout.CATALOGUE
        with (
            open(path, "wb") as file,
            ParquetWriter(file, CATALOGUE, {"run_id": manifest.run_id}) as writer,
        ):
            for part, ranks in zip(survey.parts, survey.ranks(), strict=True):
                writer.write(catalogue_table(part.result, part.score, ranks))
        storage.put(layout.CATALOGUE, path)


def _found(manifest: Manifest, merged: Merged | None) -> dict[str, Any]:
    """What the run found out about the survey."""
    if merged is None:
        return {"redshift": None, "anomaly": None, "top": []}
    survey = merged.survey
    anomaly = None
    if merged.groups:
        anomaly = {
            "use": manifest.settings["anomaly"],
            "features": dict(merged.groups),
            "detection": merge.detections(survey),
        }
    return {
        "redshift": merge.redshifts(survey),
        "anomaly": anomaly,
        "top": merge.top_list(survey, int(manifest.settings["top"])),
    }


def _remarks(manifest: Manifest, merged: Merged | None, records: Mapping[int, Json]) -> list[str]:
    said = []
    flagged = sum(record.get("rows_flagged", 0) for record in records.values())
    if flagged:
        said.append(
            f"{flagged} objects have no prediction: their pixels or magnitudes are not "
            "finite, or the model gave no finite answer (column `flag`)"
        )
    twice = merge.repeated_ids(merged.survey) if merged else 0
    if twice:
        said.append(f"{twice} objects have the id of another one: is a file there twice?")
    asked = manifest.settings["anomaly"] != "none"
    if asked and merged and merged.survey.rows and not merged.groups:
        said.append("no object has an anomaly score: the model has no features")
    transport = manifest.settings["transport"]
    if merged and transport != "store" and any(r["transport"] == "store" for r in records.values()):
        said.append(f"transport was to be {transport}, but statistics went through the store")
    wanted = manifest.settings["precision"]
    other = sum(r.get("precision", wanted) != wanted for r in records.values())
    if other:
        said.append(f"{other} ranks did not work in {wanted}: see `precision` in their records")
    return said


def _transports(manifest: Manifest, records: Mapping[int, Json]) -> dict[str, Any]:
    used = [str(r["transport"]) for r in records.values() if "transport" in r]
    counts = {name: used.count(name) for name in sorted(set(used))}
    return {"asked": manifest.settings["transport"], "ranks": counts}


def _dump(value: Any) -> bytes:
    """Strict JSON: what is not a number is null."""
    return json.dumps(_strict(value), indent=1, allow_nan=False).encode()


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(entry) for entry in value]
    return value
