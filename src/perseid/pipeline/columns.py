"""What a rank leaves for the merge: each partition's columns and features, and their statistics.

Both objects are npz files (plain zip of npy) without timestamps, so the same item always gives the
same bytes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from perseid.errors import RunError
from perseid.jsontext import parse_json
from perseid.masked import has_missing
from perseid.model.outputs import Z_PRED, OutputColumn
from perseid.science import Moments

NOT_FINITE = 1
"""Flag: a pixel is not finite or a magnitude is infinite, so there is no prediction."""
NO_ANSWER = 2
"""Flag: the input is finite, but the model's answer is not."""


MISSING_INPUT = 3
"""Flag: an input that the model uses, such as a magnitude, is missing, so there is no
prediction."""


@dataclass(frozen=True, eq=False)
class PartitionResult:
    """Results of one partition: one row per object, in the order of the file."""

    key: str
    """Key of the partition."""
    z_pred: NDArray[np.float32] | None
    """Predicted redshifts (n,), NaN for flagged rows; None if the model predicts no redshift."""
    flag: NDArray[np.int32]
    """Flags (n,): 0, `NOT_FINITE`, `NO_ANSWER` or `MISSING_INPUT`."""
    object_id: NDArray[Any] | None = None
    """Object ids (n,): int64, uint64 or text; masked where an id is missing."""
    z_spec: NDArray[np.float64] | None = None
    """Spectroscopic redshifts (n,), NaN where missing."""
    label: NDArray[np.int32] | None = None
    """Labels (n,), masked where missing."""
    features: NDArray[np.float32] | None = None
    """Features (n, d), NaN for flagged rows; None if nothing is scored."""
    carried: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Survey columns (n,) that the catalogue keeps, by their names in the catalogue; masked where a
    value is missing. A column that the partition lacks is absent."""
    outputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """The model's other columns by name, (n,) or (n, width): float32 with NaN for flagged rows, or
    int32 with -1 for flagged rows if the column holds classes."""
    output_columns: tuple[OutputColumn, ...] = (Z_PRED,)
    """Descriptions of the model's columns, in order."""

    def __len__(self) -> int:
        return len(self.flag)

    @property
    def flagged(self) -> int:
        """Rows without a prediction."""
        return int(np.count_nonzero(self.flag))


@dataclass(frozen=True)
class Stamp:
    """Identifies the run and rank that an object belongs to, so that objects of another run or rank
    are never merged."""

    run_id: str
    rank: int
    groups: Mapping[str, int] = field(default_factory=dict)
    """Width of each feature group that is kept, in order; empty if nothing is scored."""
    output_columns: tuple[OutputColumn, ...] = (Z_PRED,)
    """Descriptions of the columns of the rank's model, in order."""

    def to_json(self) -> str:
        """Convert to the JSON that a rank's objects contain."""
        plain: list[object] = [self.run_id, self.rank, list(self.groups.items())]
        if self.output_columns != (Z_PRED,):
            plain.append([column.to_json() for column in self.output_columns])
        return json.dumps(plain)

    @classmethod
    def from_json(cls, text: bytes) -> Stamp:
        """The inverse of `to_json`; raises `ValueError` if the JSON does not have this form."""
        run_id, rank, groups, *more = parse_json(text)
        columns = tuple(map(OutputColumn.from_json, more[0])) if more else (Z_PRED,)
        return cls(run_id, rank, dict(groups), columns)


ReadResults = tuple[Stamp, list[PartitionResult]]
"""The results of a rank and of its partitions."""
_MASKED, _MASK = ("object_id", "label"), ".missing"
"""Columns whose values may be missing, and the name of the array that marks the missing ones."""
_CARRIED, _CARRIED_MASK = "carried/", "carried_missing/"
"""Prefixes of the names of a carried column and of the array that marks its missing values."""
_OUTPUT = "output/"
"""Prefix of the names of the model's columns."""


Source = bytes | BinaryIO
"""An object's bytes, or an open file that is read in place."""


