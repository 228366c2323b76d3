"""Statistics of parts of a survey join to those of the whole, as near as they promise."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from perseid.pipeline.ids import IdKinds, common_kind
from perseid.pipeline.repeated_ids import IdSpill, buckets, count_repeats
from perseid.science import detection, ranking, redshift_metrics
from perseid.science.detection_statistics import DetectionStatistics
from perseid.science.histogram import Histogram, bins, weighted_median
from perseid.science.ranks import AllRanks, FirstRanks
from perseid.science.redshift_statistics import RedshiftStatistics

CUTS = [[], [3], [0, 1, 500, 501], list(range(0, 1000, 7))]


def scores_with_ties(seed: int = 1, rows: int = 1000) -> np.ndarray:
    random = np.random.default_rng(seed)
    scores = np.round(random.lognormal(size=rows), 1)
    scores[random.random(rows) < 0.05] = np.nan
    scores[::97] = 0.0
    return scores


@pytest.mark.parametrize("cuts", CUTS)
def test_ranks_by_blocks_are_those_of_all_rows(cuts):
    scores = scores_with_ties()
    expected = ranking(scores, np.zeros(1000), np.arange(1000))
    every, first = AllRanks(scores), FirstRanks(scores, 60)
    got = [(every.take(part), first.take(part)) for part in np.split(scores, cuts)]
    np.testing.assert_array_equal(np.concatenate([one for one, _ in got]), expected)
    np.testing.assert_array_equal(
        np.concatenate([one for _, one in got]), np.where(expected <= 60, expected, 0)
    )


@pytest.mark.parametrize("scores", [[], [np.nan, np.nan], [1.0], [2.0, np.nan, 2.0]])
def test_ranks_of_few_rows(scores):
    scores = np.array(scores, float)
    expected = ranking(scores, np.zeros(len(scores)), np.arange(len(scores)))
    np.testing.assert_array_equal(AllRanks(scores).take(scores), expected)
    np.testing.assert_array_equal(FirstRanks(scores, 100).take(scores), expected)


def test_bins_keep_the_order_and_a_thousandth():
    values = np.sort(np.concatenate([[0.0, np.inf, 1e-300], np.random.default_rng(1).lognormal(
        sigma=5, size=5000)]))  # fmt: skip
    number = bins(values)
    assert (np.diff(number) >= 0).all()
    for bin_ in np.unique(number)[1:-1]:
        inside = values[number == bin_]
        assert inside[-1] <= inside[0] * (1 + 2**-9)


def test_the_share_below_a_score():
    scores = scores_with_ties()
    whole = reduce(Histogram.join, map(Histogram.of, np.split(scores, CUTS[2])))
    share = whole.share_below(scores)
    assert np.array_equal(np.isnan(share), np.isnan(scores))
    good = scores[~np.isnan(scores)]
    for value in np.unique(good):
        exact = np.mean(good < value) + np.mean(good == value) / 2
        assert share[scores == value][0] == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("cuts", CUTS)
def test_redshift_metrics_of_parts(cuts):
    random = np.random.default_rng(2)
    z_spec = random.uniform(0, 0.6, 1000)
    z_pred = z_spec + random.standard_cauchy(1000) * 0.01 + 0.003
    z_pred[::50], z_spec[5::80] = np.nan, np.nan
    parts = zip(np.split(z_pred, cuts), np.split(z_spec, cuts), strict=True)
    got = reduce(RedshiftStatistics.join, [RedshiftStatistics.of(*part) for part in parts])
    expected = redshift_metrics(z_pred, z_spec).to_json()
    for name, value in got.metrics().to_json().items():
        assert value == pytest.approx(expected[name], rel=2e-3 if name == "nmad" else 1e-12), name


def test_redshift_metrics_of_nothing():
    nothing = RedshiftStatistics.of([np.nan], [0.1]).join(RedshiftStatistics())
    metrics = nothing.metrics()
    assert (metrics.n, metrics.excluded) == (0, 1)
    assert np.isnan(metrics.nmad)


@pytest.mark.parametrize("cuts", CUTS)
def test_detection_of_parts(cuts):
    scores = scores_with_ties()
    label = np.random.default_rng(3).choice([0, 0, 0, 2, 5], 1000)
    scores = scores + (label == 5)
    kinds = {2: "ring", 5: "merger", 7: "nothing of it"}
    parts = zip(np.split(scores, cuts), np.split(label, cuts), strict=True)
    got = reduce(DetectionStatistics.join, [DetectionStatistics.of(*part) for part in parts])
    for one, expected in zip(got.detections(kinds), detection(scores, label, kinds), strict=True):
        assert (one.kind, one.n, one.plain) == (expected.kind, expected.n, expected.plain)
        assert one.roc_auc == pytest.approx(expected.roc_auc, abs=1e-3)
        assert one.average_precision == pytest.approx(expected.average_precision, abs=5e-3)
    assert DetectionStatistics().detections({}) == []


@pytest.mark.parametrize(("values", "counts", "median"), [
    ([3.0, 1.0, 2.0], [1, 1, 1], 2.0), ([1.0, 2.0], [1, 1], 1.5), ([5.0, 1.0], [1, 9], 1.0),
])  # fmt: skip
def test_a_weighted_median(values, counts, median):
    assert weighted_median(np.array(values), np.array(counts)) == median


IDS = {
    "integers": [np.array([1, 5, 5]), None, np.array([5, 7])],
    "negative and unsigned": [np.array([-1, 3]), np.array([2**64 - 2, 3], np.uint64)],
    "text and integers": [np.array(["7", "07", "b"]), np.array([7, 8]), np.array(["b", "Ä"])],
    "missing": [np.ma.masked_array([4, 4, 4], mask=[1, 0, 0])],
    "none": [None],
}


@pytest.mark.parametrize("name", IDS)
def test_repeated_ids_by_buckets(tmp_path, name):
    from perseid.pipeline.merge import Scored, rank, repeated_ids

    columns = IDS[name]
    survey = rank([Scored(_result(ids), np.zeros(3)) for ids in columns])
    spill = IdSpill(tmp_path)
    for ids in columns:
        spill.add([ids])
    assert spill.repeats() == repeated_ids(survey)
    assert list(tmp_path.iterdir()) == []
    assert sum(map(count_repeats, buckets(columns))) == repeated_ids(survey)
    kinds = reduce(IdKinds.join, map(IdKinds.of, columns), IdKinds())
    assert kinds.common is common_kind(columns)


def _result(ids):
    from perseid.pipeline.columns import PartitionResult

    return PartitionResult("1.pt", np.zeros(3, np.float32), np.zeros(3, np.int32), object_id=ids)
