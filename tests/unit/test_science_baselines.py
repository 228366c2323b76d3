"""Nearest neighbors against sklearn, and the paired bootstrap."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsRegressor

from perseid.errors import BadInputError
from perseid.science import NearestNeighbors, bootstrap_difference, redshift_metrics


def _sky(n: int, seed: int):
    rng = np.random.default_rng(seed)
    z = rng.uniform(0.02, 0.3, n)
    colors = np.stack([z * s for s in (2.0, 3.0, 1.0, 0.5)], 1) + 0.02 * rng.normal(size=(n, 4))
    r = 17 + rng.normal(size=n)
    magnitudes = np.stack([r + colors[:, :2].sum(1), r + colors[:, 1], r, r - colors[:, 2],
                           r - colors[:, 2:].sum(1)], 1)  # fmt: skip
    return magnitudes.astype(np.float32), z


@pytest.mark.parametrize("colors", [True, False])
def test_the_prediction_is_that_of_sklearn(colors):
    m, z = _sky(600, 0)
    model = NearestNeighbors.of(m, z, 7, colors=colors)
    other = KNeighborsRegressor(7).fit(model.features, z)
    wanted, _ = _sky(300, 1)
    raw = wanted.astype(np.float64)
    if colors:
        raw = np.concatenate([raw[:, 2:3], raw[:, :-1] - raw[:, 1:]], axis=1)
    expected = other.predict((raw - model.center) / model.scale)
    np.testing.assert_allclose(model.predict(wanted), expected, atol=1e-12)


def test_tuning_takes_the_best_on_the_validation_objects():
    (m, z), (vm, vz) = _sky(800, 0), _sky(200, 1)
    tuned = NearestNeighbors.tuned(m, z, (vm, vz), neighbors=(1, 10, 700))
    assert tuned.k == 10
    assert tuned.colors
    for k in (1, 700):
        other = NearestNeighbors.of(m, z, k, colors=True)
        assert np.abs(tuned.predict(vm) - vz).mean() < np.abs(other.predict(vm) - vz).mean()


def test_more_neighbors_than_objects_are_refused():
    m, z = _sky(5, 0)
    with pytest.raises(BadInputError, match="k is 6: use 1 to 5"):
        NearestNeighbors.of(m, z, 6, colors=True)


def test_the_bootstrap_sees_a_real_difference_and_no_false_one():
    rng = np.random.default_rng(0)
    z = rng.uniform(0, 0.3, 3000)
    noise = rng.normal(size=3000)

    def mae(predicted, true):
        return redshift_metrics(predicted, true).mae

    worse, better = z + 0.013 * noise, z + 0.0125 * noise
    real = bootstrap_difference(mae, better, worse, z, repeats=200)
    assert real.low < real.value < real.high < 0
    assert real.value == pytest.approx(-0.0005 * np.abs(noise).mean())
    other = z + 0.013 * rng.normal(size=3000)
    chance = bootstrap_difference(mae, other, worse, z, repeats=200)
    assert chance.low < 0 < chance.high
