"""How unusual an object is, against the distribution of the whole survey.

The score is the Mahalanobis distance of an object's features (the network's embedding, the
statistics of its reconstruction residuals, or both) from the survey's mean, in the metric of the
survey's covariance. `Moments` carry all that is needed, so partitions are seen once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInput
from perseid.science.moments import Moments

GROUPS = ("both", "embedding", "residual")
"""Which features a score takes; `both` is all groups the model has."""
EIGENVALUE_FLOOR = 1e-3
"""Least eigenvalue of the shrunk correlation matrix: directions thinner than this are noise of
float32 arithmetic, and would otherwise rule the distance."""
DEAD = 1e-6
"""A feature whose spread is below this share of its mean size is constant: it is left out."""
BLOCK = 8192
"""Rows whitened at once: bounds the memory beside the features."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """Turns features into uncorrelated ones of unit variance over the survey."""

    mean: NDArray[np.float64]
    """(d,)."""
    matrix: NDArray[np.float64]
    """(d, k): ``(x - mean) @ matrix`` has unit covariance."""

    @classmethod
    def of(cls, moments: Moments) -> Whitening:
        """Regularised inverse root of the covariance.

        Each feature is divided by its spread; the correlation matrix is shrunk towards the
        identity by ``d / (n + d)`` (so n < d is no trouble) and its eigenvalues floored. Constant
        features get weight zero.
        """
        covariance = moments.covariance()
        spread = np.sqrt(np.clip(np.diag(covariance), 0.0, None))
        alive = np.flatnonzero(spread > DEAD * np.maximum(np.abs(moments.mean), DEAD))
        scale = 1.0 / spread[alive]
        shrink = len(alive) / max(moments.count + len(alive), 1)
        correlation = covariance[np.ix_(alive, alive)] * np.outer(scale, scale)
        correlation = (1.0 - shrink) * correlation + shrink * np.eye(len(alive))
        values, vectors = np.linalg.eigh(correlation)
        matrix = np.zeros((moments.width, len(alive)))
        matrix[alive] = scale[:, None] * vectors / np.sqrt(np.maximum(values, EIGENVALUE_FLOOR))
        return cls(moments.mean, matrix)

    def distance(self, features: ArrayLike) -> NDArray[np.float64]:
        """Mahalanobis distance (n,) of (n, d) features; NaN where a feature is not finite.

        Divided by the root of the number of directions, so that a plain object has about 1.
        """
        array = np.asarray(features)
        if array.ndim != 2 or array.shape[1] != len(self.mean):
            raise BadInput(f"features {array.shape} do not fit moments of {len(self.mean)}")
        out = np.empty(len(array), np.float64)
        for start in range(0, len(array), BLOCK):
            centred = np.asarray(array[start : start + BLOCK], np.float64) - self.mean
            white = centred @ self.matrix
            out[start : start + BLOCK] = np.sqrt(np.einsum("ij,ij->i", white, white))
        out /= np.sqrt(max(self.matrix.shape[1], 1))
        out[~np.isfinite(array).all(axis=1)] = np.nan
        return out


def group_columns(groups: Mapping[str, int], use: str = "both") -> NDArray[np.int64]:
    """Columns of the features that `use` names, from a model's `feature_groups` in order.

    Raises `BadInput` where the model has no such group.
    """
    if use not in GROUPS:
        raise BadInput(f"anomaly features {use!r} are not known: choose one of {', '.join(GROUPS)}")
    if use != "both" and use not in groups:
        have = ", ".join(groups) or "none"
        raise BadInput(f"the model has no {use!r} features (it has: {have}): choose another group")
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
        (n, d) as the model gives them.
    moments
        Of all d features over the whole survey.
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
    array = np.asarray(features)
    return Whitening.of(moments.columns(chosen)).distance(array[:, chosen])


def ranking(scores: ArrayLike, partition: ArrayLike, row: ArrayLike) -> NDArray[np.int64]:
    """Rank of each row: 1 for the highest score, 0 for rows without one (NaN).

    Ties are broken by `partition` (index in natural order), then `row`: the result is the same
    whichever worker scored what.
    """
    score = np.asarray(scores, np.float64)
    order = np.lexsort((np.asarray(row), np.asarray(partition), -score))
    ranks = np.empty(len(score), np.int64)
    ranks[order] = np.arange(1, len(score) + 1)  # NaN sorts last, so the others stay 1..n
    ranks[np.isnan(score)] = 0
    return ranks
