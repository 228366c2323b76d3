"""The type that every reader returns and every writer takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError, BadPartitionError
from perseid.plaintext import counted, html_table

UGRIZ = ("u", "g", "r", "i", "z")


@dataclass(frozen=True, eq=False)
class Cutouts:
    """Objects of a survey, one row each, in the same order in every array.

    Raises `BadPartitionError` if the shapes of the arrays do not fit together.
    """

    images: NDArray[np.float32]
    """(n, bands, height, width), nanomaggies for SDSS; may be a read-only memory map. Where the
    survey has no images, (n, 0, 0, 0)."""
    magnitudes: NDArray[np.floating] | None = None
    """(n, magnitudes), AB magnitudes, as many as the survey has, NaN where one is missing; float32
    or float64, kept as read; None if the survey has none."""
    redshift: NDArray[np.floating] | None = None
    """(n,), spectroscopic, NaN where it is missing; None if no row has one."""
    object_id: NDArray[Any] | None = None
    """(n,), int64, uint64 or text, unique in the survey; masked where single ids are missing.
    None: the row is known by partition and row number only."""
    label: NDArray[np.int32] | None = None
    """(n,), 0 for a plain object, else the kind of a labeled anomaly (`ANOMALY_KINDS`); masked
    where single labels are missing."""
    further: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Further columns by name, (n,) or (n, ...): those of `ReadOptions.further` that the file has.
    A `numpy.ma.MaskedArray` if some values are missing."""

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.float32:
            raise BadPartitionError(
                f"images must be float32 (n, bands, height, width), not {self.images.dtype} "
                f"{self.images.shape}"
            )
        magnitudes = self.magnitudes
        if magnitudes is not None and (magnitudes.ndim != 2 or len(magnitudes) != len(self)):
            raise BadPartitionError(
                f"magnitudes must be ({len(self)}, bands), not {magnitudes.shape}"
            )
        for name in ("redshift", "object_id", "label"):
            array = getattr(self, name)
            if array is not None and array.shape != (len(self),):
                raise BadPartitionError(f"{name} must be ({len(self)},), not {array.shape}")
        for name, array in self.further.items():
            if array.shape[:1] != (len(self),):
                raise BadPartitionError(
                    f"{name} must have {counted(len(self), 'row')}, not {array.shape}"
                )

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def _repr_html_(self) -> str:
        ours = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "further"}
        every = {**ours, **self.further}.items()
        rows = [(name, one.dtype, one.shape) for name, one in every if one is not None]
        return html_table((counted(len(self), "object"), "type", "shape"), rows)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Cutouts:
        """Rows by slice (views, no copy) or by index (copies)."""

        def take(array: Any) -> Any:
            if isinstance(array, Mapping):
                return {name: values[rows] for name, values in array.items()}
            return None if array is None else array[rows]

        return Cutouts(*(take(getattr(self, f.name)) for f in fields(self)))

    def needed_magnitudes(self) -> NDArray[np.floating]:
        """The magnitudes; raises `BadInputError` if the survey has none."""
        if self.magnitudes is None:
            raise BadInputError(
                "the survey has no magnitudes (n, bands), which this needs: add a column "
                "`magnitude`, or use a model of images alone"
            )
        return self.magnitudes

    @property
    def bands(self) -> int:
        """How many bands the images have."""
        return int(self.images.shape[1])

    def batches(self, size: int) -> Iterator[Cutouts]:
        """Consecutive views of at most `size` rows."""
        for start in range(0, len(self), size):
            yield self[start : start + size]
