"""The nearest neighbors are exact, whatever the precision of the features."""

from __future__ import annotations

import numpy as np
import pytest

from perseid.errors import BadInputError
from perseid.science import nearest
from perseid.science.neighbors import BLOCK

pytestmark = pytest.mark.numbers


def brute(features, query, n):
    difference = features.astype(np.float64) - np.asarray(query, np.float64)
    distance = np.sqrt((difference**2).sum(axis=1))
    return np.lexsort((np.arange(len(features)), distance))[:n]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4], ids=["centered", "far from zero"])
@pytest.mark.parametrize("n", [1, 7, 100])
def test_the_same_rows_as_by_brute_force(dtype, offset, n):
    random = np.random.default_rng(8)
    features = (offset + random.normal(0, 1e-3, (3000, 24))).astype(dtype)
    for query in (features[17], features[5].astype(np.float64) + 1e-9):
        found = nearest(features, query, n)
        assert found.rows.tolist() == brute(features, query, n).tolist()
        assert np.all(np.diff(found.distance) >= 0)


def test_more_rows_than_a_block():
    features = np.random.default_rng(1).standard_normal((2 * BLOCK + 5, 3)).astype(np.float32)
    assert (
        nearest(features, features[-1], 5).rows.tolist()
        == brute(features, features[-1], 5).tolist()
    )


def test_ties_are_by_row_and_the_object_itself_comes_first():
    features = np.array([[1.0], [0.0], [1.0], [0.0], [-1.0]], np.float32)
    found = nearest(features, features[3], 9)
    assert found.rows.tolist() == [1, 3, 0, 2, 4]
    assert found.distance.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_rows_that_are_not_finite_are_never_near():
    features = np.array([[np.nan, 0.0], [2.0, 0.0], [np.inf, 0.0], [1e30, 0.0]], np.float32)
    assert nearest(features, [0.0, 0.0], 4).rows.tolist() == [1, 3]
    assert nearest(features[:1], [0.0, 0.0], 4).rows.tolist() == []


def test_wrong_input_is_named():
    features = np.zeros((3, 2), np.float32)
    with pytest.raises(BadInputError, match="does not fit"):
        nearest(features, [0.0], 1)
    with pytest.raises(BadInputError, match="at least 1"):
        nearest(features, [0.0, 0.0], 0)
    with pytest.raises(BadInputError, match="not finite"):
        nearest(features, [0.0, np.nan], 1)
