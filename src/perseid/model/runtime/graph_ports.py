"""Match a signature with a graph's inputs and outputs: names, types and shapes must agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from perseid.errors import BadModelError
from perseid.model.inputs import MAGNITUDE, ColumnInput
from perseid.model.signature import FEATURES, METADATA_KEY, ModelSignature
from perseid.plaintext import option
from perseid.survey.read_options import CHANNELS_LAST

TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
"""Onnxruntime's names of the numeric types."""
_PLAIN_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}
_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True)
class GraphValue:
    """One input or output of a graph."""

    name: str
    type: str
    """Type in onnxruntime's notation, such as ``tensor(float)``."""
    shape: tuple[int | str | None, ...]
    """Length of each axis; a text or None if it is not fixed."""

    @property
    def dtype(self) -> str:
        """NumPy's name of the type, e.g. ``float32``; empty if it is not a plain number."""
        return TYPES.get(self.type, "")

    def __str__(self) -> str:
        sides = ", ".join("?" if side is None else str(side) for side in self.shape)
        return f"{self.name} {self.dtype or self.type} ({sides})"


@dataclass(frozen=True)
class Graph:
    """Inputs and outputs of a model file, read from its graph."""

    inputs: tuple[GraphValue, ...]
    outputs: tuple[GraphValue, ...]
    signature: str | None
    """Text of the graph's own signature; None if it has none."""

    @classmethod
    def of(cls, session: Any) -> Graph:
        """Create it from an onnxruntime session."""

        def values(found: Sequence[Any]) -> tuple[GraphValue, ...]:
            return tuple(GraphValue(v.name, v.type, tuple(v.shape)) for v in found)

        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        return cls(values(session.get_inputs()), values(session.get_outputs()), text)

    def input(self, name: str) -> GraphValue | None:
        """The input with this name."""
        return next((value for value in self.inputs if value.name == name), None)

    def output(self, name: str) -> GraphValue | None:
        """The output with this name."""
        return next((value for value in self.outputs if value.name == name), None)


@dataclass(frozen=True)
class Ports:
    """Names of a graph's inputs and outputs, and the batch size with which it is run."""

    image: str
    """Name of the image input; empty if the model takes no image."""
    image_shape: tuple[int, ...]
    """Shape of one image as the graph takes it."""
    columns: tuple[tuple[str, ColumnInput], ...]
    """For each column, the graph's name and the input as it is passed; its width is the graph's, 0
    for shape (n,)."""
    outputs: tuple[tuple[str, str], ...]
    """For each output, the graph's name and the signature's."""
    batch: int


def bind(
    graph: Graph, name: str, micro_batch: int, given: ModelSignature | None
) -> tuple[ModelSignature, Ports]:
    """Match a graph's inputs and outputs with a signature, as workers need them.

    Parameters
    ----------
    graph, name
        The graph, and its name in messages.
    micro_batch
        Rows per call, if the graph does not fix that number.
    given
        A signature from elsewhere, which takes precedence over the graph's own.

    Raises
    ------
    BadModelError
        The graph lacks inputs or outputs that the signature names; or there is no signature, and
        the graph's inputs and outputs are not those of an AstroMAE.
    """
    for value in graph.inputs:
        if any(isinstance(side, int) and side < 1 for side in value.shape):
            raise BadModelError(
                f"{name} takes {value}, which holds no numbers: export it with sides of at least 1"
            )
    stated = given
    if stated is None and graph.signature is not None:
        stated = ModelSignature.from_json(graph.signature)
    if stated is None or stated.is_plain:
        return _plain(graph, name, micro_batch, stated)
    return _stated(graph, name, micro_batch, stated)


def listed(values: Sequence[GraphValue]) -> str:
    """Inputs or outputs, formatted for a message."""
    return ", ".join(map(str, values)) or "nothing"


