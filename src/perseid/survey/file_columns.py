"""The columns of a file of cutouts: their types and shapes, and arrays of them as `Cutouts`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError
from perseid.plaintext import counted
from perseid.survey.content import TEXT, convert, kept_dtype
from perseid.survey.cutouts import Cutouts
from perseid.survey.names import FURTHER, KNOWN, NAMES, is_band, is_further
from perseid.survey.picking import renamed
from perseid.survey.read_options import PLAIN, ReadOptions

_ROW_BYTES = 512
"""Assumed bytes of a row without an image, for sizing blocks."""
MOST_PIXELS = 1 << 26
"""Most elements of one image; a larger shape is taken for corrupt."""


@dataclass(frozen=True)
class Columns:
    """Length, shape and dtypes of a file of cutouts."""

    rows: int
    """Objects."""
    shape: tuple[int, int, int]
    """(bands, height, width) of every image; all 0 where there are no images."""
    dtypes: Mapping[str, np.dtype[Any]]
    """Native dtype of each column that the file has, by the names in `NAMES`."""
    channels_last: bool = False
    """Whether the file stores images as (height, width, bands)."""
    bands: tuple[str, ...] = ()
    """Names of the magnitude columns in the file, if each band has its own column."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """The file's names of the columns that it does not name as we do, by our name."""
    further: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]] = field(default_factory=dict)
    """Native dtype and row shape of each further column that is read, by the names that
    `pick_columns` gives them."""
    magnitudes: int = 0
    """How many magnitudes a row has."""

    def row_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one row of a column."""
        return {"image": self.shape, "magnitude": (self.magnitudes,)}.get(name, ())

    @property
    def image_bytes(self) -> int:
        """Bytes of one image; a small assumed size for rows without images, so that blocks stay
        small."""
        return math.prod(self.shape) * 4 or _ROW_BYTES

    @property
    def small(self) -> list[str]:
        """All columns except the images, in the order of `NAMES`."""
        return [name for name in NAMES[1:] if name in self.dtypes]

    def column(self, name: str, array: NDArray[Any], where: str) -> NDArray[Any]:
        """Convert rows read from the file to the dtype and shape in which the column is kept.

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
        """Dtype and row shape in which a column of the file is kept."""
        if name in self.bands:
            return self.dtypes["magnitude"], ()
        if name in self.further:
            return self.further[name]
        return self.dtypes[name], self.row_shape(name)

    @property
    def stored(self) -> list[str]:
        """The file's own columns except the images: like `small`, but with single bands kept
        apart."""
        others = [name for name in self.small if name != "magnitude" or not self.bands]
        return [*self.bands, *others, *self.further]

    def is_like(self, other: Columns) -> bool:
        """Whether rows of both fit into one file."""
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
        return f"{counted(self.shape[0], 'band')} of {self.shape[1]} x {self.shape[2]} ({columns})"

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
    """The arrays that are not None, by the names in `NAMES`."""
    arrays = (
        cutouts.images,
        cutouts.magnitudes,
        cutouts.redshift,
        cutouts.object_id,
        cutouts.label,
    )
    return {name: array for name, array in zip(NAMES, arrays, strict=True) if array is not None}


def as_cutouts(arrays: Mapping[str, NDArray[Any]]) -> Cutouts:
    """Combine the columns of a file, named as by `pick_columns`, into one object.

    Single bands of magnitudes become one array, further columns are in `Cutouts.further`.
    """
    bands = [array for name, array in arrays.items() if is_band(name)]
    if bands:
        arrays = {**arrays, "magnitude": np.stack(bands, axis=1)}
    further = {n.removeprefix(FURTHER): array for n, array in arrays.items() if is_further(n)}
    if "image" in arrays:
        images = arrays["image"]
    else:
        # Without images, the other columns tell the number of rows.
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
    """Check the dtype and shape of each array of a file.

    For a column with one value per row, the shapes (n,) and (n, 1) are equivalent. `sources` are
    the names in the file, as `pick_columns` gave them.

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
    if len(shape) not in (3, 4) or 0 in shape[1:] or math.prod(shape[1:]) > MOST_PIXELS:
        raise BadPartitionError(
            f"{where}: image must be (n, bands, height, width), or (n, height, width) of one band, "
            f"not {_shape(shape)}"
        )
    if len(shape) == 3:
        return shape[0], (1, *shape[1:]), False
    rows, first, second, third = shape
    last = options.channels_last
    if last is None:
        last = _channels_last(shape[1:], found.get("magnitude", (None, ()))[1])
    return rows, (third, first, second) if last else (first, second, third), last


def _magnitudes(
    where: str, rows: int, found: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
) -> int:
    """How many magnitudes a row has, which may differ from the number of image bands."""
    if "magnitude" not in found:
        return 0
    shape = found["magnitude"][1]
    if len(shape) not in (1, 2) or shape[0] != rows or 0 in shape[1:]:
        raise BadPartitionError(f"{where}: magnitude must be ({rows}, bands), not {_shape(shape)}")
    return shape[1] if len(shape) == 2 else 1


def _further(
    where: str, rows: int, found: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Dtype and row shape of the further columns; the row shape is empty for one value per row."""
    further = {}
    for name, (dtype, shape) in found.items():
        if is_further(name):
            if shape[:1] != (rows,):
                source = name.removeprefix(FURTHER)
                raise BadPartitionError(
                    f"{where}: {source} must have {counted(rows, 'row')}, not {shape[:1]}"
                )
            row = () if shape[1:] == (1,) else shape[1:]
            further[name] = kept_dtype(name, dtype, where), row
    return further


def _joined(
    where: str, found: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
) -> tuple[dict[str, tuple[np.dtype[Any], tuple[int, ...]]], tuple[str, ...]]:
    """Merge single magnitude bands into one column; also the names of these bands."""
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
    same = {wanted[:1], (wanted[0], 1)}  # equivalent shapes of one value per row
    if has != wanted and not (has in same and wanted in same):
        raise BadPartitionError(f"{where}: {name} must be {_shape(wanted)}, not {_shape(has)}")


def _channels_last(image: tuple[int, ...], magnitudes: tuple[int, ...]) -> bool:
    """Whether the bands are the last axis of an image, as far as its shape shows.

    If there are magnitudes, their number is the number of bands. Without any, the last axis holds
    the bands if the other two are equal and longer. Everything else is (bands, height, width).
    """
    first, second, last = image
    if len(magnitudes) == 2:
        return magnitudes[1] == last != first
    return first == second > last


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
