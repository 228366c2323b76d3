"""Mergeable statistics of a survey that is too large for any single process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.model.outputs import OutputColumn
from perseid.pipeline.answer_statistics import AnswerStatistics, has_classes
from perseid.pipeline.catalogue_limits import CatalogueLimits
from perseid.pipeline.ids import IdKinds
from perseid.pipeline.merge import Scored, by_rank
from perseid.pipeline.stored import Findings
from perseid.pipeline.tables import all_outputs
from perseid.science.detection_statistics import DetectionStatistics
from perseid.science.histogram import Histogram
from perseid.science.ranks import AllRanks, FirstRanks, Ranker, Scores
from perseid.science.redshift_statistics import RedshiftStatistics
from perseid.survey.kinds import label_name


@dataclass(frozen=True, eq=False)
class SurveyStatistics:
    """Statistics of some of a survey's scored partitions."""

    rows: int = 0
    scores: Histogram = field(default_factory=lambda: Histogram.of([]))
    redshift: RedshiftStatistics = field(default_factory=RedshiftStatistics)
    """Statistics of partitions with spectroscopic redshifts."""
    known_redshifts: int = 0
    """Finite spectroscopic redshifts."""
    detection: DetectionStatistics = field(default_factory=DetectionStatistics)
    """Statistics of rows with a label."""
    ids: IdKinds = field(default_factory=IdKinds)
    outputs: tuple[OutputColumn, ...] = ()
    """Columns of the model, in order; those of several models if the user let them differ."""
    answers: AnswerStatistics = field(default_factory=AnswerStatistics)

    @classmethod
    def of(cls, parts: Sequence[Scored], names: Mapping[int, str]) -> SurveyStatistics:
        """Compute the statistics of these partitions; `names` are the survey's names of its
        labels."""
        known = [
            (one.result.z_pred, np.asarray(one.result.z_spec))
            for one in parts
            if one.result.z_pred is not None and one.result.z_spec is not None
        ]
        z_spec = _joined([spectroscopic for _, spectroscopic in known])
        labeled = [(p.score, p.result.label) for p in parts if p.result.label is not None]
        present = ~_joined([np.ma.getmaskarray(label) for _, label in labeled]).astype(bool)
        labels = _joined([np.ma.getdata(label) for _, label in labeled])
        scores = _joined([score for score, _ in labeled])
        ids = IdKinds()
        for part in parts:
            ids = ids.join(IdKinds.of(part.result.object_id))
        return cls(
            rows=sum(len(part.score) for part in parts),
            scores=Histogram.of(_joined([part.score for part in parts])),
            redshift=RedshiftStatistics.of(_joined([predicted for predicted, _ in known]), z_spec),
            known_redshifts=int(np.count_nonzero(np.isfinite(z_spec))),
            detection=DetectionStatistics.of(scores[present], labels[present]),
            ids=ids,
            outputs=all_outputs(part.result for part in parts),
            answers=AnswerStatistics.of((part.result for part in parts), names),
        )

    def join(self, other: SurveyStatistics) -> SurveyStatistics:
        """Merge the statistics of two sets of partitions."""
        return SurveyStatistics(
            self.rows + other.rows,
            self.scores.join(other.scores),
            self.redshift.join(other.redshift),
            self.known_redshifts + other.known_redshifts,
            self.detection.join(other.detection),
            self.ids.join(other.ids),
            self.outputs + tuple(one for one in other.outputs if one not in self.outputs),
            self.answers.join(other.answers),
        )

    def findings(
        self,
        groups: Mapping[str, int],
        use: str,
        names: Mapping[int, str],
        *,
        top: Sequence[dict[str, object]],
        repeated_ids: int,
    ) -> Findings:
        """Like `publish.findings`; `top` lists the most anomalous objects in any order."""
        kinds = {label: label_name(label, names) for label in self.detection.scores}
        found = [one.to_json() for one in self.detection.detections(kinds)]
        # For a classifier the labels are its classes, not anomalies.
        if has_classes(self.outputs):
            found = []
        redshift = self.redshift.metrics().to_json() if self.known_redshifts else None
        anomaly = {"use": use, "features": dict(groups), "detection": found} if groups else None
        return Findings(
            redshift=self.answers.with_coverage(redshift),
            anomaly=anomaly,
            top=by_rank(top),
            rows=self.rows,
            repeated_ids=repeated_ids,
            classification=self.answers.classes(),
            distributions=self.answers.distributions(),
        )


def ranker(scores: Scores, limits: CatalogueLimits) -> Ranker:
    """A function that gives the ranks of rows with these scores: of all rows, or only of the first
    ones in a large survey."""
    if len(scores) <= limits.exact_ranks:
        return AllRanks(scores)
    return FirstRanks(scores, limits.ranked)


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0)
