"""A small builder for ONNX graphs: nodes and constants by call, checked at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.libraries import library_error

OPSET = 17
"""The oldest opset that has LayerNormalization; later ones define all operators used here
identically."""
IR_VERSION = 8
MICROSOFT = "com.microsoft"
"""Domain of operators that only onnxruntime has, such as fused GELU and attention."""


Range = tuple[float, float]
"""Smallest and largest integer of a quantized input."""


class GraphBuilder:
    """Collects nodes; every method returns the name of a value. ``n`` is the batch dimension.

    Parameters
    ----------
    ranges
        Input ranges by the number of a call of `linear`; those calls are computed in 8-bit
        integers.
    """

    def __init__(self, ranges: Mapping[int, Range] | None = None) -> None:
        self.linear_inputs: list[tuple[str, str]] = []
        """Name and input value of every `linear`, in the order of the calls."""
        self._ranges = ranges or {}
        self._onnx = _onnx()
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._count = 0

    def input(self, name: str, shape: Sequence[int]) -> str:
        """Add a float32 input (n, *shape)."""
        self._inputs.append(self._value(name, shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[int]) -> None:
        """Make `value` a float32 output `name` (n, *shape)."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(self._value(name, shape))

    def constant(self, array: ArrayLike, hint: str = "c") -> str:
        """Add a constant: floats are stored as float32 (they may be computed in float64), integers
        as int64.

        Equal arrays are stored once.
        """
        data = np.asarray(array)
        kind = np.int64 if data.dtype.kind in "iub" else np.float32
        return self._tensor(data.astype(kind), hint)

    def _tensor(self, array: Any, hint: str) -> str:
        data = np.asarray(array)
        tensor = np.ascontiguousarray(data).reshape(data.shape)
        key = (tensor.dtype.str, tensor.shape, tensor.tobytes())
        if key not in self._known:
            name = self._known[key] = f"{hint}.{len(self._constants)}"
            self._constants[name] = self._onnx.numpy_helper.from_array(tensor, name)
        return self._known[key]

    def op(
        self, kind: str, *inputs: str, domain: str = "", name: str = "", **attributes: Any
    ) -> str:
        """Add a node with one output; ``""`` omits an optional input."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, name=name, **attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: str,
        outputs: int,
        domain: str = "",
        name: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Add a node with several outputs."""
        self._count += 1
        label = f"{name or kind}.{self._count}"
        values = [label if outputs == 1 else f"{label}:{i}" for i in range(outputs)]
        self._nodes.append(
            self._onnx.helper.make_node(
                kind, list(inputs), values, name=label, domain=domain, **attributes
            )
        )
        return values

    def reshape(self, value: str, *shape: int) -> str:
        """Add a Reshape; 0 keeps a dimension, -1 stands for the rest."""
        return self.op("Reshape", value, self.constant(np.array(shape), "shape"))

    def linear(
        self, value: str, weight: NDArray[Any], bias: NDArray[Any] | None, name: str = "linear"
    ) -> str:
        """The product of rows (m, in) with `weight` (out, in), plus `bias`."""
        number = len(self.linear_inputs)
        self.linear_inputs.append((name, value))
        if number in self._ranges:
            return self._integer_linear(value, weight, bias, name, self._ranges[number])
        product = self.op("MatMul", value, self.constant(weight.T, f"{name}.weight"), name=name)
        if bias is None:
            return product
        return self.op("Add", product, self.constant(bias, f"{name}.bias"), name=name)

    def _integer_linear(
        self, value: str, weight: NDArray[Any], bias: NDArray[Any] | None, name: str, span: Range
    ) -> str:
        """The same product with 8-bit inputs over the range `span` (zero is exact), weights in 8
        bits with a scale per column, and 32-bit sums."""
        low, high = min(span[0], 0.0), max(span[1], 0.0)
        scale = max(high - low, 1e-12) / 255
        zero = self._tensor(np.uint8(round(-low / scale)), f"{name}.zero")
        step = np.maximum(np.abs(weight).max(axis=1), 1e-12) / 127
        integers = np.rint(weight / step[:, None]).astype(np.int8)
        a_scale = self.constant(scale, f"{name}.scale")
        return self.op(
            "MatMulIntegerToFloat",
            self.op("QuantizeLinear", value, a_scale, zero, name=name),
            self._tensor(integers.T, f"{name}.int8"),
            a_scale,
            self.constant(step, f"{name}.step"),
            zero,
            "",
            *([] if bias is None else [self.constant(bias, f"{name}.bias")]),
            domain=MICROSOFT,
            name=name,
        )

    def model(self, name: str, metadata: dict[str, str]) -> Any:
        """The finished model, checked by ONNX's checker."""
        helper = self._onnx.helper
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, list(self._constants.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        model.producer_name = "perseid"
        helper.set_model_props(model, metadata)
        self._onnx.checker.check_model(model)
        return model

    def _value(self, name: str, shape: Sequence[int]) -> Any:
        kind = self._onnx.TensorProto.FLOAT
        return self._onnx.helper.make_tensor_value_info(name, kind, ["n", *shape])


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise library_error(
            error, "exporting a model needs onnx: pip install 'perseid[export]'"
        ) from error
    return onnx
