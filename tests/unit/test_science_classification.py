"""Confusion matrix, per-class scores and reliability, against scikit-learn; counts add up."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from perseid.errors import BadInputError
from perseid.science import ClassificationCounts

pytestmark = pytest.mark.numbers
CLASSES = ("disk", "round", "edge-on", "merger")


def sample(n=500, seed=2):
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.full(len(CLASSES), 0.6), n)
    label = np.array([random.choice(len(CLASSES), p=row) for row in p], np.int64)
    return p.astype(np.float32), label


def test_against_scikit_learn():
    p, label = sample()
    counts = ClassificationCounts.of(p, label, CLASSES)
    called = p.argmax(axis=1)
    assert counts.confusion.tolist() == confusion_matrix(label, called).tolist()
    assert counts.accuracy() == pytest.approx(accuracy_score(label, called), abs=1e-15)
    expected = precision_recall_fscore_support(label, called)
    for place, scores in enumerate(counts.by_class()):
        got = (scores.precision, scores.recall, scores.f1, scores.n)
        assert got == pytest.approx([column[place] for column in expected])


def test_reliability_of_calibrated_probabilities():
    p, label = sample(40_000)
    counts = ClassificationCounts.of(p, label, CLASSES)
    points = [point for point in counts.reliability() if point.n > 300]
    assert len(points) > 8
    for point in points:
        assert point.low <= point.confidence <= point.high
        assert point.accuracy == pytest.approx(point.confidence, abs=4 * (0.25 / point.n) ** 0.5)
    assert counts.calibration_error() < 0.02
    sure = np.where(p == p.max(axis=1, keepdims=True), 1.0, 0.0)
    assert ClassificationCounts.of(sure, label, CLASSES).calibration_error() > 0.2


@pytest.mark.parametrize("cuts", [(250,), (1, 2, 3), (100, 400)])
def test_counts_of_parts_add_up_to_the_bit(cuts):
    p, label = sample()
    whole = ClassificationCounts.of(p, label, CLASSES)
    parts = [
        ClassificationCounts.of(rows, labels, CLASSES)
        for rows, labels in zip(np.split(p, cuts), np.split(label, cuts), strict=True)
    ]
    total = ClassificationCounts.empty(CLASSES)
    for part in reversed(parts):
        total = total.merge(part)
    for name, value in vars(whole).items():
        assert np.array_equal(getattr(total, name), value), name


def test_rows_without_prediction_or_class_are_left_out():
    p = [[0.5, 0.5], [np.nan, np.nan], [0.1, 0.9], [1.0, 0.0]]
    counts = ClassificationCounts.of(p, [0, 0, 7, -1], ("a", "b"))
    assert (counts.n, counts.excluded) == (1, 3)
    none = ClassificationCounts.of(np.empty((0, 2)), [], ("a", "b"))
    assert none.n == 0
    assert np.isnan(none.accuracy())
    assert np.isnan(none.by_class()[0].recall)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(BadInputError, match="a row of 2 probabilities"):
        ClassificationCounts.of([[0.5, 0.5]], [0, 1], ("a", "b"))
    one = ClassificationCounts.empty(("a", "b"))
    with pytest.raises(BadInputError, match="cannot be added"):
        one.merge(ClassificationCounts.empty(("a", "c")))
