"""Find ranges for the int8 encoder: the inputs of its products on some calibration rows.

Quantization is static: in every transformer block, the four products with constant weights take
8-bit inputs over the range found here and 8-bit weights with a scale per column, and sum in 32
bits. Everything else stays float32: attention itself, the convolution branches, pixels (a few
bright ones would spoil the range of the faint), and above all magnitudes and heads, whose
resolution redshifts need.
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
"""Number of rows, taken from the start of the survey, whose ranges set the scales."""
QUANTIZED = ("blocks.", "decoder.blocks.")
_ROWS_A_CALL = 64


def calibrate(weights: Weights, survey: Cutouts) -> dict[int, Range]:
    """Input range of every quantized product, by the product's number in the graph.

    Raises `BadInputError` if `survey` has no usable row, and `BadModelError` if its shape does not
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
    # In batches, because every inner value is an output here and takes memory for each row.
    for part in survey[:CALIBRATION_ROWS].batches(_ROWS_A_CALL):
        magnitudes = np.asarray(part.needed_magnitudes(), np.float32)
        feed = {"image": np.ascontiguousarray(part.images), "magnitude": magnitudes}
        for i, array in enumerate(session.run(values, feed)):
            low[i], high[i] = min(low[i], array.min()), max(high[i], array.max())
    return {number: (float(low[i]), float(high[i])) for i, number in enumerate(inputs)}


def _inputs(folded: FoldedGraph) -> dict[int, str]:
    """The input value of each product to be quantized, by the product's number."""
    return {
        number: value
        for number, (name, value) in enumerate(folded.graph.linear_inputs)
        if name.startswith(QUANTIZED)
    }


def _session_with(model: Any, inputs: dict[int, str]) -> Any:
    """A session that also returns these inner values."""
    import onnx
    import onnxruntime

    for value in set(inputs.values()):
        model.graph.output.append(onnx.ValueInfoProto(name=value))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
