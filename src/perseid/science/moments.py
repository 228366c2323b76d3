"""Mergeable sufficient statistics of a survey's features: count, mean, scatter matrix.

Each partition has one `Moments`. Merging them in any grouping (Chan, Golub & LeVeque 1983) gives
those of the whole survey, up to rounding; `Partial` gives the same bits in any grouping.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInputError
from perseid.science import fixed_order


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
        """Moments of no rows, the neutral element of `merge`."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, features: ArrayLike, keep: NDArray[np.bool_] | None = None) -> Moments:
        """Moments of (n, d) features, without rows that are not finite or not in `keep` (n,)."""
        array = np.asarray(features)
        if array.ndim != 2:
            raise BadInputError(f"features must be (n, d), not {array.shape}")
        good = np.isfinite(array).all(axis=1)
        chosen = good if keep is None else good & keep
        # Only one copy in float64, since these are the largest arrays of a worker.
        rows = np.array(array if chosen.all() else array[chosen], np.float64, order="C")
        if not len(rows):
            return cls.empty(array.shape[1])
        mean = rows.mean(axis=0)
        rows -= mean
        return cls(len(rows), mean, fixed_order.gram(rows))

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows; raises `BadInputError` if the widths differ."""
        if self.width != other.width:
            raise BadInputError(
                f"moments of {self.width} and of {other.width} features cannot be merged: "
                "all partitions of a run must go through one model"
            )
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        # Computed around the two means, because a difference of large sums of squares would cancel.
        shift = other.mean - self.mean
        weight = self.count * other.count / count
        scatter = self.scatter + other.scatter + np.outer(shift, shift) * weight
        return Moments(count, self.mean + shift * (other.count / count), scatter)

    @staticmethod
    def total(parts: Iterable[Moments]) -> Moments:
        """Merge in the order of `parts`, as a fixed tree (see `Partial`).

        Raises `BadInputError` if there are no parts.
        """
        return Partial.of(enumerate(parts)).total()

    def columns(self, chosen: NDArray[np.int64]) -> Moments:
        """Moments of some of the features."""
        return Moments(self.count, self.mean[chosen], self.scatter[np.ix_(chosen, chosen)])

    @property
    def width(self) -> int:
        """Number of features d."""
        return int(self.mean.shape[0])

    def covariance(self) -> NDArray[np.float64]:
        """(d, d), divided by n; zero if n is 0."""
        return self.scatter / max(self.count, 1)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For `numpy.savez`; `from_arrays` takes them back bit for bit."""
        return {
            "count": np.asarray(self.count, np.int64),
            "mean": self.mean,
            "scatter": self.scatter,
        }

    def to_json(self) -> dict[str, object]:
        """Plain JSON values; floats keep every bit."""
        return {name: array.tolist() for name, array in self.to_arrays().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, object]) -> Moments:
        """The inverse of `to_arrays` and `to_json`; raises `BadInputError` if a part is missing or
        the shapes do not match."""
        try:
            count = int(np.asarray(arrays["count"], np.int64))
            mean = np.asarray(arrays["mean"], np.float64)
            scatter = np.asarray(arrays["scatter"], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(f"these moments cannot be read: {error!r}") from error
        if mean.ndim != 1 or scatter.reshape(-1).size != mean.size**2:
            raise BadInputError(
                f"moments with mean {mean.shape} and scatter {scatter.shape} are broken"
            )
        return cls(count, mean, scatter.reshape(mean.size, mean.size))


@dataclass(frozen=True, eq=False)
class Partial:
    """Moments of some of a survey's partitions, as nodes of the one binary tree over all of them.

    Node (level, index) covers partition ``index * 2**level`` and the ``2**level - 1`` after it, and
    is always merged from its two halves. So the total has the same bits, whatever the order in
    which partials are joined. A partial of n consecutive partitions holds about 2 log2(n) moments.
    """

    nodes: Mapping[tuple[int, int], Moments]
    """By (level, index). No node contains another, and no two nodes are halves of the same one."""

    @classmethod
    def of(cls, parts: Iterable[tuple[int, Moments]]) -> Partial:
        """Combine partitions, each with its index in the survey; gaps are allowed."""
        nodes: dict[tuple[int, int], Moments] = {}
        for place, part in parts:
            _grow(nodes, 0, place, part)
        return cls(nodes)

    def join(self, other: Partial) -> Partial:
        """Combine both sets of partitions; commutative and associative, bit for bit."""
        nodes = dict(self.nodes)
        for (level, index), part in other.nodes.items():
            _grow(nodes, level, index, part)
        return Partial(nodes)

    def total(self) -> Moments:
        """Merge all nodes; raises `BadInputError` if there are none."""
        whole: Moments | None = None
        for _, part in sorted(self.nodes.items(), key=_place, reverse=True):
            whole = part if whole is None else part.merge(whole)
        if whole is None:
            raise BadInputError("there are no moments to merge: the run has no partition with rows")
        return whole


def _grow(nodes: dict[tuple[int, int], Moments], level: int, index: int, part: Moments) -> None:
    """Add a node; two halves are merged as soon as both exist."""
    while (twin := nodes.pop((level, index ^ 1), None)) is not None:
        # The left half always comes first, which makes the bits independent of the order of
        # arrival.
        part = twin.merge(part) if index & 1 else part.merge(twin)
        level, index = level + 1, index >> 1
    nodes[level, index] = part


def _place(node: tuple[tuple[int, int], Moments]) -> int:
    (level, index), _ = node
    return index << level
