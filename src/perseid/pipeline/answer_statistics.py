"""Mergeable statistics of how good a model's classes, distributions and intervals are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.model.outputs import CLASS, OutputColumn
from perseid.pipeline.columns import PartitionResult
from perseid.pipeline.pdf_checks import CRPS, PIT
from perseid.science.classification import ClassificationCounts
from perseid.science.distribution_statistics import CoverageStatistics, DistributionStatistics
from perseid.science.distributions import Distributions

REDSHIFT = "z"
"""Prefix of the names of the redshift's quantile and interval columns."""


@dataclass(frozen=True, eq=False)
class AnswerStatistics:
    """Statistics of some of a survey's partitions. All sums are exact, so the order of merging does
    not matter."""

    classification: ClassificationCounts | None = None
    """Counts of labeled objects, if the model gives class probabilities."""
    distribution: DistributionStatistics = field(default_factory=DistributionStatistics)
    """Statistics of redshifts that the model gives as quantiles or PDFs."""
    coverage: CoverageStatistics = field(default_factory=CoverageStatistics)
    """Coverage of the intervals around redshifts."""

    @classmethod
    def of(cls, results: Iterable[PartitionResult], names: Mapping[int, str]) -> AnswerStatistics:
        """Compute the statistics of these partitions; `names` maps labels to the survey's names of
        them."""
        whole = cls()
        for result in results:
            one = cls(_classification(result, names), _distribution(result), _coverage(result))
            whole = whole.join(one)
        return whole

    def join(self, other: AnswerStatistics) -> AnswerStatistics:
        """Merge the statistics of two sets of partitions. If their models have different classes,
        which only happens in a mixed run, the class counts of the first set are kept."""
        one, two = self.classification, other.classification
        if one is not None and two is not None and one.classes == two.classes:
            one = one.merge(two)
        return AnswerStatistics(
            one or two,
            self.distribution.join(other.distribution),
            self.coverage.join(other.coverage),
        )

    def with_coverage(self, redshift: Mapping[str, object] | None) -> Mapping[str, object] | None:
        """The redshift metrics, with the coverage of their intervals added if the model gives
        intervals."""
        if redshift is None or not self.coverage.n:
            return redshift
        return {**redshift, "coverage": self.coverage.coverage()}

    def classes(self) -> Mapping[str, object] | None:
        """The summary's ``classification``; None if no object has both a label and class
        probabilities."""
        counts = self.classification
        if counts is None or not counts.n:
            return None
        return {
            "classes": list(counts.classes),
            "n": counts.n,
            "excluded": counts.excluded,
            "accuracy": counts.accuracy(),
            "calibration_error": counts.calibration_error(),
            "confusion": counts.confusion.tolist(),
            "by_class": [asdict(one) for one in counts.by_class()],
            "reliability": [asdict(one) for one in counts.reliability()],
        }

    def distributions(self) -> Mapping[str, object] | None:
        """The summary's ``distributions``; None if no object has both a redshift and a predicted
        distribution."""
        return self.distribution.to_json() if self.distribution.n else None


def has_classes(outputs: Iterable[OutputColumn]) -> bool:
    """Whether the model is a classifier, so that the survey's labels are its classes, not
    anomalies."""
    return any(one.kind == CLASS for one in outputs)


def class_of_labels(
    label: NDArray[Any], classes: tuple[str, ...], names: Mapping[int, str]
) -> NDArray[np.int64]:
    """(n,): the index of each label's class; -1 for other or missing labels.

    If the survey's label names match the model's class names, labels are matched by name; otherwise
    a label is taken to be the index of its class.

    Examples
    --------
    >>> class_of_labels(np.array([3, 5, 1]), ("disk", "round"), {3: "round", 5: "disk"}).tolist()
    [1, 0, -1]
    """
    bare = np.asarray(np.ma.getdata(label), np.int64)
    places = {number: classes.index(name) for number, name in names.items() if name in classes}
    if not places:
        places = {place: place for place in range(len(classes))}
    found = np.full(bare.shape, -1, np.int64)
    for number, place in places.items():
        found[bare == number] = place
    found[np.ma.getmaskarray(label)] = -1
    return found


def _classification(
    result: PartitionResult, names: Mapping[int, str]
) -> ClassificationCounts | None:
    called = next((one for one in result.output_columns if one.kind == CLASS), None)
    if called is None or result.label is None:
        return None
    columns = _of_output(result, "probabilities", called.output)
    probabilities = np.stack([result.outputs[one.name] for one in columns], axis=1)
    truth = class_of_labels(result.label, called.classes, names)
    return ClassificationCounts.of(probabilities, truth, called.classes)


def _distribution(result: PartitionResult) -> DistributionStatistics:
    checked = {one.kind: one.name for one in result.output_columns if one.kind in (PIT, CRPS)}
    if checked:
        if result.z_spec is None:
            return DistributionStatistics()
        return DistributionStatistics.of_values(
            result.outputs[checked[PIT]], result.outputs[checked[CRPS]]
        )
    columns = [
        one
        for one in result.output_columns
        if one.kind == "quantiles" and one.name.startswith(f"{REDSHIFT}_q")
    ]
    columns = [one for one in columns if one.output == columns[0].output]
    levels = [one.level for one in columns if one.level is not None]
    if result.z_spec is None or len(levels) < 2 or len(levels) != len(columns):
        return DistributionStatistics()
    quantiles = np.stack([result.outputs[one.name] for one in columns], axis=1)
    return DistributionStatistics.of(Distributions.of_quantiles(quantiles, levels), result.z_spec)


def _coverage(result: PartitionResult) -> CoverageStatistics:
    """Coverage of each pair of columns that holds the two ends of a redshift interval."""
    ends = [
        one
        for one in result.output_columns
        if one.kind == "interval" and one.name.startswith((f"{REDSHIFT}_lo", f"{REDSHIFT}_hi"))
    ]
    if result.z_spec is None or not ends:
        return CoverageStatistics()
    values = {one.level: result.outputs[one.name] for one in ends if one.level is not None}
    intervals = {
        round(1.0 - 2.0 * level, 9): (low, _mirrored(values, level))
        for level, low in values.items()
        if level < 0.5
    }
    return CoverageStatistics.of(intervals, result.z_spec)


def _mirrored(values: Mapping[float, NDArray[Any]], level: float) -> NDArray[Any]:
    """Values at the upper end of the interval whose lower end is at this level."""
    return next(v for one, v in values.items() if abs(one - (1.0 - level)) < 1e-9)


def _of_output(result: PartitionResult, kind: str, output: str) -> list[OutputColumn]:
    return [one for one in result.output_columns if (one.kind, one.output) == (kind, output)]