class NpzWriter:
    """Writes arrays into an npz file one by one; a context manager."""

    def __init__(self, path: Path, stamp: Stamp) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._parts = 0
        self._array("stamp", np.frombuffer(stamp.to_json().encode(), np.uint8))

    def add(self, key: str, arrays: Mapping[str, NDArray[Any] | None]) -> None:
        """Add the arrays of the next partition; arrays that are None are left out."""
        self._array(f"{self._parts}/key", np.frombuffer(key.encode(), np.uint8))
        for name, array in arrays.items():
            if array is not None:
                self._array(f"{self._parts}/{name}", array)
        self._parts += 1

    def _array(self, name: str, array: NDArray[Any]) -> None:
        # A ZipInfo without a date uses 1980, so the bytes depend on the content alone.
        with self._zip.open(zipfile.ZipInfo(name + ".npy"), "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()


def add_result(writer: NpzWriter, result: PartitionResult) -> None:
    """Append one partition's results to a rank's ``features.npz``."""
    apart = ("key", "carried", "outputs", "output_columns")
    arrays = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in apart}
    arrays |= {_OUTPUT + name: array for name, array in result.outputs.items()}
    masked = {name: name + _MASK for name in _MASKED}
    for name, array in result.carried.items():
        arrays[_CARRIED + name] = array
        masked[_CARRIED + name] = _CARRIED_MASK + name
    for name, mask in masked.items():
        if has_missing(arrays[name]):
            arrays[mask] = np.ma.getmaskarray(arrays[name])
    writer.add(result.key, arrays)


def add_moments(writer: NpzWriter, key: str, moments: Moments) -> None:
    """Append one partition's statistics to a rank's ``moments.npz``."""
    writer.add(key, moments.to_arrays())


def read_results(data: Source, where: str, *, features: bool = True) -> ReadResults:
    """Read a rank's ``features.npz``; raises `RunError` naming `where` if it is broken.

    If `features` is False, only the columns are read, which make up a tenth of the object.
    """
    stamp, parts = _read(data, where, () if features else ("features",))
    for _, arrays in parts:
        for name in _MASKED:
            mask = arrays.pop(name + _MASK, None)
            if mask is not None:
                arrays[name] = np.ma.masked_array(arrays[name], mask=mask)
    return stamp, [
        PartitionResult(
            key=key,
            carried=_carried(arrays),
            outputs=_outputs(arrays),
            output_columns=stamp.output_columns,
            **arrays,
        )
        for key, arrays in parts
    ]


def _outputs(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The model's columns other than the redshift, extracted from a partition's arrays."""
    arrays.setdefault("z_pred", None)  # type: ignore[arg-type]
    names = [name for name in arrays if name.startswith(_OUTPUT)]
    return {name.removeprefix(_OUTPUT): arrays.pop(name) for name in names}


def _carried(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The carried columns, extracted from a partition's arrays."""
    names = [name for name in arrays if name.startswith(_CARRIED)]
    carried = {name.removeprefix(_CARRIED): arrays.pop(name) for name in names}
    for name in carried:
        mask = arrays.pop(_CARRIED_MASK + name, None)
        if mask is not None:
            carried[name] = np.ma.masked_array(carried[name], mask=mask)
    return carried


def read_moments(data: Source, where: str) -> tuple[Stamp, list[tuple[str, Moments]]]:
    """Read a rank's ``moments.npz``; raises `RunError` naming `where` if it is broken."""
    stamp, parts = _read(data, where, ())
    return stamp, [(key, Moments.from_arrays(arrays)) for key, arrays in parts]


def _read(
    data: Source, where: str, without: Sequence[str]
) -> tuple[Stamp, list[tuple[str, dict[str, NDArray[Any]]]]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data) if isinstance(data, bytes) else data) as file:
            stamp = Stamp.from_json(_array(file.read("stamp.npy")).tobytes())
            parts: dict[int, dict[str, NDArray[Any]]] = {}
            for member in file.namelist():
                number, _, name = member.removesuffix(".npy").partition("/")
                if name and name not in without:
                    parts.setdefault(int(number), {})[name] = _array(file.read(member))
    except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{where} is broken: run the rank again by `perseid resume`") from error
    return stamp, [(p.pop("key").tobytes().decode(), p) for _, p in sorted(parts.items())]


_HEADER = re.compile(
    rb"\{'descr': '([<|][bifuU]\d+)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n"
)
"""Pattern of an array header as `NpzWriter` writes it."""


def _array(data: bytes) -> NDArray[Any]:
    """Decode an array from the bytes of a zip member.

    NumPy's reader is not used: it parses headers with `ast`, which in Python 3.11 fails in several
    threads at once (SystemError, "AST constructor recursion depth mismatch").
    """
    major = data[6] if data[:6] == b"\x93NUMPY" else 0
    start = {1: 10, 2: 12, 3: 12}.get(major, len(data))
    length = int.from_bytes(data[8:start], "little")
    header = _HEADER.fullmatch(data, start, start + length)
    if header is None:
        raise ValueError("this is not an array of a rank's objects")
    shape = tuple(int(size) for size in header[2].replace(b",", b" ").split())
    dtype = np.dtype(header[1].decode())
    if not dtype.itemsize:  # an array of empty texts has no bytes
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype, offset=start + length).reshape(shape)
