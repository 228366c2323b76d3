"""Match a model's inputs to a survey's columns: what is missing, and how it is passed on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError, BadPartitionError
from perseid.model.inputs import MAGNITUDE, ColumnInput
from perseid.model.signature import ModelSignature
from perseid.pipeline.columns import MISSING_INPUT, NOT_FINITE
from perseid.plaintext import counted, option
from perseid.survey.bands import band_places
from perseid.survey.column_spec import ColumnSpec
from perseid.survey.cutouts import Cutouts
from perseid.survey.file_columns import Columns
from perseid.survey.names import FURTHER
from perseid.survey.read_options import ReadOptions

INPUT = "model."
"""Prefix of a column in `Cutouts.further` that is read for the model."""
SHOWN = 30
"""Number of survey columns that a message names; it only counts the rest."""
FITS = ("crop", "pad")
"""Possible values of `RunRequest.fit`."""
OURS = ("redshift", "label")
"""Numeric columns that have a field of their own in `Cutouts`."""


def refuse_empty(rows: int, where: str) -> None:
    """Raise `BadPartitionError` for a file without rows."""
    # Before anything is said of its columns: lists of no rows, for example, have no known length.
    if not rows:
        raise BadPartitionError(f"{where} holds no rows: take it out of the survey")


def unfit(
    signature: ModelSignature,
    columns: Columns,
    fit: str = "",
    named: Sequence[str] = (),
    bands: Sequence[str] = (),
) -> str:
    """One sentence saying why a file of the survey does not fit the model and what to do; empty if
    it fits.

    Parameters
    ----------
    signature
        Signature of the model.
    columns
        Columns of the file.
    fit
        How images of another size are made to fit: see `fitted`.
    named
        The file's own names of all its columns, for the message; without them, it uses our names.
    bands
        Names of the images' bands, if known.
    """
    said, magnitudes = "", columns.magnitudes
    if signature.bands:
        places = chosen_bands(names_of_bands(signature), columns.shape[0], bands)
        said = _unfit_bands(signature, columns.shape[0], bands)
        shape = (len(places), *columns.shape[1:]) if places else columns.shape
        said = said or _unfit_image(signature, shape, fit, [*named] or sorted(columns.dtypes))
        if places and magnitudes == columns.shape[0]:
            magnitudes = len(places)
    there = {name.removeprefix(FURTHER).removeprefix(INPUT) for name in columns.further}
    there |= set(columns.dtypes)
    for column in signature.columns:
        said = said or _unfit_column(signature, column, magnitudes, there, named)
    return said


_MAGNITUDES = "magnitude=[...]", "{'magnitude': [...]}"


def magnitudes_taken(signature: ModelSignature) -> int:
    """Number of magnitudes per row that the model takes; 0 if it takes any number."""
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
    has = _listed([*named] or sorted(there))
    if column.column == MAGNITUDE:
        if not magnitudes:
            return (
                f"no magnitudes (it has {has}), which {takes}: name their columns by "
                f"{option('columns', *_MAGNITUDES)}, or give a model of images alone"
            )
        wanted = magnitudes_taken(signature)
        if wanted not in (0, magnitudes):
            return (
                f"{magnitudes} magnitudes a row, but {takes} {wanted}: name those of its bands by "
                f"{option('columns', *_MAGNITUDES)}"
            )
    elif column.column not in there:
        return (
            f"no column {column.column} (it has {has}), which {takes}: name the survey's column by "
            f"{option('columns', {column.column: 'NAME'})}"
        )
    return ""


def chosen_bands(wanted: Sequence[str], count: int, names: Sequence[str]) -> tuple[int, ...] | None:
    """Positions of the model's bands among those of a survey; None if all bands are taken as they
    are.

    `wanted` are the names of the model's bands, `names` those of the survey's `count` bands. If
    none of the model's names is among the survey's, both may name the same bands differently, so
    the bands are matched by their order.
    """
    if not wanted or len(names) != count:
        return None
    places = band_places(wanted, names)
    return None if places == tuple(range(count)) else places


def names_of_bands(signature: ModelSignature) -> tuple[str, ...]:
    """Names of the model's bands; empty if it does not name each of them."""
    return signature.band_names if len(signature.band_names) == signature.bands else ()


def with_bands(cutouts: Cutouts, places: tuple[int, ...] | None) -> Cutouts:
    """Cutouts with only the bands at these positions; magnitudes are selected too, if there is one
    per band."""
    if places is None:
        return cutouts
    magnitudes = cutouts.magnitudes
    if magnitudes is not None and magnitudes.shape[1] == cutouts.images.shape[1]:
        magnitudes = magnitudes[:, places]
    return replace(cutouts, images=cutouts.images[:, places], magnitudes=magnitudes)


def same_order_note(signature: ModelSignature, count: int, names: Sequence[str]) -> str:
    """A note for the user if the survey's band names are not the model's and bands are matched by
    order."""
    wanted = names_of_bands(signature)
    if not wanted or count != len(wanted) or len(names) != count or _shared(signature, names):
        return ""
    return (
        f"the survey's bands {', '.join(names)} are taken for the model's {', '.join(wanted)}, in "
        f"this order: {option('bands')} gives them the model's names where the order is another"
    )


