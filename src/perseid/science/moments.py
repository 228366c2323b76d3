"""Mergeable sufficient statistics of a survey's features: count, mean, scatter matrix.

Each partition gives one `Moments`; merging them (Chan, Golub & LeVeque 1983) gives those of the
whole survey in any grouping, to rounding. Summing in a fixed order gives the same bits each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInput


@dataclass(frozen=True, eq=False)
class Moments:
    """Sufficient statistics of n feature rows of width d, float64."""

    count: int
    """n: rows whose features are all finite."""
    mean: NDArray[np.float64]
    """(d,)."""
    scatter: NDArray[np.float64]
    """(d, d): sum over rows of (x - mean)(x - mean)^T, "M2"."""

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Of no rows: the neutral element of `merge`."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, features: ArrayLike, keep: NDArray[np.bool_] | None = None) -> Moments:
        """Of (n, d) features; rows that are not finite, or not in `keep` (n,), do not count."""
        array = np.asarray(features)
        if array.ndim != 2:
            raise BadInput(f"features must be (n, d), not {array.shape}")
        good = np.isfinite(array).all(axis=1)
        rows = np.asarray(array[good if keep is None else good & keep], np.float64)
        if not len(rows):
            return cls.empty(array.shape[1])
        mean = rows.mean(axis=0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Those of both sets of rows together; raises `BadInput` where the widths differ."""
        if self.width != other.width:
            raise BadInput(
                f"moments of {self.width} and of {other.width} features cannot be merged: "
                "all partitions of a run must go through one model"
            )
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        shift = other.mean - self.mean
        weight = self.count * other.count / count
        scatter = self.scatter + other.scatter + np.outer(shift, shift) * weight
        return Moments(count, self.mean + shift * (other.count / count), scatter)

    @staticmethod
    def total(parts: Iterable[Moments]) -> Moments:
        """Merged strictly in the given order; raises `BadInput` where there is none."""
        whole: Moments | None = None
        for part in parts:
            whole = part if whole is None else whole.merge(part)
        if whole is None:
            raise BadInput("there are no moments to merge: the run has no partition with rows")
        return whole

    def columns(self, chosen: NDArray[np.int64]) -> Moments:
        """Those of some of the features."""
        return Moments(self.count, self.mean[chosen], self.scatter[np.ix_(chosen, chosen)])

    @property
    def width(self) -> int:
        """Number of features d."""
        return int(self.mean.shape[0])

    def covariance(self) -> NDArray[np.float64]:
        """(d, d), divided by n; zero where n is 0."""
        return self.scatter / max(self.count, 1)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For `numpy.savez`; `from_arrays` takes them back bit for bit."""
        return {
            "count": np.asarray(self.count, np.int64),
            "mean": self.mean,
            "scatter": self.scatter,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; floats keep every bit."""
        return {name: array.tolist() for name, array in self.to_arrays().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Moments:
        """The reverse of `to_arrays` and of `to_json`; raises `BadInput` where a part is missing
        or the shapes do not belong together."""
        try:
            count = int(arrays["count"])
            mean = np.asarray(arrays["mean"], np.float64)
            scatter = np.asarray(arrays["scatter"], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"these moments cannot be read: {error!r}") from error
        if mean.ndim != 1 or scatter.reshape(-1).size != mean.size**2:
            raise BadInput(f"moments with mean {mean.shape} and scatter {scatter.shape} are broken")
        return cls(count, mean, scatter.reshape(mean.size, mean.size))
