"""Write the catalogue of a large run in a collective merge: each rank writes a part.

Only scores go to rank 0, which computes the anomaly rank of each row in the survey; the columns
stay on their ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perseid.comm.ops import Op
from perseid.pipeline import layout, merge
from perseid.pipeline.catalogue_limits import CatalogueLimits
from perseid.pipeline.catalogue_reader import retire_parts
from perseid.pipeline.exchange import Exchange
from perseid.pipeline.items import WorkItem
from perseid.pipeline.publish import CatalogueRows, CatalogueSchema
from perseid.pipeline.rankfiles import temporary_folder
from perseid.pipeline.repeated_ids import buckets, count_repeats
from perseid.pipeline.stored import Findings
from perseid.pipeline.survey_statistics import SurveyStatistics, ranker
from perseid.science.histogram import Histogram
from perseid.science.ranks import Ranks, Scores
from perseid.storage import Storage
from perseid.survey.kinds import stored_label_names

JOIN = Op.custom(SurveyStatistics.join, commutative=False, associative=True)


@dataclass(frozen=True, eq=False)
class CollectiveParts:
    """Everything that one rank needs to take part in writing the catalogue."""

    comm: Exchange
    item: WorkItem
    storage: Storage
    limits: CatalogueLimits

    def publish(
        self, scored: Sequence[merge.Scored], groups: Mapping[str, int]
    ) -> tuple[Findings, int] | None:
        """Write this rank's part; on rank 0, return the findings and the total size of all parts in
        bytes."""
        comm, item = self.comm, self.item
        names = stored_label_names(item.options.to_json(), item.data_url)
        statistics = comm.reduce(SurveyStatistics.of(scored, names), JOIN)
        ranks, schema, histogram = self._ranks(scored, statistics)
        size = self._write(scored, ranks, schema, histogram)
        entries = [merge.top_entries(part, rank, item.top, names)
                   for part, rank in zip(scored, ranks, strict=True)]  # fmt: skip
        found = comm.gather((size, [entry for one in entries for entry in one]))
        repeated = self._repeated_ids(scored)
        if statistics is None or found is None:
            return None
        top = [entry for _, one in found for entry in one]
        findings = statistics.findings(groups, item.anomaly, names, top=top, repeated_ids=repeated)
        return findings, sum(size for size, _ in found)

    def _ranks(
        self, scored: Sequence[merge.Scored], statistics: SurveyStatistics | None
    ) -> tuple[list[Ranks], CatalogueSchema, Histogram | None]:
        """Anomaly ranks of each partition's rows, and the schema that all parts share."""
        scores = self.comm.gather(_joined([part.score for part in scored]))
        ranks, common = None, None
        if statistics is not None and scores is not None:
            rank_of = ranker(np.concatenate(scores), self.limits)
            ranks = [rank_of.take(of_rank) for of_rank in scores]
            many = statistics.rows > self.limits.exact_ranks
            item, ids = self.item, statistics.ids.common
            schema = CatalogueSchema(
                item.run_id, ids, item.survey_columns, many, statistics.outputs
            )
            common = schema, statistics.scores if many else None
            written = [layout.catalogue_part(r) for r, of_rank in enumerate(scores) if len(of_rank)]
            # Only rank 0 deletes, and before any part is written: no rank may delete what another
            # has just put.
            retire_parts(self.storage, written)
        schema, histogram = self.comm.bcast(common)  # no rank writes its part before this broadcast
        mine = self.comm.scatter(ranks)
        ends = np.cumsum([len(part.score) for part in scored])
        return np.split(mine, ends[:-1]) if scored else [], schema, histogram

    def _write(
        self,
        scored: Sequence[merge.Scored],
        ranks: Sequence[Ranks],
        schema: CatalogueSchema,
        histogram: Histogram | None,
    ) -> int:
        """Write this rank's part and return its size in bytes, 0 if the rank has no rows."""
        if not any(len(part.score) for part in scored):
            return 0
        rows = [
            CatalogueRows(
                part, rank, None if histogram is None else 100.0 * histogram.share_below(part.score)
            )
            for part, rank in zip(scored, ranks, strict=True)
        ]
        with temporary_folder(f"rank {self.item.rank}") as folder:
            size = schema.write(folder / "part", rows)
            self.storage.put(layout.catalogue_part(self.item.rank), folder / "part")
        return size

    def _repeated_ids(self, scored: Sequence[merge.Scored]) -> int:
        """On rank 0: count repeated ids. Ids are gathered in several rounds, so that no rank holds
        all of them."""
        total = 0
        for keys in buckets(part.result.object_id for part in scored):
            every = self.comm.gather(keys)
            if every is not None:
                total += count_repeats(np.concatenate(every))
        return total


def _joined(scores: Sequence[Scores]) -> Scores:
    return np.concatenate(scores) if scores else np.empty(0)
