"""Publish a merged survey: write the catalogue, and collect the findings for the summary.

Both rank 0 of a communicator and `summarize` use these functions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.jsontext import json_bytes
from perseid.model.outputs import Z_PRED, OutputColumn
from perseid.pipeline import layout, merge
from perseid.pipeline.answer_statistics import AnswerStatistics, has_classes
from perseid.pipeline.catalogue_reader import retire_parts
from perseid.pipeline.ids import common_kind
from perseid.pipeline.parquet_writer import ParquetType, ParquetWriter
from perseid.pipeline.rankfiles import temporary_folder
from perseid.pipeline.schema import to_plain
from perseid.pipeline.stored import Findings
from perseid.pipeline.survey_columns import carried
from perseid.pipeline.tables import (
    CATALOGUE,
    PERCENTILE,
    all_outputs,
    as_in_survey,
    carried_columns,
    catalogue_table,
    with_ids,
    with_outputs,
)
from perseid.storage import Storage
from perseid.survey.column_spec import ColumnSpec

COLUMNS_KEY = "perseid.columns"
"""Key of the JSON text in the catalogue's metadata that describes the survey's columns."""

OUTPUTS_KEY = "perseid.outputs"
"""Key of the JSON list in the footer that describes the model's columns; see
`OutputColumn.to_json`."""


@dataclass(frozen=True, eq=False)
class CatalogueRows:
    """The rows of one partition, in the form the catalogue has them."""

    part: merge.Scored
    rank: NDArray[np.int64]
    """Anomaly ranks (n,), 0 where a row has none."""
    percentile: NDArray[np.float64] | None = None
    """Percentiles of the scores (n,), 0 to 100; None if the catalogue has no such column."""


@dataclass(frozen=True)
class CatalogueSchema:
    """The schema shared by all parts of a catalogue."""

    run_id: str
    ids: ParquetType
    """Type of the object ids."""
    survey_columns: Sequence[ColumnSpec] | None = None
    """Columns that are copied from the survey (`RunSettings.survey_columns`)."""
    percentile: bool = False
    """Whether the catalogue has a percentile column."""
    outputs: Sequence[OutputColumn] = (Z_PRED,)
    """Columns that the model gives."""

    def write(self, path: Path, rows: Iterable[CatalogueRows]) -> int:
        """Write a file with one row group per partition and return its size in bytes."""
        specs = carried(self.survey_columns)
        about = {"run_id": self.run_id, **outputs_metadata(self.outputs)}
        if self.survey_columns:
            about[COLUMNS_KEY] = json.dumps([to_plain(spec) for spec in self.survey_columns])
        own = with_outputs(CATALOGUE, self.outputs)
        own = with_ids((*own, PERCENTILE) if self.percentile else own, self.ids)
        schema = (*as_in_survey(own, self.survey_columns), *carried_columns(specs))
        with open(path, "wb") as file, ParquetWriter(file, schema, about) as writer:
            for one in rows:
                part = one.part
                table = catalogue_table(
                    part.result, part.score, one.rank, self.ids, specs, self.outputs
                )
                if one.percentile is not None:
                    table |= {PERCENTILE.name: np.ma.masked_invalid(one.percentile)}
                writer.write(table)
        return path.stat().st_size


def publish_catalogue(
    storage: Storage,
    survey: merge.ScoredSurvey,
    run_id: str,
    who: str,
    columns: Sequence[ColumnSpec] | None = None,
) -> int:
    """Write ``catalogue.parquet`` with one row group per partition and return its size in bytes.

    `columns` are copied from the survey (`RunSettings.survey_columns`); `who` names the writer in
    errors.
    """
    with temporary_folder(who) as folder:
        path = folder / layout.CATALOGUE
        kind = common_kind(part.result.object_id for part in survey.parts)
        rows = map(CatalogueRows, survey.parts, survey.ranks())
        # Without partitions it is unknown what columns the model gives; an encoder gives none.
        outputs = all_outputs(p.result for p in survey.parts) if survey.parts else (Z_PRED,)
        size = CatalogueSchema(run_id, kind, columns, outputs=outputs).write(path, rows)
        retire_parts(storage, [layout.CATALOGUE])
        storage.put(layout.CATALOGUE, path)
        return size


def outputs_metadata(outputs: Sequence[OutputColumn]) -> dict[str, str]:
    """Metadata that describes a model's columns in a table's footer; empty if ``z_pred`` is the
    only one."""
    if tuple(outputs) == (Z_PRED,):
        return {}
    return {OUTPUTS_KEY: json.dumps([column.to_json() for column in outputs])}


def findings(
    survey: merge.ScoredSurvey,
    groups: Mapping[str, int],
    use: str,
    top: int,
    names: Mapping[int, str],
) -> Findings:
    """The run's findings about the survey.

    Parameters
    ----------
    survey
        All partitions with their scores.
    groups
        Feature groups that the score uses; empty if nothing is scored.
    use, top
        `WorkItem.anomaly` and `WorkItem.top`.
    names
        The survey's names of its labels.
    """
    results = [part.result for part in survey.parts]
    answers, anomaly = AnswerStatistics.of(results, names), None
    if groups:
        classes = has_classes(all_outputs(results))
        anomaly = {
            "use": use,
            "features": dict(groups),
            "detection": [] if classes else merge.detections(survey, names),
        }
    return Findings(
        redshift=answers.with_coverage(merge.redshifts(survey)),
        anomaly=anomaly,
        top=merge.top_list(survey, top, names),
        rows=survey.rows,
        repeated_ids=merge.repeated_ids(survey),
        classification=answers.classes(),
        distributions=answers.distributions(),
    )


def dump(value: Any) -> bytes:
    """Strict JSON text: infinities and NaN become null."""
    return json_bytes(strict(value), allow_nan=False)


def strict(value: Any) -> Any:
    """The value with infinities and NaN replaced by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(entry) for entry in value]
    return value
