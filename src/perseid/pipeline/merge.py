"""Each object against the whole survey: merged statistics, scores, ranks, and the top list.

These are plain functions of the ranks' results, whether those came through the store or through a
communicator. Partitions are processed in natural order, so the transport does not change the
result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.pipeline.columns import PartitionResult
from perseid.pipeline.ids import as_kind, common_kind
from perseid.pipeline.tables import joined
from perseid.science import Metric, Moments, Partial, detection, ranking, redshift_metrics
from perseid.survey.kinds import label_name


@dataclass(frozen=True, eq=False)
class Scored:
    """One partition with its scores; its features are no longer held."""

    result: PartitionResult
    score: NDArray[np.float64]
    """Anomaly scores (n,), NaN where a row has none."""


@dataclass(frozen=True, eq=False)
class ScoredSurvey:
    """All partitions that could be read, in natural order."""

    parts: tuple[Scored, ...]
    rank: NDArray[np.int64]
    """Anomaly ranks (rows,): 1 for the highest score of the survey, 0 where there is no score."""

    @property
    def rows(self) -> int:
        """Number of objects in all partitions."""
        return len(self.rank)

    def ranks(self) -> Iterable[NDArray[np.int64]]:
        """`rank`, split by partition."""
        ends = np.cumsum([0, *(len(part.result) for part in self.parts)])
        return [self.rank[start:end] for start, end in pairwise(ends)]


def survey_metric(parts: Partial | Sequence[Moments], groups: Mapping[str, int]) -> Metric | None:
    """The metric of an object's distance from the whole survey, computed from all partitions'
    statistics.

    The statistics are given per partition, in natural order. None if nothing is scored.
    """
    whole = parts if isinstance(parts, Partial) else Partial.of(enumerate(parts))
    return Metric.of(whole.total(), groups) if whole.nodes else None


def score(result: PartitionResult, metric: Metric | None) -> Scored:
    """Anomaly scores of a partition's objects."""
    if result.features is None or metric is None:
        values = np.full(len(result), np.nan)
    else:
        values = metric.distance(result.features)
    # Features take ten times the memory of everything else and are not needed after scoring.
    return Scored(replace(result, features=None), values)


def rank(parts: Sequence[Scored]) -> ScoredSurvey:
    """Anomaly ranks over all partitions, given in natural order; ties are broken by partition and
    row."""
    sizes = [len(part.result) for part in parts]
    scores = joined([part.score for part in parts], sizes, np.nan)
    partition = np.repeat(np.arange(len(sizes)), sizes)
    # Ties are broken by position, so that ranks do not depend on the sort or on the world size.
    row = np.concatenate([np.arange(n) for n in sizes] or [np.empty(0, np.int64)])
    return ScoredSurvey(tuple(parts), ranking(scores, partition, row))


def top_list(
    survey: ScoredSurvey, length: int, names: Mapping[int, str]
) -> list[dict[str, object]]:
    """The objects with the highest scores, highest first; `names` are the survey's names of its
    labels."""
    entries = [
        entry
        for part, ranks in zip(survey.parts, survey.ranks(), strict=True)
        for entry in top_entries(part, ranks, length, names)
    ]
    return by_rank(entries)


def by_rank(entries: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    """Sort entries of the top list, highest score first."""
    return sorted(entries, key=lambda entry: int(str(entry["anomaly_rank"])))


def top_entries(
    part: Scored, ranks: NDArray[np.int64], length: int, names: Mapping[int, str]
) -> list[dict[str, object]]:
    """One partition's entries in the top list, given the anomaly ranks (n,) of its rows."""
    chosen = np.flatnonzero((ranks > 0) & (ranks <= length)).tolist()
    return [_entry(part, row, int(ranks[row]), names) for row in chosen]


def repeated_ids(survey: ScoredSurvey) -> int:
    """Number of objects whose id also belongs to an earlier object."""
    found = [part.result.object_id for part in survey.parts]
    columns = [column for column in found if column is not None]
    kind = common_kind(columns)
    known = [as_kind(column, kind)[~np.ma.getmaskarray(column)] for column in columns]
    every = np.concatenate([np.ma.getdata(ids) for ids in known] or [np.empty(0, np.int64)])
    return len(every) - len(np.unique(every))


def redshifts(survey: ScoredSurvey) -> Mapping[str, object] | None:
    """Redshift metrics over all objects with a known redshift; None if there are none."""
    known = [
        (part.result.z_pred, part.result.z_spec)
        for part in survey.parts
        if part.result.z_pred is not None and part.result.z_spec is not None
    ]
    if not known:
        return None
    z_pred = np.concatenate([predicted for predicted, _ in known])
    z_spec = np.concatenate([spectroscopic for _, spectroscopic in known])
    return redshift_metrics(z_pred, z_spec).to_json() if np.isfinite(z_spec).any() else None


def detections(survey: ScoredSurvey, names: Mapping[int, str]) -> list[dict[str, object]]:
    """How well the score finds labeled anomalies: all labels together, then each label on its own.

    `names` are the survey's names of its labels.
    """
    labeled = [(p.score, p.result.label) for p in survey.parts if p.result.label is not None]
    if not labeled:
        return []
    present = np.concatenate([~np.ma.getmaskarray(label) for _, label in labeled])
    scores = np.concatenate([score for score, _ in labeled])[present]
    labels = np.concatenate([np.ma.getdata(label) for _, label in labeled])[present]
    kinds = {int(label): label_name(int(label), names) for label in np.unique(labels)}
    return [found.to_json() for found in detection(scores, labels, kinds)]


def _entry(part: Scored, row: int, place: int, names: Mapping[int, str]) -> dict[str, object]:
    result = part.result

    def value(array: NDArray[Any] | None) -> Any:
        if array is None or np.ma.is_masked(array[row]):
            return None
        return array[row].item()

    label = value(result.label)
    return {
        "anomaly_rank": place,
        "anomaly_score": float(part.score[row]),
        "object_id": value(result.object_id),
        "partition": result.key,
        "row": row,
        "z_pred": value(result.z_pred),
        "z_spec": value(result.z_spec),
        "label": label,
        "kind": None if label is None else label_name(label, names),
    }
