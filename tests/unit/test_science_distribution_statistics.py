"""PIT, CRPS and coverage of parts add up to those of the whole, to the bit."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from perseid.science.distribution_statistics import CoverageStatistics, DistributionStatistics
from perseid.science.distributions import Distributions, interval_coverage, pit_histogram

LEVELS = np.array([0.025, 0.16, 0.5, 0.84, 0.975])


def predictions(rows: int = 400):
    """Quantiles of normal distributions that are calibrated, and the true values."""
    draw = np.random.default_rng(5)
    center, width = draw.uniform(0, 1, rows), draw.uniform(0.01, 0.1, rows)
    scores = np.array([-1.959964, -0.994458, 0.0, 0.994458, 1.959964])
    quantiles = center[:, None] + width[:, None] * scores
    truth = center + width * draw.normal(size=rows)
    truth[::17] = np.nan
    return quantiles, truth


def test_parts_add_up_in_any_order():
    quantiles, truth = predictions()
    whole = DistributionStatistics.of(Distributions.of_quantiles(quantiles, LEVELS), truth)
    parts = [
        DistributionStatistics.of(Distributions.of_quantiles(q, LEVELS), t)
        for q, t in zip(np.array_split(quantiles, 7), np.array_split(truth, 7), strict=True)
    ]
    for seed in range(3):
        random.Random(seed).shuffle(parts)
        joined = DistributionStatistics()
        for part in parts:
            joined = joined.join(part)
        assert json.dumps(joined.to_json()) == json.dumps(whole.to_json())


def test_the_figures_are_those_of_the_plain_functions():
    quantiles, truth = predictions()
    predicted = Distributions.of_quantiles(quantiles, LEVELS)
    found = DistributionStatistics.of(predicted, truth).to_json()
    assert (found["n"], found["excluded"]) == (376, 24)
    assert found["crps"] == pytest.approx(np.nanmean(predicted.crps(truth)), rel=1e-9)
    assert found["pit"] == pit_histogram(predicted.pit(truth)).tolist()
    for level in (0.68, 0.95):
        assert found["coverage"][f"{level:g}"] == pytest.approx(predicted.coverage(truth, level))
        assert found["coverage"][f"{level:g}"] == pytest.approx(level, abs=0.06)


def test_levels_that_the_quantiles_do_not_reach_are_left_out():
    quantiles, truth = predictions()
    few = Distributions.of_quantiles(quantiles[:, 1:4], LEVELS[1:4])
    assert set(DistributionStatistics.of(few, truth).inside) == {0.68}


def test_nothing():
    assert DistributionStatistics().to_json()["coverage"] == {}
    assert np.isnan(DistributionStatistics().to_json()["crps"])
    none = CoverageStatistics.of({0.68: (np.array([]), np.array([]))}, np.array([]))
    assert np.isnan(none.coverage()["0.68"])


def test_coverage_of_intervals():
    quantiles, truth = predictions()
    ends = {0.68: (quantiles[:, 1], quantiles[:, 3]), 0.95: (quantiles[:, 0], quantiles[:, 4])}
    ends[0.68][0][0] = np.nan
    whole = CoverageStatistics.of(ends, truth)
    halves = [
        CoverageStatistics.of({k: (a[rows], b[rows]) for k, (a, b) in ends.items()}, truth[rows])
        for rows in (slice(None, 99), slice(99, None))
    ]
    assert halves[0].join(halves[1]) == whole
    assert CoverageStatistics().join(whole) == whole
    for level, (low, high) in ends.items():
        keep = np.isfinite(ends[0.68][0])
        wanted = interval_coverage(low[keep], high[keep], truth[keep])
        assert whole.coverage()[f"{level:g}"] == pytest.approx(wanted)
