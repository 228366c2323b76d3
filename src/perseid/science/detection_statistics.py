"""How well a score finds labeled anomalies, from histograms that merge: see `detection`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from perseid.science.detection import Detection
from perseid.science.histogram import Histogram


@dataclass(frozen=True, eq=False)
class DetectionStatistics:
    """Histograms of the scores of each label's objects.

    Scores in the same bin (0.1 % wide) count as equal; otherwise the figures equal those of
    `detection`.
    """

    scores: Mapping[int, Histogram] = field(default_factory=dict)
    """By label; 0 for plain objects."""

    @classmethod
    def of(cls, scores: ArrayLike, labels: ArrayLike) -> DetectionStatistics:
        """Count (n,) scores by label; rows without a finite score are left out."""
        score, label = np.asarray(scores, np.float64), np.asarray(labels)
        good = np.isfinite(score)
        score, label = score[good], label[good]
        return cls({int(one): Histogram.of(score[label == one]) for one in np.unique(label)})

    def join(self, other: DetectionStatistics) -> DetectionStatistics:
        """Statistics of both sets of objects."""
        joined = dict(self.scores)
        for label, part in other.scores.items():
            joined[label] = joined[label].join(part) if label in joined else part
        return DetectionStatistics(joined)

    def detections(self, kinds: Mapping[int, str]) -> list[Detection]:
        """``all`` first, then each kind against the plain objects, in the order of the labels."""
        plain = self.scores.get(0, Histogram.of([]))
        labels = [label for label in sorted(self.scores) if label != 0 and self.scores[label].total]
        if not labels:
            return []
        every = Histogram.sum(self.scores[label] for label in labels)
        named = [(kinds[label], self.scores[label]) for label in labels]
        return [_one(name, found, plain) for name, found in [("all", every), *named]]


def _one(kind: str, found: Histogram, plain: Histogram) -> Detection:
    n, others = found.total, plain.total
    lower = np.cumsum(plain.counts) - plain.counts / 2.0
    pairs = float(np.sum(found.counts * lower))
    # One threshold per bin, from the highest score down.
    hits = np.cumsum(found.counts[::-1])
    taken = hits + np.cumsum(plain.counts[::-1])
    steps = found.counts[::-1] / n
    precision = float(np.sum(steps * hits / np.maximum(taken, 1)))
    return Detection(kind, n, others, pairs / (n * others) if others else float("nan"), precision)
