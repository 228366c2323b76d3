"""The split by object, and how a survey becomes arrays."""

import numpy as np
import pytest

from perseid.errors import BadInputError
from perseid.model.training.data import gather, object_keys
from perseid.survey.cutouts import Cutouts
from perseid.survey.splits import (
    TEST,
    TEST_SHARE,
    TRAIN,
    VALIDATION,
    VALIDATION_SHARE,
    assign_split,
)


def _cutouts(n: int, seed: int = 0, first: int = 0) -> Cutouts:
    rng = np.random.default_rng(seed)
    return Cutouts(
        rng.normal(size=(n, 5, 32, 32)).astype(np.float32),
        rng.uniform(15, 20, (n, 5)).astype(np.float32),
        rng.uniform(0, 0.4, n).astype(np.float32),
        np.arange(first, first + n),
        (np.arange(n) % 25 == 0).astype(np.int32),
    )


def test_the_shares_are_as_stated_and_an_id_always_falls_on_the_same_side():
    ids = np.arange(200_000)
    split = assign_split(ids)
    assert np.mean(split == TEST) == pytest.approx(TEST_SHARE, abs=0.005)
    assert np.mean(split == VALIDATION) == pytest.approx(VALIDATION_SHARE, abs=0.005)
    some = np.array([7, 199_999, 12, 7])
    assert assign_split(some).tolist() == split[some].tolist()
    # the shipped model's held-out objects are these: the rule must not change
    assert np.flatnonzero(split[:40] == TEST).tolist() == FIRST_HELD_OUT


FIRST_HELD_OUT = [3, 10, 18, 21, 33]


def test_rows_of_one_object_get_one_key():
    rng = np.random.default_rng(0)
    once = rng.uniform(15, 20, (4, 5)).astype(np.float32)
    magnitudes = once[[0, 1, 2, 0, 3, 1, 3]]
    ids = np.array([5, 3, 9, 100_005, 8, 3, 9])
    # rows 0 and 3 share photometry; 1 and 5 share both; 4 and 6 photometry, 6 and 2 the id
    keys = object_keys(ids, magnitudes)
    assert keys[0] == keys[3] == 5
    assert keys[1] == keys[5] == 3
    assert keys[4] == keys[6] == keys[2] == 8


def test_gather_keeps_order_and_drops_what_is_not_finite(tmp_path):
    parts = [_cutouts(30, 1), _cutouts(20, 2, first=30)]
    parts[0].images[4, 2, 3, 3] = np.nan
    parts[1].magnitudes[7, 0] = np.inf
    data = gather(parts, tmp_path / "s")
    assert data.dropped == 2
    assert data.images.shape == (48, 5, 32, 32)
    np.testing.assert_array_equal(data.images[4], parts[0].images[5])
    np.testing.assert_array_equal(data.magnitudes[-1], parts[1].magnitudes[-1])
    ids = np.delete(np.arange(50), [4, 37])
    assert data.split.tolist() == assign_split(ids).tolist()
    supervised = data.rows(TRAIN, supervised=True)
    assert set(supervised) < set(data.rows(TRAIN, supervised=False))
    assert (data.label[supervised] == 0).all()


def test_large_surveys_go_to_a_file_and_are_the_same(tmp_path):
    parts = [_cutouts(30, s, first=100 * s) for s in range(4)]
    whole = gather(parts, tmp_path / "a")
    mapped = gather(parts, tmp_path / "b", limit=parts[0].images.nbytes)
    assert isinstance(mapped.images, np.memmap)
    assert not (tmp_path / "a").exists()
    np.testing.assert_array_equal(whole.images, mapped.images)


def test_rows_stops_early(tmp_path):
    def parts():
        yield _cutouts(30)
        yield _cutouts(30, 1, first=30)
        raise AssertionError("the third partition was not needed")

    assert len(gather(parts(), tmp_path / "s", rows=45).redshift) == 45


def test_surveys_without_redshift_or_labels_are_taken(tmp_path):
    c = _cutouts(10)
    data = gather([Cutouts(c.images, c.magnitudes)], tmp_path / "s")
    assert np.isnan(data.redshift).all()
    assert not data.label.any()
    assert len(data.rows(TRAIN, supervised=True)) == 0


def test_an_empty_or_mixed_survey_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="no usable rows"):
        gather([], tmp_path / "s")
    c = _cutouts(4)
    small = Cutouts(np.ascontiguousarray(c.images[:, :, :16, :16]), c.magnitudes)
    with pytest.raises(BadInputError, match="of one shape"):
        gather([c, small], tmp_path / "s")
