"""Propose a signature for a graph from its shapes, names and answers, and say what is a guess.

To see whether numbers are probabilities, the model is run on a few rows of noise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadModelError
from perseid.model.files import on_disk
from perseid.model.inputs import MAGNITUDE, ColumnInput, ImageInput
from perseid.model.outputs import ModelOutput
from perseid.model.runtime.graph_ports import Graph, GraphValue, listed
from perseid.model.runtime.onnx_session import open_session
from perseid.model.signature import ModelSignature
from perseid.survey.read_options import CHANNELS_FIRST, CHANNELS_LAST

ROWS = 4
"""Number of rows of noise that the model is run on."""
MOST_CLASSES = 64
"""Width above which an output that is not a distribution is taken for an embedding."""
_EMBEDDING = ("embed", "feature", "token", "latent", "repr")
_REDSHIFT = ("z", "redshift", "z_pred", "photoz", "z_phot")


@dataclass(frozen=True)
class Proposal:
    """A proposed signature, and the parts of it that are guesses."""

    signature: ModelSignature
    unknown: tuple[str, ...]
    """Names of outputs whose kind is guessed."""
    unnamed: tuple[str, ...]
    """Names of outputs whose classes still lack meaningful names."""


def propose(model: str | Path) -> Proposal:
    """Propose a signature from a model file, as far as the file shows it.

    Raises
    ------
    BadModelError
        The file is not an ONNX file, its images have no fixed size, or it has inputs or outputs
        that no signature can describe.
    NotFoundError, StorageError
        The model cannot be read.
    """
    with on_disk(model) as files:
        session = open_session(str(files.path), files.name, 1, ROWS)
        graph = Graph.of(session)
        image, shape = _image(graph, files.name)
        columns = tuple(
            _column(value, files.name, shape[0]) for value in graph.inputs if len(value.shape) < 4
        )
        answers = _answers(session, graph, files.name)
        outputs = tuple(_output(value, answers[value.name]) for value in graph.outputs)
        name = Path(files.name).stem
    outputs = _with_questions(outputs)
    features = [output for output, _ in outputs if output.kind == "embedding"]
    groups = {"embedding": _width(answers[features[0].name])} if features else {}
    signature = ModelSignature(
        name,
        *shape,
        feature_groups=groups,
        band_names=(),
        image=image,
        columns=columns,
        outputs=tuple(output for output, _ in outputs if output.kind != "embedding"),
        features_name=features[0].name if features else "features",
    )
    if len(features) > 1:
        raise BadModelError(
            f"{files.name} gives {listed(graph.outputs)}: several look like embeddings, and a "
            "signature has one; write it by hand"
        )
    unnamed = tuple(output.name for output in signature.outputs if output.classes)
    return Proposal(signature, tuple(o.name for o, known in outputs if not known), unnamed)


def _with_questions(
    outputs: tuple[tuple[ModelOutput, bool], ...],
) -> tuple[tuple[ModelOutput, bool], ...]:
    """Outputs with distinct column names if several of them may be probabilities."""
    asked = [output for output, _ in outputs if output.kind == "probabilities"]
    if len(asked) < 2:
        return outputs
    return tuple(
        (replace(one, column=_column_name(one.name)) if one in asked else one, known)
        for one, known in outputs
    )


def _column_name(name: str) -> str:
    """An output's name, made valid as the name of a column."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "output"


def with_kind(proposal: Proposal, name: str, kind: str) -> ModelSignature:
    """The proposed signature with another kind for one output.

    Raises `BadModelError` if the output's number of values does not fit that kind.
    """
    old, found = proposal.signature, []
    for output in old.outputs:
        if output.name == name and kind != output.kind:
            number = max(output.numbers, 1)
            output = _of_kind(name, kind, number)
        found.append(output)
    return replace(old, outputs=tuple(found))


