"""The data of a training: a whole survey as arrays, split by object into train, validation and test
sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError
from perseid.storage import Storage
from perseid.survey.cutouts import Cutouts
from perseid.survey.discovery import SurveyListing, discover
from perseid.survey.missing import MissingValues
from perseid.survey.read_options import PLAIN, ReadOptions
from perseid.survey.reader import open_partition
from perseid.survey.splits import assign_split

IN_MEMORY = 2 << 30
"""Bytes of pixels kept in memory; larger surveys go to a memory-mapped scratch file."""


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The usable rows of a survey (finite pixels and magnitudes)."""

    images: NDArray[np.float32]
    """Images (n, bands, height, width); a memory map for large surveys."""
    magnitudes: NDArray[np.float32]
    """Magnitudes (n, bands)."""
    redshift: NDArray[np.float32]
    """Spectroscopic redshifts (n,); NaN if unknown."""
    label: NDArray[np.int32]
    """Labels (n,); 0 for plain objects and for surveys without labels."""
    split: NDArray[np.int8]
    """Split of each row (n,): TRAIN, VALIDATION or TEST."""
    dropped: int
    """Number of rows left out because a pixel or magnitude was not finite."""

    def rows(self, split: int, *, supervised: bool) -> NDArray[np.int64]:
        """Indices of the rows in a split; `supervised` selects only plain objects with a
        redshift."""
        chosen = self.split == split
        if supervised:
            chosen &= np.isfinite(self.redshift) & (self.label == 0)
        return np.flatnonzero(chosen)


def blocks(
    survey: str | Path | SurveyListing,
    missing: MissingValues = MissingValues(),  # noqa: B008 - frozen
    options: ReadOptions = PLAIN,
) -> Iterator[Cutouts]:
    """All rows of a survey in blocks, with its files in natural order.

    `perseid.survey.discover` finds the files; see there for what `survey` may be and which errors
    are raised. Magnitudes and redshifts with one of the `missing` values become NaN. `options` say
    how the files name their columns.
    """
    listing = discover(survey) if not isinstance(survey, SurveyListing) else survey
    store = Storage(listing.location)
    for partition in listing.partitions:
        with open_partition(store, partition.key, missing, options) as reader:
            yield from reader.blocks()


def object_keys(
    object_id: NDArray[np.int64], magnitudes: NDArray[np.floating]
) -> NDArray[np.int64]:
    """One key for all rows that show the same object: the smallest of their ids.

    Rows show the same object if they have the same id or, bit for bit, the same magnitudes (a
    simulated survey renders a real object more than once, under several ids).
    """
    photometry = np.ascontiguousarray(magnitudes, np.float32)
    rows = photometry.view(np.dtype((np.void, photometry.itemsize * photometry.shape[1])))
    key = np.asarray(object_id, np.int64).copy()
    for same in (rows.reshape(-1), object_id):
        _, group = np.unique(same, return_inverse=True)
        least = np.full(int(group.max(initial=-1)) + 1, np.iinfo(np.int64).max)
        np.minimum.at(least, group.reshape(-1), key)
        key = least[group.reshape(-1)]
    return key


def gather(
    parts: Iterable[Cutouts], scratch: Path, *, rows: int | None = None, limit: int = IN_MEMORY
) -> TrainingSet:
    """Collect partitions, one at a time, into a `TrainingSet`.

    Parameters
    ----------
    parts
        Partitions in natural order, all of one shape.
    scratch
        File for the pixels of surveys above `limit` bytes; an existing file is replaced.
    rows
        Number of usable rows after which to stop.
    limit
        Most bytes of pixels to hold in memory.

    Raises
    ------
    BadInputError
        There are no usable rows, or the partitions have different shapes.
    """
    store = _Pixels(scratch, limit)
    columns: list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]] = []
    ids: list[NDArray[np.int64]] = []
    dropped, seen = 0, 0
    for part in parts:
        good = _finite(part)
        dropped += len(part) - len(good)
        good = good[: None if rows is None else rows - store.rows]
        store.append(part.images, good)
        columns.append(_columns(part, good))
        ids.append(_numbers(part.object_id, seen, len(part))[good])
        seen += len(part)
        if rows is not None and store.rows >= rows:
            break
    if not store.rows:
        raise BadInputError(
            f"the survey has no usable rows ({dropped} with pixels or magnitudes that are not "
            "finite): give a survey with cutouts"
        )
    magnitudes, redshift, label = (np.concatenate(column) for column in zip(*columns, strict=True))
    split = assign_split(object_keys(np.concatenate(ids), magnitudes))
    return TrainingSet(store.whole(), magnitudes, redshift, label, split, dropped)


def _numbers(ids: NDArray[Any] | None, first: int, rows: int) -> NDArray[np.int64]:
    """Ids as integers: unsigned ids by their bits, text by a hash, missing ids by the row's
    number."""
    places = np.arange(first, first + rows)
    if ids is None:
        return places
    values = np.ma.getdata(ids)
    if values.dtype.kind == "U":
        digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in values]
        values = np.frombuffer(b"".join(digests), "<i8")
    elif values.dtype.kind == "u":
        values = values.view(np.int64)
    return np.where(np.ma.getmaskarray(ids), places, values)


def _finite(part: Cutouts) -> NDArray[np.int64]:
    good = np.isfinite(part.needed_magnitudes()).all(axis=1)
    for start in range(0, len(part), 1024):
        pixels = part.images[start : start + 1024]
        good[start : start + 1024] &= np.isfinite(pixels).all(axis=(1, 2, 3))
    return np.flatnonzero(good)


def _columns(
    part: Cutouts, good: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    n = len(good)
    redshift = np.full(n, np.nan) if part.redshift is None else part.redshift[good]
    label = np.zeros(n, np.int32)
    if part.label is not None and part.label.dtype.kind != "U":  # text names classes, not anomalies
        label = np.ma.filled(part.label[good], 0)
    return (
        np.asarray(part.needed_magnitudes()[good], np.float32),
        np.asarray(redshift, np.float32),
        np.asarray(label, np.int32),
    )


class _Pixels:
    """Images that are kept in memory up to a limit, then in one flat scratch file."""

    def __init__(self, scratch: Path, limit: int) -> None:
        self.scratch, self.limit = scratch, limit
        self.parts: list[NDArray[np.float32]] = []
        self.shape: tuple[int, ...] | None = None
        self.rows = 0
        self.on_disk = False

    def append(self, images: NDArray[np.float32], good: NDArray[np.int64]) -> None:
        if self.shape not in (None, images.shape[1:]):
            raise BadInputError(
                f"partitions of cutouts {self.shape} and {images.shape[1:]} cannot be trained on "
                "together: give a survey of one shape"
            )
        self.shape = images.shape[1:]
        self.rows += len(good)
        self.parts.append(np.asarray(images[good], np.float32))
        if self.on_disk or sum(part.nbytes for part in self.parts) > self.limit:
            self._spill()

    def whole(self) -> NDArray[np.float32]:
        if not self.on_disk:
            return np.concatenate(self.parts)
        return np.memmap(self.scratch, np.float32, "r", shape=(self.rows, *(self.shape or ())))

    def _spill(self) -> None:
        with open(self.scratch, "ab" if self.on_disk else "wb") as file:
            for part in self.parts:
                part.tofile(file)
        self.parts, self.on_disk = [], True