def _stated(
    graph: Graph, name: str, micro_batch: int, signature: ModelSignature
) -> tuple[ModelSignature, Ports]:
    taken = {column.name for column in signature.columns}
    taken |= {signature.image.name} if signature.bands else set()
    strangers = [value for value in graph.inputs if value.name not in taken]
    if strangers:
        raise BadModelError(
            f"{name} takes {listed(strangers)}, which its signature does not name: add it to the "
            "`inputs` there"
        )
    image_shape: tuple[int, ...] = ()
    if signature.bands:
        image_shape = _image_shape(graph, name, signature)
    columns = tuple(
        (column.name, _column(graph, name, column, signature)) for column in signature.columns
    )
    outputs = [output.name for output in signature.outputs]
    for output in signature.outputs:
        _check_width(graph, name, output.name, output.numbers)
    if signature.features():
        outputs.append(signature.features_name)
        _check_width(graph, name, signature.features_name, signature.features())
    first = graph.inputs[0].shape[:1] if graph.inputs else ()
    batch = first[0] if first and isinstance(first[0], int) else micro_batch
    ports = Ports(
        signature.image.name if signature.bands else "",
        image_shape,
        columns,
        tuple((output, output) for output in outputs),
        batch,
    )
    return signature, ports


def _image_shape(graph: Graph, name: str, signature: ModelSignature) -> tuple[int, ...]:
    image, value = signature.image, graph.input(signature.image.name)
    if value is None:
        raise _absent(name, "input", image.name, graph.inputs)
    bands, height, width = signature.shape
    last = image.layout == CHANNELS_LAST
    wanted = (height, width, bands) if last else (bands, height, width)
    fits = len(value.shape) == 4 and all(
        side == has or not isinstance(has, int)
        for side, has in zip(wanted, value.shape[1:], strict=True)
    )
    if not fits:
        raise BadModelError(
            f"{name} takes {value}, but its signature says images of {wanted} ({image.layout}): "
            "correct `bands`, `size` or `layout` there"
        )
    if value.dtype != image.dtype:
        raise BadModelError(
            f"{name} takes {value}, but its signature says {image.dtype}: correct `dtype` there"
        )
    return wanted


def _column(graph: Graph, name: str, column: ColumnInput, signature: ModelSignature) -> ColumnInput:
    value = graph.input(column.name)
    if value is None:
        raise _absent(name, "input", column.name, graph.inputs)
    if value.dtype != column.dtype:
        raise BadModelError(
            f"{name} takes {value}, but its signature says {column.dtype}: correct `dtype` there"
        )
    sides = value.shape[1:]
    if len(sides) > 1:
        raise BadModelError(f"{name} takes {value}: a column is (n,) or (n, width)")
    if not sides:
        return replace(column, width=0)
    fixed = sides[0] if isinstance(sides[0], int) else 0
    if column.width and fixed and fixed != column.width:
        raise BadModelError(
            f"{name} takes {value}, but its signature says {column.width} numbers: correct "
            "`width` there"
        )
    usual = signature.bands if column.column == MAGNITUDE else 1
    width = fixed or column.width or usual
    if not width:
        raise BadModelError(
            f"{name} takes {value}, which does not say how many magnitudes: give its `width` in "
            "the signature"
        )
    return replace(column, width=width)


def _check_width(graph: Graph, name: str, output: str, width: int) -> None:
    value = graph.output(output)
    if value is None:
        raise _absent(name, "output", output, graph.outputs)
    has = 1
    for side in value.shape[1:]:
        if not isinstance(side, int):
            return
        has *= side
    if has != width or not value.dtype:
        raise BadModelError(
            f"{name} gives {value}, but its signature says {width} "
            f"number{'s' if width != 1 else ''} per row: correct what it says of {output!r}"
        )


def _absent(name: str, what: str, wanted: str, there: Sequence[GraphValue]) -> BadModelError:
    verb = "takes" if what == "input" else "gives"
    return BadModelError(
        f"the signature of {name} names the {what} {wanted!r}, but the model {verb} "
        f"{listed(there)}: correct the name there"
    )


