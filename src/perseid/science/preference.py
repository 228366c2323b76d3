"""A ranking learned from a few ratings: a small ridge regression, blended with the anomaly score.

Ratings say what a person finds worth a look. A linear function of the standardized features is
fitted to them and added to the quantile of the anomaly score, as active anomaly finders do
(Lochner & Bassett 2021, arXiv:2010.11202, "Astronomaly"). Without ratings the order is that of the
score. What to rate next is partly the top of that ranking, partly objects that are unlike all that
were rated, so that kinds which nobody has seen yet are found.
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
RIDGE = 0.3
"""Strength of the ridge, in units of an object's mean square feature."""
BIAS = 0.1
"""Variance of the constant term: what many bad ratings say of all objects."""
SCORE_WEIGHT = 2.0
"""Weight of the score's quantile (0 to 1) beside what was learned (about -1 to 1). This and the
ridge were chosen on the simulated survey of seed 77."""
POOL = 0.15
"""Share of the ranking that unlike objects are drawn from."""
DRAWN = 2048
"""Candidates that are compared with what was rated."""


@dataclass(frozen=True, eq=False)
class Preference:
    """What was learned from ratings: a linear function of the features."""

    weights: NDArray[np.float64]
    """(d,), of the features as they are."""
    constant: float

    @classmethod
    def of(
        cls, features: NDArray[np.floating[Any]], moments: Moments, ratings: ArrayLike
    ) -> Preference:
        """Learn from some objects.

        Parameters
        ----------
        features
            (m, d) of the rated objects; rows that are not finite do not count.
        moments
            Of the whole survey's features: each is taken in units of its spread.
        ratings
            (m,), 1 (uninteresting) to 5 (more of these).

        Raises
        ------
        BadInputError
            The shapes do not belong together.

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
        scale = _scale(moments)
        good = np.isfinite(features).all(axis=1)
        rows = (np.asarray(features[good], np.float64) - moments.mean) * scale
        wanted = 2.0 * (given[good] - LOWEST) / (HIGHEST - LOWEST) - 1.0
        kernel = rows @ rows.T + BIAS
        dual = np.linalg.solve(kernel + RIDGE * np.eye(len(rows)), wanted)
        weights = (rows.T @ dual) * scale
        return cls(weights, float(BIAS * dual.sum() - moments.mean @ weights))

    def values(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """(n,): about 1 for what is like the best rated, -1 for what is like the worst."""
        found = features @ self.weights.astype(features.dtype)
        return np.asarray(found, np.float64) + self.constant


def _scale(moments: Moments) -> NDArray[np.float64]:
    """(d,): one over each feature's spread, so that a plain object has a length of about 1."""
    spread = np.sqrt(np.clip(np.diag(moments.covariance()), 0.0, None))
    alive = spread > 0
    scale = np.where(alive, 1.0 / np.where(alive, spread, 1.0), 0.0)
    return np.asarray(scale / np.sqrt(max(1, int(alive.sum()))))


def quantiles(score: ArrayLike) -> NDArray[np.float64]:
    """(n,): the share of objects with a lower score, 0 to 1; NaN where there is none."""
    values = np.asarray(score, np.float64)
    order = np.argsort(values, kind="stable")  # NaN comes last
    known = int(np.count_nonzero(~np.isnan(values)))
    found = np.full(len(values), np.nan)
    found[order[:known]] = np.arange(known) / max(1, known - 1)
    return found


def blended(
    quantile: NDArray[np.float64], learned: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """(n,): the second ranking's score; NaN where an object has no anomaly score."""
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
    """Which objects to rate next: two fifths from the top, the others unlike what was rated.

    Parameters
    ----------
    ranking
        (n,), from `blended`.
    features, moments
        (n, d) of all objects, and their statistics.
    rated
        Rows that have a rating already.
    count
        How many are wanted; fewer where there are no more.
    seed
        Of the drawing.
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
    top = min(size, -(-2 * count // 5))
    chosen, rest = list(pool[:top]), pool[top:]
    chance = np.random.default_rng(seed)
    if len(rest) > DRAWN:
        rest = rest[np.sort(chance.choice(len(rest), DRAWN, replace=False))]
    scale = _scale(moments)
    there = _standard(features[rest], moments, scale)
    far = _nearest(there, _standard(features[[*rated, *chosen]], moments, scale))
    while len(chosen) < count and len(rest):
        # Not the very farthest: that is noise. One of the farther two fifths.
        place = int(chance.choice(np.argsort(-far, kind="stable")[: max(1, int(0.4 * len(far)))]))
        chosen.append(rest[place])
        far = np.minimum(far, _nearest(there, there[place : place + 1]))
        keep = np.arange(len(rest)) != place
        rest, there, far = rest[keep], there[keep], far[keep]
    return np.asarray(chosen, np.int64)


def _standard(
    features: NDArray[np.floating[Any]], moments: Moments, scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.nan_to_num((np.asarray(features, np.float64) - moments.mean) * scale)


def _nearest(points: NDArray[np.float64], to: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,): squared distance of each point from the nearest of some."""
    squares = (points**2).sum(axis=1)[:, None] + (to**2).sum(axis=1)[None] - 2 * points @ to.T
    return np.asarray(squares.min(axis=1, initial=np.inf))
