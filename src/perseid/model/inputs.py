"""Inputs of a model: an image, and columns of a survey."""

from __future__ import annotations

from dataclasses import dataclass

from perseid.errors import BadModelError
from perseid.survey.read_options import CHANNELS_FIRST, LAYOUTS

PIXEL_TYPES = ("float32", "float16", "float64", "uint8", "int16", "uint16", "int32")
"""Types of pixels that a model can ask for."""
COLUMN_TYPES = ("float32", "float64", "float16", "int32", "int64")
"""Types of columns that a model can ask for."""
MAGNITUDE = "magnitude"
"""The survey's column with one magnitude per band."""


@dataclass(frozen=True)
class ImageInput:
    """How a model takes its images; their bands and size are fields of `ModelSignature`."""

    name: str = "image"
    """Name of the graph's input; unused for a Python model."""
    layout: str = CHANNELS_FIRST
    """Axis order: ``channels-first`` for (n, bands, height, width), or ``channels-last``."""
    dtype: str = "float32"
    """One of `PIXEL_TYPES`. For an integer type, pixels are rounded and clipped to its range."""
    scale: tuple[float, ...] = ()
    """Factor of the pixels: one value, or one per band; empty means none."""
    offset: tuple[float, ...] = ()
    """Added after multiplication by `scale`: one value, or one per band; empty means nothing."""

    def check(self, bands: int, where: str) -> None:
        """Raise `BadModelError` if a setting is invalid."""
        if self.layout not in LAYOUTS:
            raise BadModelError(f"{where}: the layout is {self.layout!r}: use {_or(LAYOUTS)}")
        if self.dtype not in PIXEL_TYPES:
            raise BadModelError(f"{where}: pixels are {self.dtype!r}: use {_or(PIXEL_TYPES)}")
        for name in ("scale", "offset"):
            if len(getattr(self, name)) not in (0, 1, bands):
                raise BadModelError(f"{where}: give one {name}, or one for each of {bands} bands")


@dataclass(frozen=True)
class ColumnInput:
    """An input that is read from a column of the survey."""

    name: str = MAGNITUDE
    """Name of the graph's input, or of the entry in ``columns`` for a Python model."""
    column: str = MAGNITUDE
    """Name of the survey's column: ``magnitude`` has one number per band, every other column one
    per row."""
    width: int = 0
    """Number of values per row, if the model requires a fixed number; 0 means as many as the survey
    has."""
    dtype: str = "float32"
    """One of `COLUMN_TYPES`."""

    def check(self, where: str) -> None:
        """Raise `BadModelError` if a setting is invalid."""
        if self.dtype not in COLUMN_TYPES:
            raise BadModelError(f"{where}: {self.name} is {self.dtype!r}: use {_or(COLUMN_TYPES)}")
        if not self.column:
            raise BadModelError(f"{where}: {self.name} names no column of the survey")


def _or(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
