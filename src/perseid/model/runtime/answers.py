"""Convert a model's raw outputs to named columns, one row per object.

Every step works row by row in float64, so a row's values do not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadModelError
from perseid.model.outputs import CLASS, MIDDLE, ModelOutput, OutputColumn
from perseid.model.signature import ModelSignature
from perseid.plaintext import html_table

Raw = Mapping[str, NDArray[Any]]
"""Raw outputs: arrays (n, ...) by the name of the output."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The model's predictions for some rows, in their order.

    Examples
    --------
    >>> Prediction({"z_pred": np.float32([0.1])}).redshift
    array([0.1], dtype=float32)
    """

    columns: Mapping[str, NDArray[Any]]
    """Columns (n,) in float32 by name; ``class`` is int32, the index of a class."""
    features: NDArray[np.float32] | None = None
    """Features (n, sum of the signature's feature groups); None if the model has none."""
    lists: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Lists (n, width) by the column's name: PDFs, as probabilities or densities."""

    def _repr_html_(self) -> str:
        there = {**self.columns, **self.lists}
        there |= {} if self.features is None else {"features": self.features}
        rows = [(name, array.dtype, array.shape) for name, array in there.items()]
        return html_table(("prediction", "type", "shape"), rows)

    @property
    def redshift(self) -> NDArray[np.float32]:
        """Predicted redshifts, (n,) float32; raises `BadModelError` if the model predicts none."""
        found = self.columns.get("z_pred")
        if found is None:
            names = ", ".join(self.columns) or "features alone"
            raise BadModelError(f"this model predicts no redshift: it gives {names}")
        return found


def empty(signature: ModelSignature, rows: int) -> Prediction:
    """A prediction with room for this many rows."""
    columns = {
        column.name: np.empty(rows, np.int32 if column.kind == CLASS else np.float32)
        for column in signature.output_columns()
    }
    width = signature.features()
    lists = {c.name: np.empty((rows, c.width), np.float32)
             for c in signature.list_columns(("pdf",))}  # fmt: skip
    return Prediction(columns, np.empty((rows, width), np.float32) if width else None, lists)


def answer(signature: ModelSignature, raw: Raw, rows: int, fed: int) -> Prediction:
    """The predictions of the first `rows` rows, from the model's outputs for `fed` rows.

    Raises `BadModelError` if an output does not have the number of values that the signature
    states.
    """
    columns: dict[str, NDArray[Any]] = {}
    lists: dict[str, NDArray[np.float32]] = {}
    wanted: dict[str, list[OutputColumn]] = {}
    for column in signature.output_columns():
        wanted.setdefault(column.output, []).append(column)
    for output in signature.outputs:
        values = _matrix(output.name, raw, fed, output.numbers)[:rows]
        if output.kind == "pdf":
            lists[output.list_column().name] = _normal(values, output).astype(np.float32)
        columns |= _columns(output, values, wanted.get(output.name, ()))
    features = None
    if signature.features():
        features = _matrix(signature.features_name, raw, fed, signature.features())[:rows]
    return Prediction(columns, features, lists)


def fill(whole: Prediction, part: Prediction, rows: slice) -> None:
    """Copy the predictions of some rows to their position."""
    for name, array in part.columns.items():
        whole.columns[name][rows] = array
    for name, values in part.lists.items():
        whole.lists[name][rows] = values
    if whole.features is not None:
        whole.features[rows] = part.features


def _matrix(name: str, raw: Raw, rows: int, width: int) -> NDArray[Any]:
    """An output as a matrix (rows, width)."""
    if name not in raw:
        raise BadModelError(f"the model gave no {name!r}, only {', '.join(raw) or 'nothing'}")
    given = np.atleast_1d(np.asarray(raw[name]))  # a batch of one may lack the row axis
    if len(given) != rows or given.size != rows * width:
        raise BadModelError(
            f"the model gave {name!r} as {given.shape}; its signature says {width} "
            f"number{'s' if width > 1 else ''} for each of {rows} rows"
        )
    if given.dtype.kind not in "fiub":
        raise BadModelError(f"the model gave {name!r} as {given.dtype}, which is not a number")
    return given.reshape(rows, width)


def _columns(
    output: ModelOutput, values: NDArray[Any], wanted: Sequence[OutputColumn]
) -> dict[str, NDArray[Any]]:
    if output.kind in ("redshift", "value"):
        return {wanted[0].name: values[:, 0].astype(np.float32)}
    if output.kind == "probabilities":
        p = _softmax(values) if output.logits else values
        singles = {c.name: p[:, i].astype(np.float32) for i, c in enumerate(wanted[:-1])}
        return {**singles, wanted[-1].name: p.argmax(axis=1).astype(np.int32)}
    found: dict[str, NDArray[Any]] = {}
    quantiles = values.astype(np.float64)
    if output.kind == "quantiles":
        quantiles = np.sort(quantiles, axis=1)  # a network may cross them
        found = {c.name: quantiles[:, i] for i, c in enumerate(wanted[: len(output.levels)])}
    levels = [c for c in wanted if c.name not in found]
    for column in levels:
        level = MIDDLE if column.level is None else column.level
        found[column.name] = (
            _between(level, np.broadcast_to(output.levels, quantiles.shape), quantiles)
            if output.kind == "quantiles"
            else _quantile(level, values, output)
        )
    return {name: array.astype(np.float32) for name, array in found.items()}


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        e = np.exp(values - values.max(axis=1, keepdims=True))
    return _shares(e)


def _shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    total = values[:, 0].copy()
    for column in values.T[1:]:  # a fixed order of additions on every processor
        total += column
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: NDArray[np.float64] = values / total[:, None]
    return shares


def _normal(values: NDArray[Any], output: ModelOutput) -> NDArray[np.float64]:
    """Normalize a PDF: the sum of its bins, or the integral of its density, becomes 1."""
    p = _softmax(values) if output.logits else values.astype(np.float64)
    if output.bins:
        return _shares(p)
    with np.errstate(invalid="ignore", divide="ignore"):
        density: NDArray[np.float64] = p / _cumulated(p, output)[:, -1:]
    return density


def _cumulated(p: NDArray[np.float64], output: ModelOutput) -> NDArray[np.float64]:
    """Cumulative probability (n, grid) at each edge, or at each position by the trapezoidal
    rule."""
    steps = p
    if not output.bins:
        steps = (p[:, 1:] + p[:, :-1]) * 0.5 * np.diff(output.grid)
    below = np.zeros((len(p), len(output.grid)))
    np.cumsum(steps, axis=1, out=below[:, 1:])
    return below


def _quantile(level: float, values: NDArray[Any], output: ModelOutput) -> NDArray[np.float64]:
    below = _cumulated(_normal(values, output), output)
    return _between(level, below, np.broadcast_to(np.asarray(output.grid), below.shape))


def _between(level: float, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """y where x reaches `level` in each row, by linear interpolation; NaN if the row contains a
    NaN."""
    last = x.shape[1] - 1
    after = np.clip((x < level).sum(axis=1), 1, max(last, 1))
    if last == 0:
        return y[:, 0].astype(np.float64)
    rows = np.arange(len(x))
    x0, x1, y0, y1 = x[rows, after - 1], x[rows, after], y[rows, after - 1], y[rows, after]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.clip(np.where(x1 > x0, (level - x0) / (x1 - x0), 0.0), 0.0, 1.0)
        found: NDArray[np.float64] = y0 + share * (y1 - y0)
    bad = ~(np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1))
    return np.where(bad, np.nan, found)
