"""Moments merge in any grouping; scores are Mahalanobis distances; AUC and AP as in sklearn."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from perseid.errors import BadInputError
from perseid.science import (
    Metric,
    Moments,
    Partial,
    average_precision,
    detection,
    group_columns,
    mahalanobis,
    ranking,
    roc_auc,
)

GROUPS = {"embedding": 4, "residual": 3}


def _features(n: int, d: int = 7, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mix = np.eye(d) + 0.6 * np.tri(d)
    mixed = rng.normal(size=(n, d)) @ mix + 100 * rng.normal(size=d)
    return mixed.astype(np.float32)


def _close(a: Moments, b: Moments) -> None:
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=1e-10, atol=1e-10 * max(a.count, 1))


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 300), max_size=12),
    seed=st.integers(0, 1000),
    pairs=st.randoms(use_true_random=False),
)
def test_merging_in_any_grouping_equals_the_whole(cuts, seed, pairs):
    features = _features(300, seed=seed)
    edges = sorted({0, 300, *cuts})
    parts = [Moments.of(features[a:b]) for a, b in itertools.pairwise(edges)]
    parts.append(Moments.empty(7))
    whole = Moments.of(features)
    _close(Moments.total(parts), whole)
    while len(parts) > 1:  # a random tree
        a = parts.pop(pairs.randrange(len(parts)))
        b = parts.pop(pairs.randrange(len(parts)))
        parts.append(a.merge(b))
    _close(parts[0], whole)


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 23), max_size=8), pairs=st.randoms(use_true_random=False))
def test_partials_give_the_same_bits_in_any_grouping(cuts, pairs):
    parts = [Moments.of(_features(9, seed=s)) for s in range(23)]
    whole = Partial.of(enumerate(parts)).total()
    _close(whole, Moments.of(np.concatenate([_features(9, seed=s) for s in range(23)])))
    edges = sorted({0, 23, *cuts})
    held = [Partial.of(enumerate(parts[a:b], a)) for a, b in itertools.pairwise(edges)]
    while len(held) > 1:  # a random tree, in any order
        a = held.pop(pairs.randrange(len(held)))
        b = held.pop(pairs.randrange(len(held)))
        held.append(a.join(b))
    total = held[0].total()
    assert total.mean.tobytes() == whole.mean.tobytes()
    assert total.scatter.tobytes() == whole.scatter.tobytes()
    assert len(held[0].nodes) == 4, "23 = 16 + 4 + 2 + 1"


def test_the_same_order_gives_the_same_bits():
    parts = [Moments.of(_features(50, seed=s)) for s in range(5)]
    a, b = Moments.total(parts), Moments.total(parts)
    assert a.mean.tobytes() == b.mean.tobytes()
    assert a.scatter.tobytes() == b.scatter.tobytes()


def test_moments_travel_bit_for_bit(tmp_path):
    moments = Moments.of(_features(40))
    np.savez(tmp_path / "m.npz", **moments.to_arrays())
    with np.load(tmp_path / "m.npz") as arrays:
        back = Moments.from_arrays(arrays)
    also = Moments.from_arrays(json.loads(json.dumps(moments.to_json())))
    for other in (back, also):
        assert other.count == 40
        assert other.scatter.tobytes() == moments.scatter.tobytes()
        assert other.mean.tobytes() == moments.mean.tobytes()


@pytest.mark.parametrize("broken", [{}, {"count": 1, "mean": [1, 2], "scatter": [[1.0]]}])
def test_broken_moments_are_refused(broken):
    with pytest.raises(BadInputError):
        Moments.from_arrays(broken)


def test_different_models_cannot_be_merged():
    with pytest.raises(BadInputError, match="of 7 and of 6 features"):
        Moments.of(_features(9)).merge(Moments.of(_features(9, 6)))


def test_rows_that_are_not_finite_count_nowhere_and_score_nan():
    features = _features(100)
    features[3, 2] = np.nan
    features[7, 0] = np.inf
    moments = Moments.of(features)
    assert moments.count == 98
    scores = mahalanobis(features, moments, GROUPS)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3, 7]


def _textbook(x: np.ndarray) -> np.ndarray:
    centered = x - x.mean(0)
    inverse = np.linalg.inv(np.cov(x.T, bias=True))
    return np.einsum("ni,ij,nj->n", centered, inverse, centered) / x.shape[1]


def test_one_group_is_scored_by_the_textbook_distance():
    features = _features(20_000)
    scores = mahalanobis(features, Moments.of(features), {"embedding": 7})
    np.testing.assert_allclose(scores**2, _textbook(features.astype(np.float64)), rtol=0.02)
    assert np.mean(scores**2) == pytest.approx(1.0, abs=0.02)


def test_the_second_group_counts_by_what_the_first_does_not_predict():
    features = _features(20_000)
    scores = mahalanobis(features, Moments.of(features), GROUPS)
    x = features.astype(np.float64)
    first, second = x[:, :4], x[:, 4:]
    known = np.concatenate([first, np.ones((len(x), 1))], axis=1)
    left = second - known @ np.linalg.lstsq(known, second, rcond=None)[0]
    expected = (0.5 * _textbook(first) + _textbook(left)) / 1.5
    np.testing.assert_allclose(scores**2, expected, rtol=0.03)


def test_an_object_that_is_odd_for_its_kind_only_is_found():
    rng = np.random.default_rng(0)
    kind = rng.normal(size=(5000, 1))
    residual = 5 * kind + 0.1 * rng.normal(size=(5000, 1))
    residual[42], kind[42] = -5.0, 1.0  # each value alone is ordinary
    features = np.concatenate([kind, residual], axis=1)
    scores = mahalanobis(features, Moments.of(features), {"embedding": 1, "residual": 1})
    assert np.argmax(scores) == 42


def test_each_group_can_be_taken_alone():
    features = _features(500)
    moments = Moments.of(features)
    alone = mahalanobis(features, moments, GROUPS, "residual")
    direct = mahalanobis(features[:, 4:], Moments.of(features[:, 4:]), {"residual": 3})
    np.testing.assert_allclose(alone, direct, rtol=1e-10)
    assert group_columns(GROUPS, "embedding").tolist() == [0, 1, 2, 3]
    with pytest.raises(BadInputError, match="no 'residual' features"):
        group_columns({"embedding": 4}, "residual")
    with pytest.raises(BadInputError, match="not known"):
        group_columns(GROUPS, "pixels")


def test_a_score_does_not_depend_on_the_scale_of_a_feature():
    features = _features(500).astype(np.float64)
    stretched = features * np.array([1e6, 1, 1, 1e-6, 1, 1, 1])
    a = mahalanobis(features, Moments.of(features), GROUPS)
    b = mahalanobis(stretched, Moments.of(stretched), GROUPS)
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_constant_and_repeated_features_do_no_harm():
    features = _features(400)
    padded = np.concatenate([features, np.full((400, 2), 3.0), features[:, :1]], axis=1)
    scores = Metric.of(Moments.of(padded)).distance(padded)
    assert np.isfinite(scores).all()
    plain = Metric.of(Moments.of(features)).distance(features)
    assert np.corrcoef(scores, plain)[0, 1] > 0.9


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_rows_than_features_still_score(n):
    features = _features(n, 40)
    scores = Metric.of(Moments.of(features)).distance(features)
    assert scores.shape == (n,)
    assert np.isfinite(scores).all()


def test_an_outlier_stands_out():
    features = _features(2000)
    features[17] += 40 * features.std(0)
    scores = mahalanobis(features, Moments.of(features), GROUPS)
    assert ranking(scores, np.zeros(2000), np.arange(2000))[17] == 1


def test_the_ranking_breaks_ties_by_partition_then_row():
    score = [1.0, 2.0, 2.0, np.nan, 2.0]
    assert ranking(score, [0, 1, 0, 0, 0], [0, 0, 5, 1, 4]).tolist() == [4, 3, 2, 0, 1]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 12)), min_size=2, max_size=80).filter(
        lambda rows: len({truth for truth, _ in rows}) == 2
    )
)
def test_auc_and_ap_agree_with_sklearn_also_on_ties(rows):
    truth = np.array([t for t, _ in rows])
    score = np.array([s for _, s in rows], np.float64)
    assert roc_auc(truth, score) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    expected = average_precision_score(truth, score)
    assert average_precision(truth, score) == pytest.approx(expected, abs=1e-12)


def test_one_class_only_has_no_auc():
    assert np.isnan(roc_auc([True, True], [1, 2]))
    assert np.isnan(average_precision([False, False], [1, 2]))
    with pytest.raises(BadInputError, match="1 scores are NaN"):
        roc_auc([True, False], [1, np.nan])


def test_detection_sets_each_kind_against_the_plain_ones():
    label = np.array([0, 0, 0, 1, 1, 2, 2, 0])
    score = np.array([0.1, 0.2, 0.3, 0.9, 0.8, 0.0, 0.25, np.nan])
    found = {d.kind: d for d in detection(score, label, {0: "none", 1: "ring", 2: "ray", 3: "x"})}
    assert list(found) == ["all", "ring", "ray"]
    assert found["ring"].roc_auc == 1.0
    assert found["ring"].average_precision == 1.0
    assert found["ray"].roc_auc == pytest.approx(2 / 6)
    assert (found["all"].n, found["all"].plain) == (4, 3)
    assert found["all"].to_json()["kind"] == "all"