def _of_kind(name: str, kind: str, numbers: int) -> ModelOutput:
    if kind in ("redshift", "value") and numbers != 1:
        raise BadModelError(f"the output {name!r} has {numbers} numbers per row; a {kind} is one")
    if kind == "probabilities":
        return ModelOutput(name, kind, classes=_classes(numbers), logits=True)
    if kind == "quantiles":
        levels = tuple((i + 1) / (numbers + 1) for i in range(numbers))
        return ModelOutput(name, kind, levels=levels)
    return ModelOutput(name, kind, column=name if kind == "value" else "")


def _classes(count: int) -> tuple[str, ...]:
    return tuple(f"class_{number}" for number in range(count))


def _image(graph: Graph, name: str) -> tuple[ImageInput, tuple[int, int, int]]:
    """The image input and its (bands, height, width); without bands if there is no image."""
    found = [value for value in graph.inputs if len(value.shape) == 4]
    if not found:
        return ImageInput(), (0, 0, 0)
    sides = found[0].shape[1:]
    if len(found) > 1 or not all(isinstance(side, int) for side in sides):
        raise BadModelError(
            f"{name} takes {listed(graph.inputs)}: a signature has one image of a fixed size; "
            "export the model so, or write the signature by hand"
        )
    first, second, third = (int(str(side)) for side in sides)
    last = third < min(first, second)
    shape = (third, first, second) if last else (first, second, third)
    layout = CHANNELS_LAST if last else CHANNELS_FIRST
    return ImageInput(found[0].name, layout, found[0].dtype), shape


def _column(value: GraphValue, name: str, bands: int) -> ColumnInput:
    if len(value.shape) > 2 or not value.dtype:
        raise BadModelError(
            f"{name} takes {value}, which is not an image and no column of a survey"
        )
    width = value.shape[1] if len(value.shape) == 2 else 0
    many = isinstance(width, int) and width > 1
    magnitudes = many or "mag" in value.name.lower() or not isinstance(width, int)
    return ColumnInput(
        value.name,
        MAGNITUDE if magnitudes else value.name,
        width if isinstance(width, int) and width != bands else 0,
        value.dtype,
    )


def _answers(session: Any, graph: Graph, name: str) -> Mapping[str, NDArray[Any]]:
    """The model's outputs for a few rows of noise."""
    random, feed = np.random.default_rng(0), {}
    for value in graph.inputs:
        shape = [side if isinstance(side, int) else ROWS for side in value.shape]
        feed[value.name] = (random.random(shape) * 3.0).astype(value.dtype or "float32")
    try:
        found = session.run([value.name for value in graph.outputs], feed)
    except Exception as error:  # onnxruntime's errors have no common base
        raise BadModelError(f"{name} fails when it computes: {str(error)[:300]}") from error
    return {v.name: np.atleast_1d(np.asarray(a)) for v, a in zip(graph.outputs, found, strict=True)}


def _width(answer: NDArray[Any]) -> int:
    return int(answer.size // max(1, len(answer))) if answer.ndim else 0


def _output(value: GraphValue, answer: NDArray[Any]) -> tuple[ModelOutput, bool]:
    """The proposed output, and whether its kind is certain."""
    width, lower = _width(answer), value.name.lower()
    if width == 1:
        if lower in _REDSHIFT or "redshift" in lower:
            return ModelOutput(value.name, "redshift"), True
        return ModelOutput(value.name, "value"), False
    rows = answer.reshape(len(answer), -1).astype(np.float64)
    shares = bool((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1.0, atol=1e-3))
    if shares and width <= MOST_CLASSES:
        return ModelOutput(value.name, "probabilities", classes=_classes(width)), True
    if any(word in lower for word in _EMBEDDING) or width > MOST_CLASSES:
        return ModelOutput(value.name, "embedding"), True
    if "quantile" in lower:
        return _of_kind(value.name, "quantiles", width), True
    return _of_kind(value.name, "probabilities", width), False


def kinds_for(output: ModelOutput) -> Sequence[str]:
    """Kinds that an output with this many numbers may have."""
    return ("redshift", "value") if output.numbers == 1 else ("probabilities", "quantiles")
