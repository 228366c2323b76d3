"""Export a weight file to the ONNX files that workers load: float32, and optionally int8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from perseid.model.config import AstroMAEConfig
from perseid.model.export.compare import finite_rows
from perseid.model.export.folded import FoldedGraph
from perseid.model.export.operations import allocated_bytes_per_row
from perseid.model.export.quantize import calibrate
from perseid.model.runtime import int8_url
from perseid.model.signature import METADATA_KEY, ModelSignature
from perseid.model.weights import Weights, load_weights
from perseid.storage import Storage
from perseid.survey.cutouts import UGRIZ, Cutouts


def export_model(weights: Weights | str | Path, out: str | Path) -> ModelSignature:
    """Write the folded float32 graph to a path or URL.

    Raises `BadModelError` if the weights do not fit, and `NotInstalledError` if the ``export``
    extra is not installed.
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
    """The signature of the exported model."""
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

    See `perseid.model.export.quantize`. Raises `BadInputError` if `survey` has no usable row, and
    `BadModelError` if its images do not have the model's shape.
    """
    if not isinstance(weights, Weights):
        weights = load_weights(weights)
    ranges = calibrate(weights, finite_rows(survey))
    signature = replace(signature_of(weights.config), precision="int8")
    target = int8_url(model)
    graph = FoldedGraph(weights, ranges).build({METADATA_KEY: signature.to_json()})
    _put(target, graph.SerializeToString())
    return target


def _put(url: str | Path, data: bytes) -> None:
    store, name = Storage.holding(url)
    store.put(name, data)
