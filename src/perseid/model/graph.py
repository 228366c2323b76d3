"""A small builder for ONNX graphs: nodes and constants by call, checked at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import NotInstalled

OPSET = 17
"""Oldest that has LayerNormalization; every operator used here keeps its meaning in it."""
IR_VERSION = 8
MICROSOFT = "com.microsoft"
"""Operators that only onnxruntime has: fused GELU, attention and the like."""


class GraphBuilder:
    """Collects nodes; every method gives the name of a value. ``n`` is the batch dimension."""

    def __init__(self) -> None:
        self._onnx = _onnx()
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._count = 0

    def input(self, name: str, shape: Sequence[int]) -> str:
        """A float32 input (n, *shape)."""
        self._inputs.append(self._value(name, shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[int]) -> None:
        """Give `value` out as float32 `name` (n, *shape)."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(self._value(name, shape))

    def constant(self, array: ArrayLike, hint: str = "c") -> str:
        """Floats are kept as float32 (they may be computed in float64), integers as int64.

        Equal arrays are stored once.
        """
        data = np.asarray(array)
        kind = np.int64 if data.dtype.kind in "iub" else np.float32
        tensor = np.ascontiguousarray(data.astype(kind)).reshape(data.shape)
        key = (tensor.dtype.str, tensor.shape, tensor.tobytes())
        if key not in self._known:
            name = self._known[key] = f"{hint}.{len(self._constants)}"
            self._constants[name] = self._onnx.numpy_helper.from_array(tensor, name)
        return self._known[key]

    def op(
        self, kind: str, *inputs: str, domain: str = "", name: str = "", **attributes: Any
    ) -> str:
        """A node with one output; ``""`` leaves out an optional input."""
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
        """A node with several outputs."""
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
        """Reshape; 0 keeps a dimension, -1 is what is left."""
        return self.op("Reshape", value, self.constant(np.array(shape), "shape"))

    def linear(
        self, value: str, weight: NDArray[Any], bias: NDArray[Any] | None, name: str = "linear"
    ) -> str:
        """Rows (…, in) times `weight` (out, in) plus `bias`; any number of leading dimensions."""
        product = self.op("MatMul", value, self.constant(weight.T, f"{name}.weight"), name=name)
        if bias is None:
            return product
        return self.op("Add", product, self.constant(bias, f"{name}.bias"), name=name)

    def model(self, name: str, metadata: dict[str, str]) -> Any:
        """The checked model."""
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
        raise NotInstalled("exporting a model needs onnx: pip install 'perseid[export]'") from error
    return onnx
