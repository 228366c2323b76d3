"""What a model takes beside what a survey has: what is missing, and how it is handed over."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError
from perseid.model.inputs import MAGNITUDE, ColumnInput
from perseid.model.signature import ModelSignature
from perseid.pipeline.columns import MISSING_INPUT, NOT_FINITE
from perseid.survey.column_spec import ColumnSpec
from perseid.survey.cutouts import Cutouts
from perseid.survey.file_columns import Columns
from perseid.survey.names import FURTHER
from perseid.survey.read_options import ReadOptions

INPUT = "model."
"""Before the name of a column in `Cutouts.further` that is read for the model."""
SHOWN = 30
"""Columns of a survey that a sentence names; it counts the others."""
OURS = ("redshift", "label")
"""Columns of numbers that `Cutouts` has in fields of their own."""


def unfit(
    signature: ModelSignature, columns: Columns, fit: str = "", named: Sequence[str] = ()
) -> str:
    """What a file of the survey has that does not fit the model, and what to do; empty if it fits.

    Parameters
    ----------
    signature
        Of the model.
    columns
        Of the file.
    fit
        What is to become of images of another size: see `fitted`.
    named
        The file's own names of all its columns, for the sentence; without them, ours.
    """
    shape = fitted_shape(columns.shape, signature, fit)
    said = _unfit_image(signature, shape) if signature.bands else ""
    there = {name.removeprefix(FURTHER).removeprefix(INPUT) for name in columns.further}
    there |= set(columns.dtypes)
    for column in signature.columns:
        said = said or _unfit_column(signature, column, columns.magnitudes, there, named)
    return said


def magnitudes_taken(signature: ModelSignature) -> int:
    """How many magnitudes of a row the model takes; 0: as many as there are."""
    widths = [one.width for one in signature.columns if one.column == MAGNITUDE]
    return next(iter(widths), 0) or signature.bands


def _unfit_column(
    signature: ModelSignature,
    column: ColumnInput,
    magnitudes: int,
    there: Collection[str],
    named: Sequence[str],
) -> str:
    takes = f"the input `{column.name}` of the model {signature.name!r} takes"
    listed = [*named] or sorted(there)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    has = (", ".join(listed[:SHOWN]) or "nothing") + more
    if column.column == MAGNITUDE:
        if not magnitudes:
            return (
                f"no magnitudes (it has {has}), which {takes}: name their columns by --columns "
                "magnitude=[...], or give a model of images alone"
            )
        wanted = magnitudes_taken(signature)
        if wanted not in (0, magnitudes):
            return (
                f"{magnitudes} magnitudes a row, but {takes} {wanted}: name those of its bands by "
                "--columns magnitude=[...]"
            )
    elif column.column not in there:
        return (
            f"no column {column.column} (it has {has}), which {takes}: name the survey's column by "
            f"--columns {column.column}=NAME"
        )
    return ""


def _unfit_image(signature: ModelSignature, shape: tuple[int, ...]) -> str:
    wanted = signature.shape
    if shape == wanted:
        return ""
    takes = f"the input `{signature.image.name}` of the model {signature.name!r} takes"
    if not shape[0]:
        return f"no images, which {takes}: give a model of other columns"
    said = f"images of (bands, height, width) = {shape}, but {takes} {wanted}"
    if shape[0] == wanted[0]:
        larger = all(has >= side for has, side in zip(shape[1:], wanted[1:], strict=True))
        return f"{said}: fit them by --fit {'crop' if larger else 'pad'}, or give another model"
    if shape[-1] == wanted[0]:
        return f"{said}: if the bands are the last axis of the file, say --layout channels-last"
    return f"{said}: give a survey of such bands, or a model for such images"


def fitted(images: NDArray[np.float32], signature: ModelSignature, how: str) -> NDArray[np.float32]:
    """Images (n, bands, height, width) about their middle, of the model's height and width.

    Parameters
    ----------
    how
        ``crop`` cuts what is too much, ``pad`` adds zeros around what is too little; a side that
        is neither stays. Empty: the images as they are.
    """
    if not how or not signature.bands:
        return images
    for axis, side in ((2, signature.height), (3, signature.width)):
        spare = images.shape[axis] - side
        if spare > 0 and how == "crop":
            images = images.take(range(spare // 2, spare // 2 + side), axis=axis)
        elif spare < 0 and how == "pad":
            before = -spare // 2
            widths = [(0, 0)] * 4
            widths[axis] = (before, -spare - before)
            images = np.pad(images, widths)
    return images


def fitted_shape(
    shape: tuple[int, int, int], signature: ModelSignature, how: str
) -> tuple[int, ...]:
    """What `fitted` makes of (bands, height, width)."""
    return fitted(np.empty((0, *shape), np.float32), signature, how).shape[1:]


def with_inputs(options: ReadOptions, signature: ModelSignature) -> ReadOptions:
    """How the survey is read for a model: with the columns that it takes, and images if it does."""
    ours = (MAGNITUDE, *OURS)
    there = {spec.name for spec in options.further}
    wanted = [c.column for c in signature.columns if c.column not in (*ours, *there)]
    further = [
        ColumnSpec(INPUT + name, options.names.get(name, (name,))[0])
        for name in dict.fromkeys(wanted)
    ]
    return replace(options, further=(*options.further, *further), needs_image=signature.bands > 0)


def other_columns(signature: ModelSignature, cutouts: Cutouts) -> dict[str, NDArray[Any]]:
    """The columns beside the magnitudes that the model takes, (n,), NaN where one is missing.

    Raises `BadInputError` where the survey has no such column of numbers.
    """
    found: dict[str, NDArray[Any]] = {}
    for name in (one.column for one in signature.columns if one.column != MAGNITUDE):
        further = cutouts.further
        given: Any = further.get(INPUT + name, further.get(name))
        given = getattr(cutouts, name) if given is None and name in OURS else given
        if given is None or given.dtype.kind not in "fiub" or given.ndim != 1:
            raise BadInputError(
                f"the model {signature.name!r} takes the column {name}, one number a row, and the "
                "survey has no such column"
            )
        values = np.ma.getdata(given).astype(np.float64)
        found[name] = np.where(np.ma.getmaskarray(given), np.nan, values)
    return found


def flags(signature: ModelSignature, cutouts: Cutouts) -> NDArray[np.int32]:
    """Why rows cannot be predicted, 0 where they can: only what the model takes counts.

    A magnitude that is NaN is missing, as is any other number of a column.
    """
    infinite, missing = np.zeros((2, len(cutouts)), np.bool_)
    if signature.bands:
        infinite |= ~np.isfinite(cutouts.images).all(axis=(1, 2, 3))
    numbers = list(other_columns(signature, cutouts).values())
    if signature.takes_magnitudes:
        numbers.append(cutouts.needed_magnitudes())
    for array in numbers:
        rows = array.reshape(len(cutouts), -1)
        missing |= np.isnan(rows).any(axis=1)
        infinite |= np.isinf(rows).any(axis=1)
    return np.where(missing, MISSING_INPUT, np.where(infinite, NOT_FINITE, 0)).astype(np.int32)
