"""A tiny survey and a tiny model of its own: whole runs in a fraction of a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from perseid.model.inputs import ImageInput
from perseid.model.outputs import ModelOutput
from perseid.model.signature import METADATA_KEY, ModelSignature
from perseid.survey.cutouts import Cutouts
from perseid.survey.reader import write_cutouts

SIDE = 8
"""Pixels of a tiny cutout's edge."""
WEIGHTS = np.array([0.11, -0.07, 0.05, -0.03, 0.02], np.float32)
"""The tiny model: redshift is magnitudes times these, plus a little of the mean pixel."""


def tiny_model(
    path: Path, *, bands: int = 5, side: int = SIDE, groups: bool = True,
    weights: np.ndarray = WEIGHTS,
) -> Path:  # fmt: skip
    """Write a model whose answers `tiny_redshift` repeats; features are plain statistics."""
    column = numpy_helper.from_array(np.resize(weights, bands).reshape(bands, 1), "weights")
    share = numpy_helper.from_array(np.float32(0.01), "share")
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    every = numpy_helper.from_array(np.array([1, 2, 3], np.int64), "every")
    nodes = [
        helper.make_node("MatMul", ["magnitude", "weights"], ["colour"]),
        helper.make_node("ReduceMean", ["image", "every"], ["mean0"], keepdims=0),
        helper.make_node("Mul", ["mean0", "share"], ["mean1"]),
        helper.make_node("Unsqueeze", ["mean1", "one"], ["mean2"]),
        helper.make_node("Add", ["colour", "mean2"], ["redshift"]),
    ]
    outputs = [helper.make_tensor_value_info("redshift", TensorProto.FLOAT, ["n", 1])]
    widths: dict[str, int] = {}
    if groups:
        widths = {"embedding": bands, "residual": 2 * bands}
        nodes += [
            helper.make_node("ReduceMean", ["image", "axes"], ["means"], keepdims=0),
            helper.make_node("ReduceMax", ["image", "axes"], ["peaks"], keepdims=0),
            helper.make_node("Concat", ["magnitude", "means", "peaks"], ["features"], axis=1),
        ]
        outputs.append(
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3 * bands])
        )
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", bands, side, side]),
            helper.make_tensor_value_info("magnitude", TensorProto.FLOAT, ["n", bands]),
        ],
        outputs,
        [column, share, axes, every, one],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    signature = ModelSignature(
        "tiny", bands, side, side, widths, allocated_bytes_per_row=1000, band_names=tuple("ugriz")
    )
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, signature.to_json()
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def tiny_redshift(cutouts: Cutouts) -> np.ndarray:
    """What the tiny model answers, in float64."""
    color = cutouts.magnitudes.astype(np.float64) @ WEIGHTS.astype(np.float64)
    return color + 0.01 * cutouts.images.astype(np.float64).mean(axis=(1, 2, 3))


def tiny_cutouts(rows: int, seed: int = 1, *, side: int = SIDE, bands: int = 5) -> Cutouts:
    """Noise with a slope; one row in ten is a labeled anomaly (kind 5, a bright pixel)."""
    random = np.random.default_rng(seed)
    images = random.normal(0.0, 1.0, (rows, bands, side, side)).astype(np.float32)
    magnitudes = random.normal(18.0, 1.5, (rows, bands))
    label = (random.random(rows) < 0.1).astype(np.int32) * 5
    images[label == 5, :, 2, 3] += 25.0
    weights = np.resize(WEIGHTS, bands).astype(np.float64)
    redshift = np.abs(magnitudes @ weights + random.normal(0, 0.01, rows))
    return Cutouts(images, magnitudes, redshift, 1000 + np.arange(rows, dtype=np.int64), label)


def tiny_survey(
    folder: Path, rows: int = 100, per_partition: int = 10, *, suffix: str = ".pt", seed: int = 1
) -> Cutouts:
    """Write a survey as partitions ``1.pt``, ``2.pt`` …; all of it, in their order."""
    whole = tiny_cutouts(rows, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(whole.batches(per_partition), start=1):
        write_cutouts(part, folder / f"{number}{suffix}")
    return whole


CLASSES = ("smooth", "spiral arms", "merger")
"""Of the tiny classifier."""


def tiny_classifier(
    path: Path, *, bands: int = 5, side: int = SIDE, logits: bool = True, metadata: bool = True
) -> Path:
    """Write a model that tells `CLASSES` apart by the mean of each band, and predicts nothing else.

    `metadata`: whether the file says what its output means.
    """
    weights = np.random.default_rng(3).normal(0, 3, (bands, len(CLASSES))).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["votes" if logits else "raw"]),
    ]
    nodes += [] if logits else [helper.make_node("Softmax", ["raw"], ["votes"], axis=1)]
    graph = helper.make_graph(
        nodes,
        "tiny classifier",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", bands, side, side])],
        [helper.make_tensor_value_info("votes", TensorProto.FLOAT, ["n", len(CLASSES)])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if metadata:
        signature = classifier_signature(bands=bands, side=side, logits=logits)
        helper.set_model_props(model, {METADATA_KEY: signature.to_json()})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def classifier_signature(
    *, bands: int = 5, side: int = SIDE, logits: bool = True, classes: tuple[str, ...] = CLASSES
) -> ModelSignature:
    """What the tiny classifier takes and gives."""
    votes = ModelOutput("votes", "probabilities", classes=classes, logits=logits)
    image = ImageInput("pixels")
    return ModelSignature(
        "classifier", bands, side, side, band_names=(), image=image, columns=(), outputs=(votes,)
    )