def _shared(signature: ModelSignature, names: Sequence[str]) -> list[str]:
    """The model's bands that the survey has under the same name."""
    return [one for one in names_of_bands(signature) if band_places((one,), names)]


def _unfit_bands(signature: ModelSignature, count: int, names: Sequence[str]) -> str:
    if names and count and len(names) != count:
        return (
            f"images of {counted(count, 'band')}, and names of {len(names)} "
            f"({', '.join(names)}): name each "
            f"band by {option('bands')}, in the images' order"
        )
    shared = _shared(signature, names)
    lacking = [one for one in names_of_bands(signature) if one not in shared]
    if not names or not lacking or (not shared and count == signature.bands):
        return ""
    return (
        f"the bands {', '.join(names)} and not {', '.join(lacking)}, which the input "
        f"`{signature.image.name}` of the model {signature.name!r} takes: say by "
        f"{option('bands')} what the "
        "survey's bands are called, or give a model of such bands"
    )


def _listed(names: Sequence[str]) -> str:
    """Column names, formatted for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more


def _unfit_image(
    signature: ModelSignature, has: tuple[int, ...], fit: str, named: Sequence[str]
) -> str:
    wanted, shape = signature.shape, fitted_shape((has[0], has[1], has[2]), signature, fit)
    if shape == wanted:
        return ""
    takes = f"the input `{signature.image.name}` of the model {signature.name!r} takes"
    if not shape[0]:
        return (
            f"no images (it has {_listed(named)}), which {takes}: name their column by "
            f"{option('columns', {'image': 'NAME'})}, or give a model of other columns"
        )
    said = f"images of (bands, height, width) = {shape}, but {takes} {wanted}"
    if shape[0] == wanted[0]:
        ways = [
            how for how in FITS if fitted_shape((has[0], has[1], has[2]), signature, how) == wanted
        ]
        if ways:
            return f"{said}: fit them by {option('fit', ways[0])}, or give another model"
        return (
            f"{said}: neither {option('fit', 'crop')} nor {option('fit', 'pad')} makes "
            "both sides fit, "
            "so put that into the graph"
        )
    if shape[-1] == wanted[0]:
        return (
            f"{said}: if the bands are the last axis of the file, say "
            f"{option('layout', 'channels-last')}"
        )
    return (
        f"{said}: name the survey's bands by {option('bands')} and the model's in its "
        "signature, and those "
        "are taken that have the same names, or give a model for such images"
    )


def fitted(images: NDArray[np.float32], signature: ModelSignature, how: str) -> NDArray[np.float32]:
    """Crop or pad images (n, bands, height, width) about their center to the model's height and
    width.

    Parameters
    ----------
    how
        ``crop`` cuts sides that are too long, ``pad`` adds zeros around sides that are too short.
        If empty, images stay unchanged.
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
    """The shape that `fitted` gives images of shape (bands, height, width)."""
    return fitted(np.empty((0, *shape), np.float32), signature, how).shape[1:]


def with_inputs(options: ReadOptions, signature: ModelSignature) -> ReadOptions:
    """Options for reading the survey for a model: read the columns it takes, and images only if it
    takes any."""
    ours = (MAGNITUDE, *OURS)
    there = {spec.name for spec in options.further}
    wanted = [c.column for c in signature.columns if c.column not in (*ours, *there)]
    further = [
        ColumnSpec(INPUT + name, options.names.get(name, (name,))[0])
        for name in dict.fromkeys(wanted)
    ]
    takes = signature.bands > 0
    return replace(
        options, further=(*options.further, *further), reads_image=takes, needs_image=takes
    )


def other_columns(signature: ModelSignature, cutouts: Cutouts) -> dict[str, NDArray[Any]]:
    """The model's input columns other than magnitudes, (n,) each, NaN where a value is missing.

    Raises `BadInputError` if the survey has no such numeric column.
    """
    found: dict[str, NDArray[Any]] = {}
    for name in (one.column for one in signature.columns if one.column != MAGNITUDE):
        further = cutouts.further
        given: Any = further.get(INPUT + name, further.get(name))
        given = getattr(cutouts, name) if given is None and name in OURS else given
        if given is None or given.dtype.kind not in "fiub" or given.ndim != 1:
            raise BadInputError(
                f"the model {signature.name!r} takes the column {name}, one number per row, and "
                "the "
                "survey has no such column"
            )
        values = np.ma.getdata(given).astype(np.float64)
        found[name] = np.where(np.ma.getmaskarray(given), np.nan, values)
    return found


def flags(signature: ModelSignature, cutouts: Cutouts) -> NDArray[np.int32]:
    """For each row, why it cannot be predicted, or 0. Only inputs that the model takes count.

    NaN means a missing value, in magnitudes as in every other numeric column.
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
