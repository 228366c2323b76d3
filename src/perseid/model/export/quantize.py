"""Ranges for the int8 encoder: what goes into its products on some calibration rows.

Static quantization: the four products with constant weights of every transformer block take
8-bit inputs over the range seen here, 8-bit weights a column, and sum in 32 bits. Everything
else stays float32: attention itself, the convolution branches, pixels (a few bright ones would
spoil the range of the faint), and above all magnitudes and heads, whose resolution redshifts
need.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from perseid.errors import BadInputError, BadModelError
from perseid.model.export.folded import FoldedGraph
from perseid.model.export.graph import Range
from perseid.model.weights import Weights
from perseid.survey.cutouts import Cutouts

CALIBRATION_ROWS = 512
"""Rows whose ranges set the scales: the first ones given."""
QUANTIZED = ("blocks.", "decoder.blocks.")
_ROWS_A_CALL = 64


def calibrate(weights: Weights, survey: Cutouts) -> dict[int, Range]:
    """Range of the input of every quantized product, by its number in the graph.

    Raises `BadInputError` where `survey` holds no row, `BadModelError` where its shape does not
    fit.
    """
    c = weights.config
    if not len(survey):
        raise BadInputError("no usable row to calibrate int8 with: give a survey that has some")
    if survey.images.shape[1:] != (c.bands, c.size, c.size):
        raise BadModelError(
            f"model {c.name!r} takes images of (bands, height, width) = "
            f"{(c.bands, c.size, c.size)}, not {survey.images.shape[1:]}"
        )
    folded = FoldedGraph(weights)
    session = _session_with(folded.build({}), inputs := _inputs(folded))
    values = list(inputs.values())
    low, high = np.full(len(values), np.inf), np.full(len(values), -np.inf)
    # In batches: every inner value is an output here, which takes memory by the row.
    for part in survey[:CALIBRATION_ROWS].batches(_ROWS_A_CALL):
        magnitudes = np.asarray(part.needed_magnitudes(), np.float32)
        feed = {"image": np.ascontiguousarray(part.images), "magnitude": magnitudes}
        for i, array in enumerate(session.run(values, feed)):
            low[i], high[i] = min(low[i], array.min()), max(high[i], array.max())
    return {number: (float(low[i]), float(high[i])) for i, number in enumerate(inputs)}


def _inputs(folded: FoldedGraph) -> dict[int, str]:
    """The value that goes into each product to quantize, by the product's number."""
    return {
        number: value
        for number, (name, value) in enumerate(folded.graph.linear_inputs)
        if name.startswith(QUANTIZED)
    }


def _session_with(model: Any, inputs: dict[int, str]) -> Any:
    """A session that also gives these inner values out."""
    import onnx
    import onnxruntime

    for value in set(inputs.values()):
        model.graph.output.append(onnx.ValueInfoProto(name=value))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
