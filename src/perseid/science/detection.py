"""How well a score finds labeled anomalies: ROC AUC and average precision by kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInputError


@dataclass(frozen=True)
class Detection:
    """How well one kind of anomaly is separated from plain objects."""

    kind: str
    """Name of the kind; ``all`` for every kind together."""
    n: int
    """Objects of the kind that have a score."""
    plain: int
    """Plain objects (label 0) that have a score."""
    roc_auc: float
    """Probability that an object of the kind scores higher than a plain one; 0.5 is chance."""
    average_precision: float
    """Area under precision against recall; chance is n / (n + plain), so it depends on how rare
    the kind is."""

    def to_json(self) -> dict[str, object]:
        """The figures as JSON values, as ``summary.json`` holds them."""
        return asdict(self)


def roc_auc(positive: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve (Mann-Whitney, ties count half); NaN if a class is empty.

    `positive` bool (n,), `scores` float (n,), no NaN.
    """
    truth, score = _checked(positive, scores)
    n = int(truth.sum())
    others = len(truth) - n
    if not n or not others:
        return float("nan")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2.0
    rank_sum = float(mean_rank[place][truth].sum())
    return (rank_sum - n * (n + 1) / 2.0) / (n * others)


def average_precision(positive: ArrayLike, scores: ArrayLike) -> float:
    """Sum over thresholds of (recall step) x precision; NaN if there is no positive."""
    truth, score = _checked(positive, scores)
    n = int(truth.sum())
    if not n:
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.append(np.diff(score[order]) != 0, True)  # one threshold for equal scores
    hits, taken = hits[last], np.flatnonzero(last) + 1
    steps = np.diff(np.concatenate([[0], hits])) / n
    return float(np.sum(steps * hits / taken))


def detection(scores: ArrayLike, label: ArrayLike, kinds: Mapping[int, str]) -> list[Detection]:
    """``all`` first, then each kind against the plain objects, in the order of `kinds`.

    Parameters
    ----------
    scores
        (n,); rows with NaN are left out.
    label
        (n,), 0 for a plain object, else a key of `kinds`.
    kinds
        Label to name; kinds that do not occur are left out.
    """
    score, labels = np.asarray(scores, np.float64), np.asarray(label)
    if score.shape != labels.shape:
        raise BadInputError(f"scores {score.shape} and labels {labels.shape} do not match")
    good = np.isfinite(score)
    score, labels = score[good], labels[good]
    wanted = [("all", labels != 0)]
    wanted += [(name, labels == value) for value, name in kinds.items() if value != 0]
    return [_one(name, chosen, labels == 0, score) for name, chosen in wanted if chosen.any()]


def _one(
    name: str, chosen: NDArray[np.bool_], plain: NDArray[np.bool_], score: NDArray[np.float64]
) -> Detection:
    both = chosen | plain
    truth, value = chosen[both], score[both]
    return Detection(
        name,
        int(chosen.sum()),
        int(plain.sum()),
        roc_auc(truth, value),
        average_precision(truth, value),
    )


def _checked(
    positive: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    truth, score = np.asarray(positive, np.bool_), np.asarray(scores, np.float64)
    if truth.shape != score.shape or truth.ndim != 1:
        raise BadInputError(f"truth {truth.shape} and scores {score.shape} must both be (n,)")
    if np.isnan(score).any():
        raise BadInputError(
            f"{int(np.isnan(score).sum())} scores are NaN: leave those rows out first"
        )
    return truth, score
