"""Anomaly scores: how unusual an object is compared with the whole survey.

The score is a Mahalanobis distance of an object's features (the network's embedding, the
statistics of its reconstruction residuals, or both) from the survey's mean, in the metric of the
survey's covariance. `Moments` contain everything needed for that, so each partition is read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInputError
from perseid.science.fixed_order import eigh, product, solve
from perseid.science.moments import Moments

GROUPS = ("both", "embedding", "residual")
"""Which features a score uses; `both` means all groups of the model."""
EIGENVALUE_FLOOR = 1e-3
"""Least eigenvalue of the shrunk correlation matrix. Directions with less variance are float32
rounding noise, and would otherwise dominate the distance."""
GROUP_WEIGHT = {"embedding": 0.5, "residual": 1.0}
"""Weight of each group's mean square distance in the combined score. The embedding shows what kind
of object it is, the residuals whether it is unusual for its kind. The weights were chosen on
simulated anomalies with another seed than the model card's; anything from 0.25 to 1 gives nearly
the same."""
DEAD = 1e-6
"""A feature whose spread is below this fraction of its mean size counts as constant and is left
out."""
BLOCK = 8192
"""Rows to whiten at once, which bounds the memory needed besides the features."""


@dataclass(frozen=True, eq=False)
class Metric:
    """A distance from a survey's mean, in units of the survey's own spread: Mahalanobis, by
    groups."""

    mean: NDArray[np.float64]
    """(d,)."""
    matrix: NDArray[np.float64]
    """(d, k): the score is the length of ``(x - mean) @ matrix``."""

    @classmethod
    def of(cls, moments: Moments, groups: Mapping[str, int] | None = None) -> Metric:
        """From a survey's moments.

        Without groups, or with one, the ordinary Mahalanobis distance over the root of the number
        of features. Several groups are processed in order: for each, the part that earlier groups
        predict linearly is removed, and the Mahalanobis distance of the rest counts with its weight
        in `GROUP_WEIGHT`, however many features it has.

        Each feature is divided by its spread; the correlation matrix is shrunk toward the
        identity by ``d / (n + d)``, so n < d is allowed, and its eigenvalues are floored. Constant
        features get weight zero.
        """
        covariance = moments.covariance()
        if not np.isfinite(covariance).all():
            raise BadInputError(
                "the features are too large for a covariance in float64: scale the model's "
                "features, or run without the anomaly score"
            )
        spread = np.sqrt(np.clip(np.diag(covariance), 0.0, None))
        # A constant feature has no scale; divided by its rounding noise it would dominate the
        # score.
        alive = spread > DEAD * np.maximum(np.abs(moments.mean), DEAD)
        scale = np.where(alive, 1.0 / np.where(alive, spread, 1.0), 0.0)
        shrink = alive.sum() / max(moments.count + alive.sum(), 1)
        correlation = (1.0 - shrink) * covariance * np.outer(scale, scale) + np.diag(shrink * alive)
        sizes = dict(groups or {"all": moments.width})
        weights = np.array([GROUP_WEIGHT.get(name, 1.0) for name in sizes])
        ends = np.cumsum([0, *sizes.values()])
        blocks = []
        for start, end, weight in zip(ends[:-1], ends[1:], weights / weights.sum(), strict=True):
            columns = np.flatnonzero(alive[start:end]) + start
            before = np.flatnonzero(alive[:start])
            if len(columns):
                block = _conditional(correlation, before, columns)
                blocks.append(block * np.sqrt(weight / len(columns)))
        matrix = np.concatenate([np.zeros((moments.width, 0)), *blocks], axis=1)
        return cls(moments.mean, scale[:, None] * matrix)

    def distance(self, features: ArrayLike) -> NDArray[np.float64]:
        """Score (n,) of (n, d) features, about 1 for a plain object; NaN for rows that are not
        finite."""
        array = np.asarray(features)
        if array.ndim != 2 or array.shape[1] != len(self.mean):
            raise BadInputError(f"features {array.shape} do not fit moments of {len(self.mean)}")
        out = np.empty(len(array), np.float64)
        for start in range(0, len(array), BLOCK):
            centered = np.asarray(array[start : start + BLOCK], np.float64) - self.mean
            white = product(centered, self.matrix)
            out[start : start + BLOCK] = np.sqrt(np.sum(white * white, axis=1))
        out[~np.isfinite(array).all(axis=1)] = np.nan
        return out


def _conditional(
    correlation: NDArray[np.float64], before: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(d, k): whitens the part of features `columns` that features `before` do not predict
    linearly."""
    given = correlation[np.ix_(before, before)] + EIGENVALUE_FLOOR * np.eye(len(before))
    across = correlation[np.ix_(before, columns)]
    slope = solve(given, across)
    left = correlation[np.ix_(columns, columns)] - product(across.T, slope)
    # Make it exactly symmetric: the halves may differ by rounding, and the solver reads only one.
    values, vectors = eigh((left + left.T) / 2.0)
    white = vectors / np.sqrt(np.maximum(values, EIGENVALUE_FLOOR))
    block = np.zeros((len(correlation), len(columns)))
    block[columns] = white
    block[before] = -product(slope, white)
    return block


def group_columns(groups: Mapping[str, int], use: str = "both") -> NDArray[np.int64]:
    """Columns of the features that `use` names, from a model's `feature_groups` in order.

    Raises `BadInputError` if the model has no such group.
    """
    if use not in GROUPS:
        raise BadInputError(
            f"anomaly features {use!r} are not known: choose one of {', '.join(GROUPS)}"
        )
    if use != "both" and use not in groups:
        have = ", ".join(groups) or "none"
        raise BadInputError(
            f"the model has no {use!r} features (it has: {have}): choose another group"
        )
    starts = np.cumsum([0, *groups.values()])
    parts = [
        np.arange(start, start + width)
        for start, (name, width) in zip(starts, groups.items(), strict=False)
        if use in ("both", name)
    ]
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)


def mahalanobis(
    features: ArrayLike, moments: Moments, groups: Mapping[str, int], use: str = "both"
) -> NDArray[np.float64]:
    """Anomaly score of each row against the survey that `moments` describes.

    Parameters
    ----------
    features
        (n, d), as returned by the model.
    moments
        Moments of all d features over the whole survey.
    groups
        The model's `feature_groups`: name to width, in order.
    use
        ``both``, ``embedding`` or ``residual``.

    Returns
    -------
    float64 (n,), about 1 for a plain object, larger for a rarer one; NaN for rows that are not
    finite.
    """
    chosen = group_columns(groups, use)
    taken = {name: width for name, width in groups.items() if use in ("both", name)}
    return Metric.of(moments.columns(chosen), taken).distance(np.asarray(features)[:, chosen])


def ranking(scores: ArrayLike, partition: ArrayLike, row: ArrayLike) -> NDArray[np.int64]:
    """Rank of each row: 1 for the highest score, 0 for rows without one (NaN).

    Ties are broken by `partition` (index in natural order), then `row`, so the result does not
    depend on which worker scored which rows.
    """
    score = np.asarray(scores, np.float64)
    # lexsort sorts by its last key first.
    order = np.lexsort((np.asarray(row), np.asarray(partition), -score))
    ranks = np.empty(len(score), np.int64)
    ranks[order] = np.arange(1, len(score) + 1)  # NaN sorts last, so the others stay 1..n
    ranks[np.isnan(score)] = 0
    return ranks
