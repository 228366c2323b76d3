"""The columns of a file of cutouts: their types and shapes, and arrays of them as `Cutouts`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError
from perseid.survey.content import TEXT, convert, kept_dtype
from perseid.survey.cutouts import Cutouts
from perseid.survey.names import FURTHER, KNOWN, NAMES, is_band, is_further
from perseid.survey.picking import renamed
from perseid.survey.read_options import PLAIN, ReadOptions

_ROW_BYTES = 512
"""Bytes that a row without an image is taken to have."""
MOST_PIXELS = 1 << 26
"""Elements of one image above which a shape is taken for corrupt."""


@dataclass(frozen=True)
class Columns:
    """Length, shape and dtypes of a file of cutouts."""

    rows: int
    """Objects."""
    shape: tuple[int, int, int]
    """(bands, height, width) of every image; all 0 where there are no images."""
    dtypes: Mapping[str, np.dtype[Any]]
    """Native dtype of each column that is there, by the names in `NAMES`."""
    channels_last: bool = False
    """Whether images lie in the file as (height, width, bands)."""
    bands: tuple[str, ...] = ()
    """Names of the magnitudes' columns in the file, where each band has one of its own."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """The file's own names of columns that it knows by another name than ours."""
    further: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]] = field(default_factory=dict)
    """Native dtype and shape of a row of each column beside ours that is read, by the names that
    `pick_columns` gives them."""
    magnitudes: int = 0
    """How many magnitudes a row has."""

    def row_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one row of a column."""
        return {"image": self.shape, "magnitude": (self.magnitudes,)}.get(name, ())

    @property
    def image_bytes(self) -> int:
        """Bytes of one image; of a row without an image a few, so that blocks stay small."""
        return math.prod(self.shape) * 4 or _ROW_BYTES

    @property
    def small(self) -> list[str]:
        """The columns beside the images, in the order of `NAMES`."""
        return [name for name in NAMES[1:] if name in self.dtypes]

    def column(self, name: str, array: NDArray[Any], where: str) -> NDArray[Any]:
        """An array of the file, of any rows, as the column is kept: dtype and shape.

        Raises `BadPartitionError` naming `where` for a value that does not fit.
        """
        if name == "image" and self.channels_last:
            bands, height, width = self.shape
            array = np.moveaxis(array.reshape(-1, height, width, bands), -1, 1)
            return convert(name, np.ascontiguousarray(array), self.dtypes[name], where)
        dtype, row = self.kept(name)
        kind = "magnitude" if name in self.bands else name
        return convert(kind, array.reshape(-1, *row), dtype, where)

    def kept(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Dtype and shape of a row of a column of the file, as it is kept."""
        if name in self.bands:
            return self.dtypes["magnitude"], ()
        if name in self.further:
            return self.further[name]
        return self.dtypes[name], self.row_shape(name)

    @property
    def stored(self) -> list[str]:
        """The columns of the file beside the images: as `small`, but for single bands."""
        others = [name for name in self.small if name != "magnitude" or not self.bands]
        return [*self.bands, *others, *self.further]

    def is_like(self, other: Columns) -> bool:
        """Whether rows of both can lie in one file."""
        return (self.shape, self.magnitudes, dict(self.dtypes)) == (
            other.shape,
            other.magnitudes,
            dict(other.dtypes),
        )

    def with_rows(self, rows: int) -> Columns:
        """The same columns with another length."""
        return replace(self, rows=rows)

    def describe(self) -> str:
        """Shape and columns in a few words, for messages."""
        kinds = {n: "text" if dtype == TEXT else dtype for n, dtype in self.dtypes.items()}
        columns = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        return f"{self.shape[0]} bands of {self.shape[1]} x {self.shape[2]} ({columns})"

    @classmethod
    def of(cls, cutouts: Cutouts) -> Columns:
        """The columns of cutouts in memory."""
        arrays = as_dict(cutouts)
        _, bands, height, width = cutouts.images.shape
        if not height:
            del arrays["image"]
        dtypes = {n: TEXT if a.dtype.kind == "U" else a.dtype for n, a in arrays.items()}
        magnitudes = 0 if cutouts.magnitudes is None else cutouts.magnitudes.shape[1]
        further = {f"{FURTHER}{n}": (a.dtype, a.shape[1:]) for n, a in cutouts.further.items()}
        return cls(
            len(cutouts),
            (bands, height, width),
            dtypes,
            magnitudes=magnitudes,
            further=further,
        )


def as_dict(cutouts: Cutouts) -> dict[str, NDArray[Any]]:
    """The arrays that are there, by the names in `NAMES`."""
    arrays = (
        cutouts.images,
        cutouts.magnitudes,
        cutouts.redshift,
        cutouts.object_id,
        cutouts.label,
    )
    return {name: array for name, array in zip(NAMES, arrays, strict=True) if array is not None}


def as_cutouts(arrays: Mapping[str, NDArray[Any]]) -> Cutouts:
    """The columns of a file, by the names that `pick_columns` gives them, as one object.

    Single bands of magnitudes become one array, further columns are in `Cutouts.further`.
    """
    bands = [array for name, array in arrays.items() if is_band(name)]
    if bands:
        arrays = {**arrays, "magnitude": np.stack(bands, axis=1)}
    further = {n.removeprefix(FURTHER): array for n, array in arrays.items() if is_further(n)}
    if "image" in arrays:
        images = arrays["image"]
    else:
        rows = max((len(array) for array in arrays.values()), default=0)
        images = np.empty((rows, 0, 0, 0), np.float32)
    return Cutouts(
        images,
        arrays.get("magnitude"),
        arrays.get("redshift"),
        arrays.get("object_id"),
        arrays.get("label"),
        further,
    )


def check_columns(
    where: str,
    found: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    sources: Mapping[str, str] | None = None,
    options: ReadOptions = PLAIN,
) -> Columns:
    """The columns of a file, from the dtype and shape of each of its arrays.

    Of a column of one value a row, the shapes (n,) and (n, 1) are the same. `sources` are the
    names in the file, as `pick_columns` gave them.

    Raises
    ------
    BadPartitionError
        A column is missing, or one has a wrong dtype, shape or length.
    """
    found, parts = _joined(where, found)
    rows, shape, last = _images(where, found, options)
    columns = Columns(rows, shape, {}, magnitudes=_magnitudes(where, rows, found))
    dtypes: dict[str, np.dtype[Any]] = {}
    known = renamed(sources or {})
    further = _further(where, rows, found)
    for name, (dtype, has) in found.items():
        if name in further:
            continue
        try:
            dtypes[name] = kept_dtype(name, dtype, where)
            if name != "image":
                _check_shape(where, name, (rows, *columns.row_shape(name)), has)
        except BadPartitionError:
            if known.get(name, "").lower() not in KNOWN[name] or name == "image":
                raise
            dtypes.pop(name, None)  # only its name looked like one of ours
    dtypes = {name: dtypes[name] for name in NAMES if name in dtypes}
    known = {name: source for name, source in known.items() if name in dtypes}
    return Columns(
        rows,
        shape,
        dtypes,
        channels_last=last,
        bands=parts,
        renamed=known,
        further=further,
        magnitudes=columns.magnitudes if "magnitude" in dtypes else 0,
    )


def _images(
    where: str,
    found: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    options: ReadOptions,
) -> tuple[int, tuple[int, int, int], bool]:
    """Rows, (bands, height, width) of an image, and whether its bands are the last axis."""
    if "image" not in found and not options.needs_image:
        lengths = [shape[0] for _, shape in found.values() if shape]
        return max(lengths, default=0), (0, 0, 0), False
    if "image" not in found:
        there = ", ".join(sorted(name.removeprefix(FURTHER) for name in found)) or "nothing"
        raise BadPartitionError(f"{where} has no image column (it has {there})")
    shape = found["image"][1]
    if len(shape) != 4 or 0 in shape[1:] or math.prod(shape[1:]) > MOST_PIXELS:
        raise BadPartitionError(
            f"{where}: image must be (n, bands, height, width), not {_shape(shape)}"
        )
    rows, first, second, third = shape
    last = options.channels_last
    if last is None:
        last = _channels_last(shape[1:], found.get("magnitude", (None, ()))[1])
    return rows, (third, first, second) if last else (first, second, third), last


def _magnitudes(
    where: str, rows: int, found: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
) -> int:
    """How many magnitudes a row has, whatever the images have."""
    if "magnitude" not in found:
        return 0
    shape = found["magnitude"][1]
    if len(shape) not in (1, 2) or shape[0] != rows or 0 in shape[1:]:
        raise BadPartitionError(f"{where}: magnitude must be ({rows}, bands), not {_shape(shape)}")
    return shape[1] if len(shape) == 2 else 1


def _further(
    where: str, rows: int, found: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Dtype and shape of a row of the columns beside ours; one value a row has no shape."""
    further = {}
    for name, (dtype, shape) in found.items():
        if is_further(name):
            if shape[:1] != (rows,):
                source = name.removeprefix(FURTHER)
                raise BadPartitionError(f"{where}: {source} must have {rows} rows, not {shape[:1]}")
            row = () if shape[1:] == (1,) else shape[1:]
            further[name] = kept_dtype(name, dtype, where), row
    return further


def _joined(
    where: str, found: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
) -> tuple[dict[str, tuple[np.dtype[Any], tuple[int, ...]]], tuple[str, ...]]:
    """The columns with single bands of magnitudes as one, and the names of these bands."""
    parts = tuple(name for name in found if is_band(name))
    joined = {name: about for name, about in found.items() if name not in parts}
    if parts:
        rows = found[parts[0]][1][:1]
        for name in parts:
            _check_shape(where, name, rows, found[name][1])
        kept = [kept_dtype("magnitude", found[name][0], where) for name in parts]
        joined["magnitude"] = np.result_type(*kept), (*rows, len(parts))
    return joined, parts


def _check_shape(where: str, name: str, wanted: tuple[int, ...], has: tuple[int, ...]) -> None:
    same = {wanted[:1], (wanted[0], 1)}  # of a column with one value a row
    if has != wanted and not (has in same and wanted in same):
        raise BadPartitionError(f"{where}: {name} must be {_shape(wanted)}, not {_shape(has)}")


def _channels_last(image: tuple[int, ...], magnitudes: tuple[int, ...]) -> bool:
    """Whether the bands are the last axis of an image, where its shape leaves no doubt.

    The number of magnitudes says how many bands there are; without any, a last axis shorter than
    two equal ones before it holds the bands. All else is (bands, height, width).
    """
    first, second, last = image
    if len(magnitudes) == 2:
        return magnitudes[1] == last != first
    return first == second > last


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
