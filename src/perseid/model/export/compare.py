"""How another form of a model changes predictions, redshift errors and anomaly ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseid.model.runtime import ModelRuntime
from perseid.science import Moments, mahalanobis, redshift_metrics
from perseid.survey.cutouts import Cutouts

TOP = 100
"""Number of most anomalous rows that are compared."""


@dataclass(frozen=True)
class PredictionChange:
    """Metrics before and after the change, on the same rows; `perseid.science` defines them."""

    rows: int
    largest: float
    """Largest absolute difference between predicted redshifts."""
    mae: tuple[float, float] | None
    """Mean absolute redshift errors; None if no redshift is known, like `nmad`."""
    nmad: tuple[float, float] | None
    spearman: float | None
    """Rank correlation of the anomaly scores; None if the model has no features."""
    top: float | None
    """Share of the `TOP` most anomalous rows (or of a tenth of all rows, if fewer) that remain
    among them."""


def compare(before: ModelRuntime, after: ModelRuntime, survey: Cutouts) -> PredictionChange:
    """Run both models over a survey; rows with unusable pixels or magnitudes are left out."""
    survey = finite_rows(survey)
    one, two = (model.predict(survey.images, survey.magnitudes) for model in (before, after))
    mae = nmad = spearman = top = None
    if survey.redshift is not None:
        first, second = (redshift_metrics(p.redshift, survey.redshift) for p in (one, two))
        mae, nmad = (first.mae, second.mae), (first.nmad, second.nmad)
    if one.features is not None and two.features is not None:
        groups = before.signature.feature_groups
        scores = [mahalanobis(f, Moments.of(f), groups) for f in (one.features, two.features)]
        spearman = _spearman(*scores)
        top = _overlap(*scores, count=min(TOP, max(1, len(survey) // 10)))
    largest = float(np.abs(one.redshift - two.redshift).max(initial=0.0))
    return PredictionChange(len(survey), largest, mae, nmad, spearman, top)


def finite_rows(survey: Cutouts) -> Cutouts:
    """Rows whose pixels and magnitudes are all finite."""
    good = np.isfinite(survey.needed_magnitudes()).all(axis=1)
    good &= np.isfinite(survey.images).all(axis=(1, 2, 3))
    return survey if good.all() else survey[np.flatnonzero(good)]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1]) if len(a) > 1 else 1.0


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64], *, count: int) -> float:
    top = [set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (a, b)]
    return len(top[0] & top[1]) / count
