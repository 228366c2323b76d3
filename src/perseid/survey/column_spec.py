"""Description of a survey column: names, type, unit, UCD."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np

TEXT_KIND: Final = "text"
"""The `ColumnSpec.kind` of text."""
KINDS: Final = ("bool", "int32", "int64", "uint64", "float32", "float64", TEXT_KIND)
"""The types that a column can have in the catalogue."""


@dataclass(frozen=True)
class ColumnSpec:
    """One column of a survey, as its files name and describe it.

    Examples
    --------
    >>> ColumnSpec("ra", "RA", "float64", unit="deg", ucd="pos.eq.ra;meta.main").is_scalar
    True
    """

    sparse: ClassVar[bool] = True
    """JSON omits fields that have their default."""

    name: str
    """Name in `Cutouts.further`, and in the catalogue if the column is carried into it."""
    source: str
    """Name in the survey's files, matched in any case."""
    kind: str = "float64"
    """Type of its values, one of `KINDS`; empty if values of its type cannot be read."""
    shape: tuple[int, ...] = ()
    """Shape of one row; empty for a single value."""
    unit: str = ""
    """As the file writes it (``deg``, ``mag``); empty if the file does not say."""
    ucd: str = ""
    """Unified Content Descriptor of the IVOA (``phot.mag``); empty if the file does not say."""
    description: str = ""
    """Free text; empty if the file does not say."""
    stored: str = field(default="", compare=False, metadata={"written": False})
    """The file's own type, such as ``uint8`` where `kind` is ``int32``; empty if it is not
    known. Not written to the store."""

    @property
    def is_scalar(self) -> bool:
        """Whether each row has a single, readable value."""
        return not self.shape and self.kind in KINDS

    @property
    def can_be_carried(self) -> bool:
        """Whether a catalogue can have it: single values under a name without control characters,
        which tables and terminals would interpret."""
        return self.is_scalar and self.source.isprintable()

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy type of its values; text has no width of its own (``U``)."""
        return np.dtype("U" if self.kind == TEXT_KIND else self.kind)


def described(
    source: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    *,
    unit: str | None = "",
    ucd: str | None = "",
    description: str | None = "",
) -> ColumnSpec:
    """Describe a column under the file's own name; `shape` includes the rows."""
    row = () if shape[1:] == (1,) else tuple(int(size) for size in shape[1:])
    kind = kind_of_dtype(dtype)
    stored = dtype.name if kind not in ("", TEXT_KIND) else kind
    unit, ucd, description = ((text or "").strip() for text in (unit, ucd, description))
    return ColumnSpec(source, source, kind, row, unit, ucd, description, stored)


def kind_of_dtype(dtype: np.dtype[Any]) -> str:
    """The kind of column that holds every value of a dtype; empty if there is none.

    Examples
    --------
    >>> kind_of_dtype(np.dtype(">u4")), kind_of_dtype(np.dtype("f2")), kind_of_dtype(np.dtype("c8"))
    ('int64', 'float32', '')
    """
    if dtype.kind in "US":
        return TEXT_KIND
    if dtype.kind == "b":
        return "bool"
    if dtype.kind == "f":
        return {2: "float32", 4: "float32", 8: "float64"}.get(dtype.itemsize, "")
    if dtype.kind == "i":
        return "int32" if dtype.itemsize <= 4 else "int64"
    if dtype.kind == "u":
        return {1: "int32", 2: "int32", 4: "int64"}.get(dtype.itemsize, "uint64")
    return ""
