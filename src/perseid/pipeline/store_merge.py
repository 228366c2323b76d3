"""Merge what the ranks left in the store; of a large survey, only the scores are held in memory.

First the statistics of all partitions are merged, then every rank's objects are scored against
them. The rows of a small survey stay in memory and are written as one file. Those of a large survey
are read a second time, without features, once the anomaly ranks of all scores are known, and each
block of ranks becomes one part of the catalogue.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perseid.pipeline import layout, merge, rank_outputs
from perseid.pipeline.catalogue_limits import LIMITS, CatalogueLimits
from perseid.pipeline.catalogue_reader import retire_parts
from perseid.pipeline.columns import PartitionResult
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.publish import CatalogueRows, CatalogueSchema, findings, publish_catalogue
from perseid.pipeline.rank_outputs import BrokenRankError
from perseid.pipeline.rankfiles import temporary_folder
from perseid.pipeline.repeated_ids import IdSpill
from perseid.pipeline.stored import Findings, Records, StoredRecord
from perseid.pipeline.survey_statistics import SurveyStatistics, ranker
from perseid.science import Metric, Partial
from perseid.science.ranks import Scores
from perseid.storage import Storage
from perseid.survey.kinds import stored_label_names

WHO = "summarize"
"""Name of this step in errors about the temporary folder."""
OTHER_FEATURES = "its model scores by other features than the others'"
Groups = Mapping[str, int]


def publish_from_store(
    storage: Storage, records: Records, manifest: Manifest, limits: CatalogueLimits = LIMITS
) -> tuple[Findings, Mapping[int, str]]:
    """Merge these ranks and write the catalogue.

    Returns
    -------
    The run's findings, and one sentence for each rank whose objects are broken. Such a rank is left
    out, as if it had left no record.
    """
    left, broken = dict(records), dict[int, str]()
    # A broken rank has changed the statistics of all others, so the merge starts over without it.
    while True:
        try:
            groups, metric, others = _metric(storage, left, manifest)
            broken |= dict.fromkeys(others, OTHER_FEATURES)
            left = {rank: record for rank, record in left.items() if rank not in others}
            rows = sum(map(_rows, left.values()))
            survey = _StoredSurvey(storage, left, manifest, groups, metric, limits)
            return survey.as_file() if rows <= limits.single_file else survey.as_parts(), broken
        except BrokenRankError as error:
            broken[error.rank] = error.reason
            del left[error.rank]


def _metric(
    storage: Storage, records: Records, manifest: Manifest
) -> tuple[Groups, Metric | None, set[int]]:
    """The features of the score, the survey's metric, and the ranks that score by other
    features."""
    places = {ref.key: place for place, ref in enumerate(manifest.partitions)}
    groups: dict[str, int] = {}
    whole, without, others = Partial({}), set[int](), set[int]()
    for rank, stamp, parts in rank_outputs.stream_moments(storage, records):
        groups = groups or dict(stamp.groups)
        if not stamp.groups:
            without.add(rank)
        elif dict(stamp.groups) != groups:
            others.add(rank)
        else:
            whole = whole.join(Partial.of((places[key], part) for key, part in parts))
    return groups, merge.survey_metric(whole, groups), others | (without if groups else set())


@dataclass(frozen=True, eq=False)
class _StoredSurvey:
    """Ranks that can be merged with each other, and how their objects are scored."""

    storage: Storage
    records: Records
    manifest: Manifest
    groups: Groups
    metric: Metric | None
    limits: CatalogueLimits

    def as_file(self) -> Findings:
        """Publish the catalogue as one file: all rows are held in memory, without their
        features."""
        survey = merge.rank([part for _, parts in self._scored() for part in parts])
        settings = self.manifest.settings
        publish_catalogue(self.storage, survey, self.manifest.run_id, WHO, settings.survey_columns)
        return findings(survey, self.groups, settings.anomaly, settings.top, self._names())

    def as_parts(self) -> Findings:
        """Publish one part per block of ranks: only the scores and a single rank are held in
        memory."""
        scores = np.empty(sum(map(_rows, self.records.values())))
        statistics, row = SurveyStatistics(), 0
        with temporary_folder(WHO) as folder:
            # Ids go to disk: those of a large survey may not fit into memory, whereas its scores
            # do.
            ids = IdSpill(folder)
            for _, parts in self._scored():
                statistics = statistics.join(SurveyStatistics.of(parts, self._names()))
                ids.add([part.result.object_id for part in parts])
                for part in parts:
                    scores[row : row + len(part.score)] = part.score
                    row += len(part.score)
            repeated = ids.repeats()
            top = self._write_parts(folder, scores, statistics)
        return statistics.findings(
            self.groups,
            self.manifest.settings.anomaly,
            self._names(),
            top=top,
            repeated_ids=repeated,
        )

    def _scored(self) -> Iterator[tuple[int, list[merge.Scored]]]:
        """Each rank's partitions with their scores, in rank order; as many ranks in parallel as
        there are cores."""
        metric = self.metric

        def score(
            found: tuple[int, list[PartitionResult]],
        ) -> tuple[int, list[merge.Scored]]:
            return found[0], [merge.score(result, metric) for result in found[1]]

        ranks = rank_outputs.stream_results(self.storage, self.records)
        return rank_outputs.ahead(score, ranks, os.cpu_count() or 1)

    def _write_parts(
        self, folder: Path, scores: Scores, statistics: SurveyStatistics
    ) -> list[dict[str, object]]:
        """Write all parts and return the entries of the top list, in any order."""
        blocks = list(self._blocks())
        keys = [layout.catalogue_part(number) for number in range(len(blocks))]
        retire_parts(self.storage, keys)
        rows = _RankedRows(statistics, scores, self.manifest.settings.top, self._names(),
                           self.limits)  # fmt: skip
        schema = CatalogueSchema(
            self.manifest.run_id,
            statistics.ids.common,
            self.manifest.settings.survey_columns,
            rows.percentile,
            statistics.outputs,
        )
        for key, block in zip(keys, blocks, strict=True):
            read = rank_outputs.stream_results(self.storage, block, features=False)
            results = (result for _, parts in read for result in parts)
            schema.write(folder / "part", map(rows.take, results))
            self.storage.put(key, folder / "part")
        return rows.top

    def _blocks(self) -> Iterator[Records]:
        """Consecutive ranks, grouped so that each group fills one part."""
        block: dict[int, StoredRecord] = {}
        rows = 0
        for rank in sorted(self.records):
            record = self.records[rank]
            if block and rows + _rows(record) > self.limits.part:
                yield block
                block, rows = {}, 0
            if record.has_data:
                block[rank], rows = record, rows + _rows(record)
        if block:
            yield block

    def _names(self) -> Mapping[int, str]:
        options = self.manifest.settings.options.to_json()
        return stored_label_names(options, self.manifest.data_url)


class _RankedRows:
    """Assigns scores, ranks and percentiles to partitions, which must be taken in the survey's
    order."""

    def __init__(
        self,
        statistics: SurveyStatistics,
        scores: Scores,
        top: int,
        names: Mapping[int, str],
        limits: CatalogueLimits,
    ) -> None:
        self._scores, self._ranker, self._row = scores, ranker(scores, limits), 0
        self._histogram, self._length, self._names = statistics.scores, top, names
        self.percentile = len(scores) > limits.exact_ranks
        self.top: list[dict[str, object]] = []

    def take(self, result: PartitionResult) -> CatalogueRows:
        """The rows of the next partition; those of them that belong in the top list are added to
        `top`."""
        part = merge.Scored(result, self._scores[self._row : self._row + len(result)])
        self._row += len(result)
        rank = self._ranker.take(part.score)
        self.top += merge.top_entries(part, rank, self._length, self._names)
        percentile = 100.0 * self._histogram.share_below(part.score) if self.percentile else None
        return CatalogueRows(part, rank, percentile)


def _rows(record: StoredRecord) -> int:
    """Number of rows in the partitions that a record names, which the rank's objects must have."""
    return sum(rows or 0 for _, rows in record.read or ())
