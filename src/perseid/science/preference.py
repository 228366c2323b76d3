"""A ranking learned from a few ratings: a small ridge regression, blended with the anomaly score.

Ratings tell what a person finds interesting. A linear function of the features is fitted to them
and added to the quantile of the anomaly score, as in active anomaly detection (Lochner & Bassett
2021, arXiv:2010.11202, "Astronomaly"). The features are whitened by the covariance of the whole
survey, so that the unrated objects tell in which directions ordinary objects differ, as in a linear
discriminant: a few ratings are enough then. Without ratings the ranking is that of the score.
Proposals for what to rate next are partly the top of the ranking and partly objects unlike all
rated ones, so that new kinds are found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInputError
from perseid.science.moments import Moments

LOWEST, HIGHEST = 1, 5
"""The worst and the best rating."""
RIDGE = 1.0
"""Strength of the ridge, in units of an object's mean square whitened feature."""
SHRINK = 0.3
"""Added to the diagonal of the correlation matrix before whitening: thin directions are noise."""
BIAS = 0.1
"""Variance of the constant term, through which many bad ratings lower all objects."""
SCORE_WEIGHT = 2.0
"""Weight of the score's quantile (0 to 1) relative to the learned value (about -1 to 1). The
ridge and the proposals were chosen on the simulated surveys with seeds 177 and 178."""
CYCLE, FROM_TOP = 5, 2
"""Of this many proposals in a row, so many are the top of the ranking."""
FARTHER = 0.4
"""Fraction of the candidates, those least like the rated objects, from which one is drawn: the very
farthest are noise."""
POOL = 0.15
"""Top fraction of the ranking from which unlike objects are drawn."""
DRAWN = 2048
"""Most candidates that are compared with the rated objects."""


