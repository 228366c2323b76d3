"""The ranking that is learned from ratings, and what is proposed to be rated."""

from __future__ import annotations

import numpy as np
import pytest

from perseid.errors import BadInputError
from perseid.science.moments import Moments
from perseid.science.preference import (
    HIGHEST,
    LOWEST,
    Preference,
    blended,
    proposals,
    quantiles,
)


def survey(n: int = 3000, d: int = 20, rare: int = 60, seed: int = 5):
    """Noise, and two rare kinds: one that the score sees, one that it does not."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(n, d)).astype(np.float32) * np.geomspace(0.01, 100, d)
    loud, quiet = np.arange(rare), np.arange(rare, 2 * rare)
    features[loud, 3] += 12 * np.float32(features[:, 3].std())
    features[quiet, 5] += 4 * np.float32(features[:, 5].std())
    score = random.normal(1, 0.1, n)
    score[loud] += 3
    return features.astype(np.float32), score, loud, quiet


def test_ratings_find_a_kind_that_the_score_misses():
    features, score, loud, quiet = survey()
    moments, quantile = Moments.of(features), quantiles(score)
    before = np.isin(np.argsort(-score)[:100], quiet).sum()
    rows = np.concatenate([quiet[:8], loud[:12], np.arange(1000, 1012)])
    ratings = np.where(np.isin(rows, quiet), HIGHEST, LOWEST)
    learned = Preference.of(features[rows], moments, ratings)
    found = np.argsort(-blended(quantile, learned.values(features)))[:100]
    assert np.isin(found, quiet).sum() >= 25 > 2 * before
    assert np.isin(found, loud).sum() <= 5, "what was rated badly goes down"


def test_without_ratings_the_order_is_that_of_the_score():
    score = np.array([3.0, np.nan, 1.0, 2.0])
    ranking = blended(quantiles(score), None)
    assert np.argsort(-ranking)[:3].tolist() == [0, 3, 2]
    assert np.isnan(ranking[1])


def test_the_unit_of_a_feature_does_not_count():
    features, _, loud, quiet = survey(400, 6, 20)
    rows = np.concatenate([quiet[:5], loud[:5]])
    ratings = [5] * 5 + [1] * 5
    scale = np.float32(2) ** np.arange(-3, 3)
    one = Preference.of(features[rows], Moments.of(features), ratings).values(features)
    scaled = features * scale
    other = Preference.of(scaled[rows], Moments.of(scaled), ratings).values(scaled)
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_proposals_are_new_known_and_unlike():
    features, score, *_ = survey()
    features[5] = np.nan
    score[5] = np.nan
    moments, ranking = Moments.of(features), blended(quantiles(score), None)
    rated = np.argsort(-np.nan_to_num(ranking))[:20].astype(np.int64)
    found = proposals(ranking, features, moments, rated, 10)
    assert len(set(found.tolist())) == 10
    assert not set(found.tolist()) & {*rated.tolist(), 5}
    best = [i for i in np.argsort(-np.nan_to_num(ranking)) if i not in set(rated.tolist())]
    tops = [found[i] for i in (0, 1, 5, 6)]  # two of five
    others = set(found.tolist()) - set(tops)
    assert tops == [i for i in best if i not in others][:4]
    assert len(others - set(best[:10])) >= 4, "and three of five are unlike what was rated"
    one_by_one = [proposals(ranking, features, moments, rated, n)[-1] for n in (1, 2, 3)]
    assert one_by_one == found[:3].tolist()
    assert proposals(ranking, features, moments, rated, 10).tolist() == found.tolist()
    every = np.arange(len(score))
    assert len(proposals(ranking, features, moments, every, 10)) == 0
    assert set(proposals(ranking, features, moments, every[3:], 10).tolist()) == {0, 1, 2}


def test_shapes_that_do_not_fit_are_a_sentence():
    features = np.zeros((3, 2), np.float32)
    with pytest.raises(BadInputError, match="do not fit features"):
        Preference.of(features, Moments.of(features), [1, 2])
    with pytest.raises(BadInputError, match="do not fit moments"):
        Preference.of(features, Moments.empty(3), [1, 2, 3])
