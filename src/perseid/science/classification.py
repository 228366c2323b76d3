"""Quality of class probabilities: confusion matrix, per-class scores, reliability diagram.

Everything is computed from counts (`ClassificationCounts`), which can be added in any order: each
rank counts its own objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInputError

RELIABILITY_BINS = 15
"""Bins of equal width in the probability of the predicted class, as in Guo et al. 2017
(arXiv 1706.04599), who define the expected calibration error with 15."""
PROBABILITY_UNIT = 2**40
"""Probabilities are summed as integer multiples of 2**-40, so that sums are exact in any order."""


@dataclass(frozen=True)
class ClassScores:
    """How well one class is separated from the others; NaN if a denominator is 0."""

    name: str
    n: int
    """Objects of the class."""
    precision: float
    """Fraction of the objects assigned to the class that belong to it."""
    recall: float
    """Fraction of the objects of the class that are assigned to it."""
    f1: float
    """Harmonic mean of precision and recall."""


@dataclass(frozen=True)
class ReliabilityBin:
    """One point of a reliability diagram."""

    low: float
    """Lower edge of the bin, in the probability of the predicted class."""
    high: float
    n: int
    """Objects in the bin."""
    confidence: float
    """Mean probability of the predicted class; NaN if n is 0."""
    accuracy: float
    """Fraction of the objects whose predicted class is correct; NaN if n is 0."""


@dataclass(frozen=True, eq=False)
class ClassificationCounts:
    """Counts of labeled objects with class probabilities; `merge` adds the counts of two sets."""

    classes: tuple[str, ...]
    """Names, in the order of the probabilities' columns."""
    confusion: NDArray[np.int64]
    """(classes, classes): objects of the row's class that are assigned to the column's class."""
    bin_n: NDArray[np.int64]
    """(bins,): objects by the probability of their predicted class."""
    bin_right: NDArray[np.int64]
    """(bins,): those of them whose predicted class is correct."""
    bin_units: NDArray[np.int64]
    """(bins,): sum of the probabilities of the predicted class, in units of 2**-40."""
    excluded: int
    """Objects left out because they have no prediction, or a label that is not a class."""

    @classmethod
    def empty(cls, classes: tuple[str, ...]) -> ClassificationCounts:
        """Counts of no objects, the neutral element of `merge`."""
        size, bins = len(classes), np.zeros(RELIABILITY_BINS, np.int64)
        return cls(classes, np.zeros((size, size), np.int64), bins, bins, bins, 0)

    @classmethod
    def of(
        cls, probabilities: ArrayLike, label: ArrayLike, classes: tuple[str, ...]
    ) -> ClassificationCounts:
        """Count objects.

        Parameters
        ----------
        probabilities
            (n, classes), each row summing to 1; rows with a NaN are left out and counted.
        label
            (n,) integers: the index of the true class in `classes`; others are left out and
            counted.
        classes
            Names in the order of the columns.

        Raises
        ------
        BadInputError
            The shapes do not match.

        Examples
        --------
        >>> counts = ClassificationCounts.of([[0.9, 0.1], [0.4, 0.6]], [0, 0], ("disk", "round"))
        >>> counts.confusion.tolist(), counts.accuracy()
        ([[1, 1], [0, 0]], 0.5)
        """
        p, truth = np.asarray(probabilities, np.float64), np.asarray(label)
        if p.ndim != 2 or p.shape[1] != len(classes) or truth.shape != p.shape[:1]:
            raise BadInputError(
                f"probabilities {p.shape} and labels {truth.shape} do not match: give a row of "
                f"{len(classes)} probabilities, one for each class, and one label per object"
            )
        good = np.isfinite(p).all(axis=1) & (truth >= 0) & (truth < len(classes))
        excluded = int(len(good) - good.sum())
        p, truth = p[good], truth[good].astype(np.int64)
        size = len(classes)
        if not len(p):
            none = cls.empty(classes)
            return cls(classes, none.confusion, none.bin_n, none.bin_n, none.bin_n, excluded)
        called = p.argmax(axis=1)
        confusion = np.bincount(truth * size + called, minlength=size * size).reshape(size, size)
        confidence = np.clip(p[np.arange(len(p)), called], 0.0, 1.0)
        # A probability of exactly 1 belongs to the last bin.
        place = np.minimum((confidence * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
        units = np.zeros(RELIABILITY_BINS, np.int64)
        np.add.at(units, place, np.rint(confidence * PROBABILITY_UNIT).astype(np.int64))
        bins = np.bincount(place, minlength=RELIABILITY_BINS)
        right = np.bincount(place[called == truth], minlength=RELIABILITY_BINS)
        return cls(classes, confusion, bins, right, units, excluded)

    def merge(self, other: ClassificationCounts) -> ClassificationCounts:
        """Counts of both sets of objects; raises `BadInputError` if the classes differ."""
        if self.classes != other.classes:
            raise BadInputError(
                f"counts of the classes {', '.join(self.classes)} and {', '.join(other.classes)} "
                "cannot be added: all ranks must run one model"
            )
        return ClassificationCounts(
            self.classes,
            self.confusion + other.confusion,
            self.bin_n + other.bin_n,
            self.bin_right + other.bin_right,
            self.bin_units + other.bin_units,
            self.excluded + other.excluded,
        )

    @property
    def n(self) -> int:
        """Number of counted objects."""
        return int(self.confusion.sum())

    def accuracy(self) -> float:
        """Fraction of the objects whose predicted class is correct; NaN if n is 0."""
        return _share(np.trace(self.confusion), self.n)

    def by_class(self) -> list[ClassScores]:
        """Precision, recall and F1 of each class, in the order of the classes."""
        found = []
        for place, name in enumerate(self.classes):
            right = self.confusion[place, place]
            called, true = self.confusion[:, place].sum(), self.confusion[place].sum()
            f1 = _share(2 * right, called + true)
            found.append(
                ClassScores(name, int(true), _share(right, called), _share(right, true), f1)
            )
        return found

    def reliability(self) -> list[ReliabilityBin]:
        """Points of the reliability diagram, empty bins included."""
        edges = np.linspace(0.0, 1.0, RELIABILITY_BINS + 1)
        return [
            ReliabilityBin(
                float(edges[i]),
                float(edges[i + 1]),
                int(n),
                _share(self.bin_units[i] / PROBABILITY_UNIT, n),
                _share(self.bin_right[i], n),
            )
            for i, n in enumerate(self.bin_n)
        ]

    def calibration_error(self) -> float:
        """Expected calibration error: mean of |accuracy - confidence| over objects."""
        gaps = np.abs(self.bin_right - self.bin_units / PROBABILITY_UNIT)
        return _share(gaps.sum(), self.n)


def _share(part: float | np.floating | np.integer, whole: float | np.integer) -> float:
    return float(part / whole) if whole else float("nan")
