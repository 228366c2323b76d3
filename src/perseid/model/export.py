"""From a weight file to the ONNX file that workers load, and what int8 changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perseid.model.config import AstroMAEConfig
from perseid.model.folded import FoldedGraph
from perseid.model.operations import allocated_bytes_per_row
from perseid.model.quantise import calibrate
from perseid.model.runtime import ModelRuntime, int8_url
from perseid.model.signature import METADATA_KEY, ModelSignature
from perseid.model.weights import Weights, load_weights
from perseid.storage import Storage, split_url
from perseid.survey.cutouts import UGRIZ, Cutouts


def export_model(weights: Weights | str | Path, out: str | Path) -> ModelSignature:
    """Write the folded float32 graph to a path or URL.

    Raises `BadModel` where the weights do not fit, `NotInstalled` without the ``export`` extra.
    """
    if not isinstance(weights, Weights):
        weights = load_weights(weights)
    signature = signature_of(weights.config)
    _put(out, model_bytes(weights, signature))
    return signature


def model_bytes(weights: Weights, signature: ModelSignature | None = None) -> bytes:
    """The folded float32 graph as the bytes of an ONNX file."""
    signature = signature or signature_of(weights.config)
    model = FoldedGraph(weights).build({METADATA_KEY: signature.to_json()})
    data: bytes = model.SerializeToString()
    return data


def signature_of(config: AstroMAEConfig) -> ModelSignature:
    """What the exported model says of itself."""
    return ModelSignature(
        name=config.name,
        bands=config.bands,
        height=config.size,
        width=config.size,
        feature_groups=config.feature_groups,
        allocated_bytes_per_row=allocated_bytes_per_row(config),
        band_names=UGRIZ if config.bands == len(UGRIZ) else (),
    )


def export_int8(weights: Weights | str | Path, model: str | Path, survey: Cutouts) -> str:
    """Write the int8 form of an exported model beside it (`int8_url`) and give its URL.

    See `perseid.model.quantise`. Raises `BadInput` where `survey` holds no usable row, `BadModel`
    where it has not the shape that the model takes.
    """
    if not isinstance(weights, Weights):
        weights = load_weights(weights)
    ranges = calibrate(weights, finite_rows(survey))
    signature = replace(signature_of(weights.config), precision="int8")
    target = int8_url(model)
    graph = FoldedGraph(weights, ranges).build({METADATA_KEY: signature.to_json()})
    _put(target, graph.SerializeToString())
    return target


@dataclass(frozen=True)
class Change:
    """What int8 changes against float32 on one survey; redshift errors where z is known."""

    rows: int
    largest: float
    """Largest difference of a prediction."""
    mae: tuple[float, float] | None
    """Mean |z_pred - z| in float32 and int8."""
    nmad: tuple[float, float] | None
    """1.4826 * median |dz - median dz| of dz = (z_pred - z) / (1 + z), float32 and int8."""
    spearman: float | None
    """Rank correlation of the anomaly scores; None where the model has no features."""
    top: float | None
    """Share of the 100 (or fewer: one row in ten) most anomalous rows that stay among them."""


def compare(before: ModelRuntime, after: ModelRuntime, survey: Cutouts) -> Change:
    """Run both over a survey (rows with unusable pixels or magnitudes left out)."""
    survey = finite_rows(survey)
    one, two = (model.predict(survey.images, survey.magnitudes) for model in (before, after))
    spearman = top = None
    if one.features is not None and two.features is not None:
        scores = [_scores(features) for features in (one.features, two.features)]
        spearman = _spearman(*scores)
        top = _overlap(*scores, count=min(100, max(1, len(survey) // 10)))
    mae = nmad = None
    if survey.redshift is not None:
        z = np.asarray(survey.redshift, np.float64)
        errors = [prediction.redshift - z for prediction in (one, two)]
        mae = (_mae(errors[0]), _mae(errors[1]))
        nmad = (_nmad(errors[0] / (1 + z)), _nmad(errors[1] / (1 + z)))
    largest = float(np.abs(one.redshift - two.redshift).max(initial=0.0))
    return Change(len(survey), largest, mae, nmad, spearman, top)


def _mae(error: NDArray[np.float64]) -> float:
    return float(np.abs(error).mean())


def _nmad(error: NDArray[np.float64]) -> float:
    return float(1.4826 * np.median(np.abs(error - np.median(error))))


def _scores(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared Mahalanobis distances from these rows' own mean and covariance."""
    x = np.asarray(features, np.float64)
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-12)
    covariance = x.T @ x / max(1, len(x) - 1) + 1e-3 * np.eye(x.shape[1])
    distances: NDArray[np.float64] = np.einsum("ij,ij->i", x, np.linalg.solve(covariance, x.T).T)
    return distances


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1]) if len(a) > 1 else 1.0


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64], *, count: int) -> float:
    top = [set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (a, b)]
    return len(top[0] & top[1]) / count


def finite_rows(survey: Cutouts) -> Cutouts:
    """The rows of which every pixel and magnitude is a number."""
    good = np.isfinite(survey.magnitudes).all(axis=1)
    good &= np.isfinite(survey.images).all(axis=(1, 2, 3))
    return survey if good.all() else survey[np.flatnonzero(good)]


def _put(url: str | Path, data: bytes) -> None:
    base, name = split_url(url)
    Storage(base).put(name, data)
