"""Export to a FITS binary table, written as a stream in two passes with one batch in memory.

Unsigned integers are exact (``TZERO``), and missing integers are ``TNULL``. A missing
floating-point number is NaN, and a missing text is empty. FITS text is ASCII, so other characters
are written as escapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.catalogues.measures import Measure, is_text, measured
from perseid.catalogues.selection import Meaning, Selection
from perseid.errors import BadInputError
from perseid.plaintext import one_line, option
from perseid.survey.formats.arrow import pyarrow_module, unwrapped

BLOCK = 2880
"""Size of the blocks that a FITS file consists of, in bytes."""
_LONGEST_NAME, _MOST_COLUMNS = 68, 999
"""Most characters of a column's name, which must fit one card, and most columns (FITS 4.0, sections
4.2.1.1 and 7.3.1)."""
_CODES = {"i1": "I", "u1": "B", "i2": "I", "i4": "J", "i8": "K", "u2": "I", "u4": "J", "u8": "K",
          "f2": "E", "f4": "E", "f8": "D", "b1": "L"}  # fmt: skip
_STORED = {"I": ">i2", "B": "u1", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8", "L": "u1"}


@dataclass(frozen=True)
class _FitsColumn:
    """Layout of one column in the file."""

    name: str
    """Name in the file: ASCII, and unique regardless of case."""
    code: str
    """``TFORM`` without the count."""
    count: int
    """Number of elements of a value; for text, the number of bytes."""
    zero: int
    """``TZERO``, which readers add to each stored integer; 0 for none."""
    null: int | None
    """``TNULL``, a stored integer; None if no value is missing or the column has no integers."""

    @property
    def dtype(self) -> Any:
        """NumPy type of the stored values."""
        if self.code == "A":
            return np.dtype((np.bytes_, self.count))
        return np.dtype((_STORED[self.code], self.count) if self.count > 1 else _STORED[self.code])


def write_fits(selection: Selection, path: Path) -> int:
    """Write the file and return the number of rows.

    Raises
    ------
    BadInputError
        A column has values that FITS tables cannot hold, such as lists of different lengths.
    """
    if len(selection.columns) > _MOST_COLUMNS:
        raise BadInputError(
            f"FITS tables hold at most {_MOST_COLUMNS} columns, and there are "
            f"{len(selection.columns):,}: choose some by {option('columns')}, or write Parquet"
        )
    # The header, which precedes the rows, states the width of texts and the number of rows.
    rows, found = measured(selection, _ascii, "FITS")
    # Escaping may make two names equal, so uniqueness is checked on what is written.
    taken: set[str] = set()
    columns = [
        _column(name, selection.schema.field(name).type, found[name], taken)
        for name in selection.columns
    ]
    dtype = np.dtype([(column.name, column.dtype) for column in columns])
    with open(path, "wb") as file:
        file.write(_headers(columns, list(selection.columns), selection.meanings, rows))
        for table in selection.batches():
            # Zeros, because texts are padded with zero bytes.
            stored = np.zeros(table.num_rows, dtype)
            for column, name in zip(columns, selection.columns, strict=True):
                stored[column.name] = _stored(table[name].combine_chunks(), column)
            file.write(stored.tobytes())
        # FITS readers expect whole blocks of 2,880 bytes.
        file.write(b"\0" * (-rows * dtype.itemsize % BLOCK))
    return rows


def _column(name: str, kind: Any, found: Measure, taken: set[str]) -> _FitsColumn:
    shown = _unique(_ascii(one_line(name)).decode(), taken)
    leaf, lists = unwrapped(kind)
    # A column needs a width, even without rows.
    size = max(1, found.size or 1)
    if is_text(leaf):
        return _FitsColumn(shown, "A", size, 0, None)
    if pyarrow_module().types.is_integer(leaf) and found.has_null and not lists:
        code, null = _with_null(found.range or (0, 0))
        # 20 characters hold any 64-bit integer.
        return _FitsColumn(shown, code, 20 if code == "A" else 1, 0, null)
    short = np.dtype(leaf.to_pandas_dtype()).str[1:]
    if short not in _CODES:
        raise BadInputError(
            f"the column {one_line(name)} is of type {kind}, which FITS does not have: leave it "
            f"out by {option('columns')}"
        )
    code = _CODES[short]
    # FITS has only signed integers here: unsigned ones are stored minus half their range.
    zero = 1 << (8 * np.dtype(_STORED[code]).itemsize - 1) if short in ("u2", "u4", "u8") else 0
    return _FitsColumn(shown, code, size, zero, None)


def _with_null(values: tuple[int, int]) -> tuple[str, int | None]:
    """The smallest code for these integers and one more, which stands for a missing value.

    ``TZERO`` is not used, since readers differ in whether ``TNULL`` applies before or after it. If
    the values leave no 64-bit integer free, the code is that of text.
    """
    for code in "IJK":
        limits = np.iinfo(_STORED[code])
        if limits.min < values[0] and values[1] <= limits.max:
            return code, int(limits.min)
    limits = np.iinfo(np.int64)
    if limits.min <= values[0] and values[1] < limits.max:
        return "K", int(limits.max)
    return "A", None


def _unique(name: str, taken: set[str]) -> str:
    """The name, cut to what fits a card, with a number if another column has the same name; FITS
    ignores case."""
    found, number = _cut(name, _LONGEST_NAME), 2
    while found.lower() in taken:
        end = f"_{number}"
        found, number = _cut(name, _LONGEST_NAME - len(end)) + end, number + 1
    taken.add(found.lower())
    return found


def _cut(name: str, length: int) -> str:
    """The beginning of a name that takes so many characters in a card, where quotes are doubled."""
    name = name[:length]
    while len(name) + name.count("'") > length:
        name = name[:-1]
    return name


def _stored(column: Any, to: _FitsColumn) -> NDArray[Any]:
    """Values as they are stored in the file."""
    pa = pyarrow_module()
    missing = np.asarray(column.is_null())
    leaf, lists = unwrapped(column.type)
    if to.code == "A":
        texts = [_ascii("" if text is None else str(text)) for text in column.to_pylist()]
        return np.asarray(texts, np.bytes_)
    if lists:
        flat = column.fill_null([0] * to.count) if missing.any() else column
        values = flat.flatten().to_numpy(zero_copy_only=False).reshape(-1, to.count)
        return _coded(values[:, 0] if to.count == 1 else values, missing, to)
    if column.null_count:
        column = column.fill_null(False if pa.types.is_boolean(leaf) else 0)
    return _coded(column.to_numpy(zero_copy_only=False), missing, to)


def _coded(values: NDArray[Any], missing: NDArray[np.bool_], to: _FitsColumn) -> NDArray[Any]:
    """Numbers as they are stored in the file, with the replacement for missing values."""
    if to.code == "L":
        stored = np.where(values, ord("T"), ord("F"))
    elif to.zero == 1 << 63:
        # In two's complement, subtracting 2^63 flips the highest bit; floats would lose the
        # lowest bits.
        stored = (values ^ np.uint64(1 << 63)).view(np.int64)
    elif to.zero:
        stored = values.astype(np.int64) - to.zero
    else:
        stored = values.astype(_STORED[to.code])
    if missing.any():
        stored[missing] = np.nan if to.code in "ED" else to.null or 0
    return stored


def _headers(
    columns: list[_FitsColumn], names: list[str], meanings: Mapping[str, Meaning], rows: int
) -> bytes:
    """The primary header and the header of the table, as bytes."""
    from astropy.io import fits

    width = sum(column.dtype.itemsize for column in columns)
    header = fits.Header()
    for key, value in (("XTENSION", "BINTABLE"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", width),
                       ("NAXIS2", rows), ("PCOUNT", 0), ("GCOUNT", 1),
                       ("TFIELDS", len(columns)), ("EXTNAME", "CATALOGUE")):  # fmt: skip
        header[key] = value
    for number, (column, name) in enumerate(zip(columns, names, strict=True), 1):
        meaning = meanings[name]
        count = column.count if column.count > 1 or column.code == "A" else ""
        # Keywords with a limited character set: all texts are escaped to ASCII.
        entries = {
            "TTYPE": column.name,
            "TFORM": f"{count}{column.code}",
            "TZERO": column.zero or None,
            "TNULL": column.null,
            "TUNIT": _ascii(one_line(meaning.unit)).decode() or None,
            "TUCD": _ascii(one_line(meaning.ucd)).decode() or None,
            "TCOMM": _ascii(one_line(meaning.description)).decode() or None,
        }
        for key, entry in entries.items():
            if entry is not None:
                header[f"{key}{number}"] = entry
    primary = fits.PrimaryHDU().header
    return bytes((primary.tostring() + header.tostring()).encode("ascii"))


def _ascii(text: str) -> bytes:
    return text.encode("ascii", "backslashreplace")
