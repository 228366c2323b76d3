"""PIT, CRPS and coverage against closed forms and numerical integrals; conformal intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from perseid.errors import BadInputError
from perseid.science import Distributions, conformal_width, interval_coverage, pit_histogram

pytestmark = pytest.mark.numbers
GRID = np.linspace(-6.0, 6.0, 1201)


def gaussians(n=300, seed=4):
    random = np.random.default_rng(seed)
    mean, sigma = random.normal(0.0, 1.0, n), random.uniform(0.3, 0.6, n)
    return mean, sigma, random.normal(mean, sigma)


def of_gaussians(mean, sigma):
    return Distributions.of_density(stats.norm.pdf(GRID, mean[:, None], sigma[:, None]), GRID)


def test_a_density_on_a_grid():
    mean, sigma, true = gaussians()
    found = of_gaussians(mean, sigma)
    np.testing.assert_allclose(found.pit(true), stats.norm.cdf(true, mean, sigma), atol=2e-4)
    w = (true - mean) / sigma
    exact = w * (2 * stats.norm.cdf(w) - 1) + 2 * stats.norm.pdf(w) - 1 / np.sqrt(np.pi)
    np.testing.assert_allclose(found.crps(true), sigma * exact, atol=2e-4)
    np.testing.assert_allclose(found.quantile(0.5), mean, atol=2e-3)
    np.testing.assert_allclose(found.quantile(0.84), mean + sigma * stats.norm.ppf(0.84), atol=2e-3)


def test_calibrated_distributions_have_a_flat_pit_and_their_coverage():
    mean, sigma, true = gaussians(6000)
    found = of_gaussians(mean, sigma)
    counts = pit_histogram(found.pit(true), 10)
    assert counts.sum() == 6000
    assert stats.chisquare(counts).pvalue > 1e-3
    for level in (0.5, 0.68, 0.95):
        spread = 4 * np.sqrt(level * (1 - level) / 6000)
        assert found.coverage(true, level) == pytest.approx(level, abs=spread)
    narrow = of_gaussians(mean, sigma / 2)
    assert stats.chisquare(pit_histogram(narrow.pit(true), 10)).pvalue < 1e-6


def test_crps_of_quantiles_is_the_integral():
    levels = np.array([0.05, 0.3, 0.5, 0.9])
    quantiles = np.array([[0.1, 0.2, 0.25, 0.9], [1.0, 1.0, 1.0, 2.0], [0.0, 0.5, 0.4, 0.6]])
    found = Distributions.of_quantiles(quantiles, levels)
    for true in (-0.5, 0.1, 0.22, 0.6, 0.9, 3.0):
        got = found.crps(np.full(3, true))
        for row, values in enumerate(np.sort(quantiles, axis=1)):

            def squared(x, values=values, true=true):
                cdf = np.interp(x, values, levels)
                cdf = 0.0 if x < values[0] else 1.0 if x >= values[-1] else cdf
                return (cdf - (x >= true)) ** 2

            ends = (min(values[0], true), max(values[-1], true))
            breaks = sorted({*values, true})
            wanted, _ = integrate.quad(squared, *ends, points=breaks, limit=200)
            assert got[row] == pytest.approx(wanted, abs=1e-6), (true, row)


def test_a_point_prediction_has_its_absolute_error_as_crps():
    found = Distributions.of_quantiles(np.full((3, 2), 1.5), [0.0, 1.0])
    assert found.crps([1.5, 1.0, 3.0]).tolist() == [0.0, 0.5, 1.5]


def test_outside_the_known_values():
    found = Distributions.of_quantiles([[1.0, 2.0, 3.0]] * 4, [0.1, 0.5, 0.9])
    assert found.pit([0.0, 1.0, 3.0, 9.0]).tolist() == [0.0, 0.1, 1.0, 1.0]
    assert found.quantile(0.01).tolist() == [1.0] * 4
    assert found.quantile(0.99).tolist() == [3.0] * 4


def test_what_is_not_finite_gives_nan_and_does_not_count():
    found = Distributions.of_density(
        [[1.0, 1.0], [0.0, 0.0], [np.nan, 1.0], [1.0, 1.0]], [0.0, 1.0]
    )
    pit = found.pit([0.25, 0.5, 0.5, np.nan])
    assert pit[0] == 0.25
    assert np.isnan(pit[1:]).all()
    assert np.isnan(found.crps([0.25, 0.5, 0.5, np.nan])[1:]).all()
    assert pit_histogram(pit).sum() == 1
    assert np.isnan(interval_coverage([np.nan], [1.0], [0.5]))


@pytest.mark.parametrize("level", [0.5, 0.68, 0.95])
def test_conformal_intervals_hold_their_level_on_new_objects(level):
    """Over many draws: at least the level, and no wider than n calibration objects make it."""
    random = np.random.default_rng(6)
    n, held = 99, []
    for _ in range(400):
        residuals = random.standard_t(3, 2 * n)
        width = conformal_width(residuals[:n], level)
        held.append(np.mean(np.abs(residuals[n:]) <= width))
    error = 4 * np.std(held) / np.sqrt(len(held))
    assert level - error <= np.mean(held) <= level + 1 / (n + 1) + error


def test_wrong_input_is_named():
    with pytest.raises(BadInputError, match="must ascend"):
        Distributions.of_quantiles([[1.0, 2.0]], [0.9, 0.1])
    with pytest.raises(BadInputError, match="their levels once"):
        Distributions.of_quantiles([[1.0, 2.0]], [0.1, 0.5, 0.9])
    with pytest.raises(BadInputError, match="must not be negative"):
        Distributions.of_density([[1.0, -1.0]], [0.0, 1.0])
    with pytest.raises(BadInputError, match="one ascending grid"):
        Distributions.of_density([[1.0, 1.0]], [1.0, 0.0])
    with pytest.raises(BadInputError, match="at least 19"):
        conformal_width([0.1] * 18, 0.95)
    with pytest.raises(BadInputError, match="between 0 and 1"):
        conformal_width([0.1], 95)
    assert conformal_width(np.arange(19.0), 0.95) == 18.0
