"""From a weight file to the ONNX file that workers load, and what int8 changes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInput, NotInstalled
from perseid.model.config import AstroMAEConfig
from perseid.model.folded import FoldedGraph
from perseid.model.operations import allocated_bytes_per_row
from perseid.model.runtime import ModelRuntime, int8_url
from perseid.model.signature import METADATA_KEY, ModelSignature
from perseid.model.weights import Weights, load_weights
from perseid.storage import Storage, split_url
from perseid.survey.cutouts import UGRIZ, Cutouts

CALIBRATION_ROWS = 512
"""Rows whose ranges set the int8 scales: the first ones of the survey given."""


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


def export_int8(model: str | Path, survey: Cutouts) -> str:
    """Write the int8 form beside an exported model (`int8_url`) and give its URL.

    Only the products of the encoder with constant weights are quantised, statically: weights a
    column, activations a tensor, ranges from the first `CALIBRATION_ROWS` of `survey`. The
    magnitude branch, the inception branch and the heads stay float32: magnitudes would lose the
    precision that redshifts need.

    Raises `BadInput` where the survey is empty, `NotInstalled` without the ``export`` extra.
    """
    if not len(survey):
        raise BadInput("the calibration survey holds no rows")
    quantization = _quantization()
    rows = _finite(survey[:CALIBRATION_ROWS])
    runtime = ModelRuntime.load(model, threads=1)
    runtime.predict(rows.images[:1], rows.magnitudes[:1])  # one sentence where it does not fit
    base, name = split_url(model)
    with tempfile.TemporaryDirectory(prefix="perseid-") as folder:
        source, result = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(Storage(base).get(name))
        quantization.quantize_static(
            source,
            result,
            _Calibration(rows),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            nodes_to_quantize=_encoder_products(source),
            op_types_to_quantize=["MatMul"],
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        data = _with_signature(result, runtime.signature)
    target = int8_url(model)
    _put(target, data)
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
    survey = _finite(survey)
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


def _finite(survey: Cutouts) -> Cutouts:
    good = np.isfinite(survey.magnitudes).all(axis=1)
    good &= np.isfinite(survey.images).all(axis=(1, 2, 3))
    return survey if good.all() else survey[np.flatnonzero(good)]


class _Calibration:
    """Micro-batches in the form that onnxruntime's quantiser asks for."""

    def __init__(self, rows: Cutouts, size: int = 64) -> None:
        self._batches: Iterator[Cutouts] = rows.batches(size)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next feed, None at the end."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        return {
            "image": np.ascontiguousarray(batch.images),
            "magnitude": np.asarray(batch.magnitudes, np.float32),
        }


def _encoder_products(path: Path) -> list[str]:
    """Names of the MatMul nodes of the encoder and decoder that multiply by a constant matrix."""
    import onnx

    graph = onnx.load(str(path)).graph
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    blocks = ("blocks.", "encoder.", "decoder.")
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices and node.name.startswith(blocks)
    ]


def _with_signature(path: Path, signature: ModelSignature) -> bytes:
    from dataclasses import replace

    import onnx

    model = onnx.load(str(path))
    text = replace(signature, precision="int8").to_json()
    onnx.helper.set_model_props(model, {METADATA_KEY: text})
    data: bytes = model.SerializeToString()
    return data


def _quantization() -> Any:
    try:
        import onnx  # noqa: F401 - the quantiser needs it
        from onnxruntime import quantization
    except ImportError as error:
        raise NotInstalled("int8 needs onnx: pip install 'perseid[export]'") from error
    return quantization


def _put(url: str | Path, data: bytes) -> None:
    base, name = split_url(url)
    Storage(base).put(name, data)