def _plain(
    graph: Graph, name: str, micro_batch: int, stated: ModelSignature | None
) -> tuple[ModelSignature, Ports]:
    """The signature of a graph like an AstroMAE's: its own one, checked, or one made from its
    shapes."""
    image = _pick(graph.inputs, "image", 4)
    if image is None or image.type != "tensor(float)" or len(image.shape) != 4:
        raise BadModelError(
            f"{name} has no float32 input image (n, bands, height, width); it takes "
            f"{listed(graph.inputs)}: {_describe()}"
        )
    shape = _fixed(image, name)
    magnitude = _magnitude(graph, name, image, shape)
    outputs = _outputs(graph, name)
    features = _features(graph, name)
    columns = () if magnitude is None else ((magnitude[0], magnitude[1]),)
    batch = image.shape[0] if isinstance(image.shape[0], int) else micro_batch
    signature = _plain_signature(name, shape, features, stated)
    signature = replace(signature, columns=(ColumnInput(),) if columns else ())
    return signature, Ports(image.name, shape, columns, outputs, batch)


def _plain_signature(
    name: str, shape: tuple[int, int, int], features: int, stated: ModelSignature | None
) -> ModelSignature:
    if stated is None:
        groups = {"embedding": features} if features else {}
        return ModelSignature(Path(name).stem, *shape, groups, band_names=())
    said = (*stated.shape, stated.features())
    if said != (*shape, features):
        raise BadModelError(
            f"{name} says of itself (bands, height, width, features) = {said}, but takes and "
            f"gives {(*shape, features)}: export it again"
        )
    return replace(stated, feature_groups=dict(stated.feature_groups))


def _fixed(image: GraphValue, name: str) -> tuple[int, int, int]:
    bands, height, width = image.shape[1:]
    if isinstance(bands, int) and isinstance(height, int) and isinstance(width, int):
        return bands, height, width
    raise BadModelError(
        f"{name} does not say how large its images are ({image}): export it with fixed bands, "
        f"height and width, or {_describe()}"
    )


def _magnitude(
    graph: Graph, name: str, image: GraphValue, shape: tuple[int, int, int]
) -> tuple[str, ColumnInput] | None:
    value = _pick(graph.inputs, "magnitude", 2)
    unknown = {v.name for v in graph.inputs} - {image.name, value.name if value else ""}
    plain = value is None or (value.type in _PLAIN_TYPES and len(value.shape) == 2)
    if unknown or not plain:
        raise BadModelError(
            f"{name} takes {listed(graph.inputs)}; without a signature a worker gives only image "
            "(n, bands, height, width) and magnitude (n, bands), float32 or float64: "
            f"{_describe()}"
        )
    if value is None:
        return None
    if isinstance(value.shape[1], int) and value.shape[1] != shape[0]:
        raise BadModelError(f"{name} takes {shape[0]} bands but {value}")
    return value.name, ColumnInput(value.name, MAGNITUDE, shape[0], value.dtype)


def _pick(values: Sequence[GraphValue], name: str, rank: int) -> GraphValue | None:
    """The value with this name, or the only one with this number of axes."""
    named = next((value for value in values if value.name == name), None)
    ranked = [value for value in values if len(value.shape) == rank]
    return named or (ranked[0] if len(ranked) == 1 else None)


def _outputs(graph: Graph, name: str) -> tuple[tuple[str, str], ...]:
    redshift = graph.output("redshift") or next(iter(graph.outputs), None)
    if redshift is None or redshift.dtype not in _FLOATS or redshift.shape[1:] not in ((), (1,)):
        raise BadModelError(
            f"{name} has no output redshift (n,) of floating-point numbers: it gives "
            f"{listed(graph.outputs)}: {_describe()}"
        )
    features = graph.output(FEATURES)
    pairs = [(redshift.name, "redshift")]
    return tuple(pairs if features is None else [*pairs, (features.name, FEATURES)])


def _features(graph: Graph, name: str) -> int:
    """Width of the features; 0 if there are none."""
    value = graph.output(FEATURES)
    if value is None:
        return 0
    width = value.shape[1] if len(value.shape) == 2 else None
    if value.dtype not in _FLOATS or not isinstance(width, int):
        raise BadModelError(
            f"{name}: features must be floating-point numbers (n, width), not "
            f"{listed(graph.outputs)}"
        )
    return width


def _describe() -> str:
    return f"say what they mean by `perseid model describe` or {option('signature')}"
