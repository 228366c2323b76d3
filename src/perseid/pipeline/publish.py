"""What a merged survey becomes: the catalogue, and the findings that the summary quotes.

The same functions serve rank 0 of a communicator and `summarize`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from perseid.pipeline import layout, merge
from perseid.pipeline.ids import common_kind
from perseid.pipeline.parquet_writer import ParquetWriter
from perseid.pipeline.rankfiles import temporary_folder
from perseid.pipeline.stored import Findings
from perseid.pipeline.tables import CATALOGUE, catalogue_table, with_ids
from perseid.storage import Storage


def publish_catalogue(storage: Storage, survey: merge.ScoredSurvey, run_id: str, who: str) -> int:
    """Write ``catalogue.parquet``, a row group a partition; its bytes. `who` is for errors."""
    with temporary_folder(who) as folder:
        path = folder / layout.CATALOGUE
        kind = common_kind(part.result.object_id for part in survey.parts)
        with (
            open(path, "wb") as file,
            ParquetWriter(file, with_ids(CATALOGUE, kind), {"run_id": run_id}) as writer,
        ):
            for part, ranks in zip(survey.parts, survey.ranks(), strict=True):
                writer.write(catalogue_table(part.result, part.score, ranks, kind))
        storage.put(layout.CATALOGUE, path)
        return path.stat().st_size


def findings(
    survey: merge.ScoredSurvey,
    groups: Mapping[str, int],
    use: str,
    top: int,
    names: Mapping[int, str],
) -> Findings:
    """What the run found out about the survey.

    Parameters
    ----------
    survey
        All partitions, scored.
    groups
        Features of the score; empty where nothing is scored.
    use, top
        `WorkItem.anomaly` and `WorkItem.top`.
    names
        What the survey calls its labels.
    """
    anomaly = None
    if groups:
        anomaly = {
            "use": use,
            "features": dict(groups),
            "detection": merge.detections(survey, names),
        }
    return Findings(
        redshift=merge.redshifts(survey),
        anomaly=anomaly,
        top=merge.top_list(survey, top, names),
        rows=survey.rows,
        repeated_ids=merge.repeated_ids(survey),
    )


def dump(value: Any) -> bytes:
    """Strict JSON: what is not a number is null."""
    return json.dumps(strict(value), indent=1, allow_nan=False).encode()


def strict(value: Any) -> Any:
    """The value with null in place of infinities and NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(entry) for entry in value]
    return value
