"""Redshift metrics against figures worked out by hand."""

import numpy as np
import pytest

from perseid.errors import BadInputError
from perseid.science import redshift_metrics, scaled_error


def test_the_published_definitions_on_four_objects():
    z = np.array([0.0, 0.25, 1.0, 3.0])
    predicted = np.array([0.1, 0.25, 1.2, 2.0])
    # dz = 0.1, 0, 0.1, -0.25; median 0.05; |dz - median| = 0.05, 0.05, 0.05, 0.30
    got = redshift_metrics(predicted, z)
    assert got.n == 4
    assert got.excluded == 0
    assert got.mae == pytest.approx((0.1 + 0.0 + 0.2 + 1.0) / 4)
    assert got.mse == pytest.approx((0.01 + 0.04 + 1.0) / 4)
    assert got.bias == pytest.approx((0.1 + 0.1 - 0.25) / 4)
    assert got.nmad == pytest.approx(1.48 * 0.05)
    assert got.r2 == pytest.approx(1 - (1.05 / 4) / np.var(z))
    assert got.outliers == 0.25
    assert got.outliers_low_z == 0.75
    assert got.outlier_threshold == 0.15


def test_a_constant_shift_is_all_bias_and_no_nmad():
    z = np.linspace(0.01, 0.3, 50)
    got = redshift_metrics(z + 0.02 * (1 + z), z)
    assert got.bias == pytest.approx(0.02)
    assert got.nmad == pytest.approx(0.0, abs=1e-12)


def test_rows_without_a_prediction_are_counted_not_compared():
    z = np.array([0.1, 0.2, np.nan, 0.4])
    got = redshift_metrics(np.array([[0.1], [np.nan], [0.3], [0.4]], np.float32), z)
    assert (got.n, got.excluded) == (2, 2)
    assert got.mae < 1e-7


def test_the_threshold_is_stated_and_used():
    got = redshift_metrics([0.11, 0.2], [0.0, 0.2], outlier=0.1)
    assert got.outliers == 0.5
    assert got.to_json()["outlier_threshold"] == 0.1


def test_nothing_to_compare_is_nan_and_not_zero():
    got = redshift_metrics([np.nan], [0.1])
    assert (got.n, got.excluded) == (0, 1)
    assert np.isnan([got.mae, got.mse, got.bias, got.nmad, got.r2, got.outliers]).all()


def test_r2_of_equal_redshifts_is_nan():
    assert np.isnan(redshift_metrics([0.1, 0.2], [0.1, 0.1]).r2)


def test_lengths_must_agree():
    with pytest.raises(BadInputError, match="3 predicted and 2 spectroscopic"):
        scaled_error([1, 2, 3], [1, 2])
