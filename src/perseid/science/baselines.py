"""Baselines for a model, and significance: nearest neighbors, paired bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInputError
from perseid.science.fixed_order import product

NEIGHBORS = (5, 8, 10, 15, 20, 30, 40, 60)
"""Candidates for k."""


@dataclass(frozen=True, eq=False)
class NearestNeighbors:
    """Predicts the mean redshift of the k objects that are most similar in scaled magnitudes or
    colors."""

    k: int
    colors: bool
    """Whether objects are compared by one magnitude and the colors, or by all magnitudes."""
    features: NDArray[np.float64]
    """(n, bands) of the training objects, scaled."""
    redshift: NDArray[np.float64]
    """(n,)."""
    center: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(
        cls, magnitudes: ArrayLike, redshift: ArrayLike, k: int, *, colors: bool
    ) -> NearestNeighbors:
        """From training objects: magnitudes (n, bands) and redshift (n,)."""
        raw = _features(magnitudes, colors)
        if not 1 <= k <= len(raw):
            raise BadInputError(f"k is {k}: use 1 to {len(raw)}, the number of training objects")
        # A constant feature must not lead to a division by zero.
        center, scale = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-9)
        true = np.asarray(redshift, np.float64)
        return cls(k, colors, (raw - center) / scale, true, center, scale)

    @classmethod
    def tuned(
        cls,
        magnitudes: ArrayLike,
        redshift: ArrayLike,
        validation: tuple[ArrayLike, ArrayLike],
        neighbors: Sequence[int] = NEIGHBORS,
    ) -> NearestNeighbors:
        """Choose k and the kind of features by the lowest MAE on the validation objects."""
        true = np.asarray(validation[1], np.float64)
        best: tuple[float, NearestNeighbors] | None = None
        for colors in (True, False):
            for k in neighbors:
                if k > len(np.asarray(redshift)):
                    continue
                model = cls.of(magnitudes, redshift, k, colors=colors)
                mae = float(np.mean(np.abs(model.predict(validation[0]) - true)))
                if best is None or mae < best[0]:
                    best = (mae, model)
        if best is None:
            raise BadInputError("there are fewer training objects than neighbors to take")
        return best[1]

    def predict(self, magnitudes: ArrayLike) -> NDArray[np.float64]:
        """Redshift (n,) of objects with magnitudes (n, bands)."""
        wanted = (_features(magnitudes, self.colors) - self.center) / self.scale
        squares = np.sum(self.features**2, axis=1)
        out = np.empty(len(wanted))
        for start in range(0, len(wanted), 256):
            part = wanted[start : start + 256]
            distance = squares - 2.0 * product(part, self.features.T)  # up to a constant per row
            near = np.argpartition(distance, self.k - 1, axis=1)[:, : self.k]
            out[start : start + 256] = self.redshift[near].mean(axis=1)
        return out


@dataclass(frozen=True)
class Interval:
    """A figure with a bootstrap interval over objects."""

    value: float
    low: float
    """2.5th percentile."""
    high: float
    """97.5th percentile."""


def bootstrap_difference(
    figure: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    a: ArrayLike,
    b: ArrayLike,
    z_spec: ArrayLike,
    *,
    repeats: int = 1000,
    seed: int = 0,
) -> Interval:
    """``figure(a, z) - figure(b, z)``, both resampled with the same objects (paired).

    Negative if a is better, for figures that should be small. The interval reflects the randomness
    of the held-out sample, not that of training.
    """
    first, second, true = (np.asarray(x, np.float64) for x in (a, b, z_spec))
    random = np.random.default_rng(seed)
    differences = np.empty(repeats)
    for repeat in range(repeats):
        rows = random.integers(0, len(true), len(true))
        differences[repeat] = figure(first[rows], true[rows]) - figure(second[rows], true[rows])
    low, high = np.percentile(differences, [2.5, 97.5])
    return Interval(figure(first, true) - figure(second, true), float(low), float(high))


def _features(magnitudes: ArrayLike, colors: bool) -> NDArray[np.float64]:
    m = np.asarray(magnitudes, np.float64)
    if not colors:
        return m
    middle = m.shape[1] // 2
    return np.concatenate([m[:, middle : middle + 1], m[:, :-1] - m[:, 1:]], axis=1)
