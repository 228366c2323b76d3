"""Explain an object's anomaly score: the shares of feature groups, bands and single features.

The score is the length of a whitened vector, so its square is a sum over features. The part of a
feature is its deviation from the survey's mean times half the derivative of the square by that
feature. Sums of these parts are the shares of groups and bands. A negative part, of a feature that
makes the object less unusual, counts as zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perseid.explore.run_features import RunFeatures
from perseid.model.config import residual_names

SHOWN = 6
"""Maximum number of single features that are named."""
ALL_BANDS = "all bands together"


@dataclass(frozen=True)
class ScoreShare:
    """A named share of the square of a score."""

    name: str
    share: float
    """Fraction of the square, 0 to 1."""

    @property
    def percent(self) -> str:
        """E.g. ``42 %``."""
        return f"{100 * self.share:.0f} %"


@dataclass(frozen=True)
class FeatureDeviation:
    """A single feature that stands out."""

    name: str
    sigmas: float
    """Deviation from the survey's mean, in units of the survey's spread."""

    @property
    def words(self) -> str:
        """E.g. ``+8.1 σ``."""
        return f"{self.sigmas:+.1f} σ"


@dataclass(frozen=True)
class Explanation:
    """The shares and features that made a score."""

    groups: tuple[ScoreShare, ...]
    bands: tuple[ScoreShare, ...]
    """Shares of the residuals by band, largest first; empty if the residuals have no bands."""
    features: tuple[FeatureDeviation, ...]
    """The features with the largest parts, largest first."""


def explain(features: RunFeatures, index: int, bands: Sequence[str]) -> Explanation | None:
    """Explain the score of one object; None if it has no features."""
    row = features.values[index].astype(np.float64)
    if not np.isfinite(row).all():
        return None
    centered = row - features.metric.mean
    parts = centered * (features.metric.matrix @ (centered @ features.metric.matrix))
    names = feature_names(features, bands)
    groups = {name: parts[features.group(name)].sum() for name in features.groups}
    by_band: dict[str, float] = {}
    residual = features.group("residual") if "residual" in features.groups else slice(0, 0)
    for name, part in zip(names[residual], parts[residual], strict=True):
        ends = {band: f" {band.replace('_', ' ')}" for band in bands}
        band = next((band for band in bands if name.endswith(ends[band])), ALL_BANDS)
        by_band[band] = by_band.get(band, 0.0) + float(part)
    # For people: deviations by feature, without the correlations that the score accounts for.
    sigmas = features.standardized(np.array([index]))[0]
    # Only features that raise the score explain it.
    largest = [int(i) for i in np.argsort(-parts)[:SHOWN] if parts[i] > 0]
    # If no feature belongs to a single band, there is nothing to compare.
    known = set(by_band) != {ALL_BANDS}
    return Explanation(
        _shares(groups),
        _shares(by_band, drop=ALL_BANDS) if known else (),
        tuple(FeatureDeviation(names[i], float(sigmas[i])) for i in largest),
    )


def feature_names(features: RunFeatures, bands: Sequence[str]) -> list[str]:
    """Names of all features; group and number if the model gives no names."""
    found: list[str] = []
    for group, width in features.groups.items():
        known = [name.replace("_", " ") for name in residual_names(tuple(bands))]
        # Names fit only the residuals that our own export computes.
        if group == "residual" and len(known) == width:
            found += known
        else:
            found += [f"{group} {number}" for number in range(1, width + 1)]
    return found


def _shares(parts: dict[str, float], drop: str = "") -> tuple[ScoreShare, ...]:
    """Shares of the positive parts, largest first."""
    kept = {name: max(0.0, float(part)) for name, part in parts.items() if name != drop}
    # An object exactly at the mean has no part above zero.
    total = sum(kept.values()) or 1.0
    ordered = sorted(kept.items(), key=lambda pair: -pair[1])
    return tuple(ScoreShare(name, part / total) for name, part in ordered)