@dataclass(frozen=True, eq=False)
class Preference:
    """A linear function of the features, learned from ratings."""

    weights: NDArray[np.float64]
    """(d,), for unscaled features."""
    constant: float

    @classmethod
    def of(
        cls, features: NDArray[np.floating[Any]], moments: Moments, ratings: ArrayLike
    ) -> Preference:
        """Learn from some objects.

        Parameters
        ----------
        features
            (m, d) of the rated objects; rows that are not finite are ignored.
        moments
            Moments of the whole survey's features, which give the spread that scales each feature.
        ratings
            (m,), 1 (uninteresting) to 5 (more of these).

        Raises
        ------
        BadInputError
            The shapes do not match.

        Examples
        --------
        >>> x = np.array([[0.0], [1.0], [4.0]])
        >>> learned = Preference.of(x[1:], Moments.of(x), [1, 5])
        >>> learned.values(x).argmax()
        2
        """
        given = np.asarray(ratings, np.float64)
        if features.ndim != 2 or given.shape != features.shape[:1]:
            raise BadInputError(f"{given.shape} ratings do not fit features {features.shape}")
        if features.shape[1] != moments.width:
            raise BadInputError(f"features {features.shape} do not fit moments of {moments.width}")
        white = _whitening(moments)
        good = np.isfinite(features).all(axis=1)
        rows = (np.asarray(features[good], np.float64) - moments.mean) @ white
        wanted = 2.0 * (given[good] - LOWEST) / (HIGHEST - LOWEST) - 1.0
        kernel = rows @ rows.T + BIAS
        dual = np.linalg.solve(kernel + RIDGE * np.eye(len(rows)), wanted)
        weights = white @ (rows.T @ dual)
        return cls(weights, float(BIAS * dual.sum() - moments.mean @ weights))

    def values(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """(n,): about 1 for objects like the best rated ones, -1 for objects like the worst."""
        found = features @ self.weights.astype(features.dtype)
        return np.asarray(found, np.float64) + self.constant


def _whitening(moments: Moments) -> NDArray[np.float64]:
    """(d, d): centered features times this have a mean square length of 1 over the survey."""
    covariance = moments.covariance()
    spread = np.sqrt(np.clip(np.diag(covariance), 0.0, None))
    scale = np.where(spread > 0, 1.0 / np.where(spread > 0, spread, 1.0), 0.0)
    correlation = covariance * np.outer(scale, scale)
    inverse = np.linalg.inv(correlation + SHRINK * np.eye(len(scale)))
    length = np.sqrt(max(np.sum(inverse * correlation), np.finfo(float).tiny))
    return np.asarray(scale[:, None] * np.linalg.cholesky(inverse) / length)


def quantiles(score: ArrayLike) -> NDArray[np.float64]:
    """(n,): the fraction of objects with a lower score, 0 to 1; NaN for objects without a score."""
    values = np.asarray(score, np.float64)
    order = np.argsort(values, kind="stable")  # NaN comes last
    known = int(np.count_nonzero(~np.isnan(values)))
    found = np.full(len(values), np.nan)
    found[order[:known]] = np.arange(known) / max(1, known - 1)
    return found


def blended(
    quantile: NDArray[np.float64], learned: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """(n,): the score blended with what was learned; NaN for objects without an anomaly score."""
    found = SCORE_WEIGHT * quantile
    return found if learned is None else found + np.nan_to_num(learned, nan=-1.0)


def proposals(
    ranking: NDArray[np.float64],
    features: NDArray[np.floating[Any]],
    moments: Moments,
    rated: NDArray[np.int64],
    count: int,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Propose objects to rate next, in this order: the first is to be rated first.

    Of five in a row, two are the top of the ranking and three are unlike all rated ones; the
    pattern continues from the objects that are rated already.

    Parameters
    ----------
    ranking
        (n,), from `blended`.
    features, moments
        (n, d) of all objects, and their statistics.
    rated
        Rows that already have a rating.
    count
        How many to propose; fewer are returned if there are no more.
    seed
        Seed of the random choice.
    """
    values = ranking.copy()
    values[rated] = np.nan
    known = int(np.count_nonzero(~np.isnan(values)))
    size = min(known, max(count, int(POOL * len(values))))
    if not size:
        return np.empty(0, np.int64)
    keys = np.where(np.isnan(values), -np.inf, values)
    pool = np.argpartition(-keys, size - 1)[:size]
    pool = pool[np.argsort(-keys[pool], kind="stable")]
    chance = np.random.default_rng(seed)
    drawn = np.arange(size)
    if size > DRAWN:
        drawn = np.sort(chance.choice(size, DRAWN, replace=False))
    white = _whitening(moments)
    there = _whitened(features[pool[drawn]], moments, white)
    far = _nearest(there, _whitened(features[rated], moments, white))
    free = np.ones(size, bool)
    chosen: list[int] = []
    for turn in range(len(rated), len(rated) + min(count, size)):
        place = int(np.argmax(free))
        candidates = np.flatnonzero(free[drawn])
        if turn % CYCLE >= FROM_TOP and len(candidates):
            farthest = candidates[np.argsort(-far[candidates], kind="stable")]
            place = int(drawn[chance.choice(farthest[: max(1, int(FARTHER * len(farthest)))])])
        free[place] = False
        chosen.append(int(pool[place]))
        far = np.minimum(far, _nearest(there, _whitened(features[pool[[place]]], moments, white)))
    return np.asarray(chosen, np.int64)


def _whitened(
    features: NDArray[np.floating[Any]], moments: Moments, white: NDArray[np.float64]
) -> NDArray[np.float64]:
    centered = np.asarray(features, np.float64) - moments.mean
    return np.asarray(np.nan_to_num(centered) @ white)


def _nearest(points: NDArray[np.float64], to: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,): squared distance of each point from the nearest point of `to`."""
    squares = (points**2).sum(axis=1)[:, None] + (to**2).sum(axis=1)[None] - 2 * points @ to.T
    return np.asarray(squares.min(axis=1, initial=np.inf))
