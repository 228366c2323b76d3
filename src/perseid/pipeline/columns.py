"""What a rank leaves for the merge: columns and features of each partition, and their statistics.

Both objects are npz files (plain zip of npy) without dates: the same item gives the same bytes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from perseid.errors import RunError
from perseid.jsontext import parse_json
from perseid.model.outputs import Z_PRED, OutputColumn
from perseid.science import Moments

NOT_FINITE = 1
"""Flag: a pixel is not finite, or a magnitude infinite, so there is no prediction."""
NO_ANSWER = 2
"""Flag: the input is finite and the model's answer is not."""


MISSING_INPUT = 3
"""Flag: an input that the model uses is missing (a magnitude), so there is no prediction."""


@dataclass(frozen=True, eq=False)
class PartitionResult:
    """All that is kept of one partition, one row an object in the file's order."""

    key: str
    """Key of the partition."""
    z_pred: NDArray[np.float32] | None
    """(n,), NaN where flagged; None if the model predicts no redshift."""
    flag: NDArray[np.int32]
    """(n,): 0, `NOT_FINITE`, `NO_ANSWER` or `MISSING_INPUT`."""
    object_id: NDArray[Any] | None = None
    """(n,): int64, uint64 or text; masked where single ids are missing."""
    z_spec: NDArray[np.float64] | None = None
    """(n,), NaN where it is missing."""
    label: NDArray[np.int32] | None = None
    """(n,), masked where single labels are missing."""
    features: NDArray[np.float32] | None = None
    """(n, d), NaN where flagged; None if nothing is scored."""
    carried: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Columns of the survey that the catalogue takes, by their names there, (n,); masked where
    single values are missing. A column that the partition lacks is not among them."""
    outputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """The model's other columns by name, (n,) or (n, width): float32, NaN where flagged; of classes
    int32, -1 where flagged."""
    output_columns: tuple[OutputColumn, ...] = (Z_PRED,)
    """What the model's columns are, in order."""

    def __len__(self) -> int:
        return len(self.flag)

    @property
    def flagged(self) -> int:
        """Rows without a prediction."""
        return int(np.count_nonzero(self.flag))


@dataclass(frozen=True)
class Stamp:
    """Says whose an object is, so that one of another run or rank is never merged."""

    run_id: str
    rank: int
    groups: Mapping[str, int] = field(default_factory=dict)
    """Width of each group of features that is kept, in order; empty: nothing to score."""
    output_columns: tuple[OutputColumn, ...] = (Z_PRED,)
    """What the columns of the rank's model are, in order."""

    def to_json(self) -> str:
        """Convert to the JSON in a rank's objects."""
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
"""A rank's results, and those of its partitions."""
_MASKED, _MASK = ("object_id", "label"), ".missing"
"""Columns of which single values may be missing, and the name of the array that says which."""
_CARRIED, _CARRIED_MASK = "carried/", "carried_missing/"
"""Before the name of a carried column, and of the array that says which values are missing."""
_OUTPUT = "output/"
"""Before the name of a column of the model."""


Source = bytes | BinaryIO
"""An object that was fetched, or one that is read where it lies."""


class NpzWriter:
    """Writes arrays into an npz file one by one; a context manager."""

    def __init__(self, path: Path, stamp: Stamp) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._parts = 0
        self._array("stamp", np.frombuffer(stamp.to_json().encode(), np.uint8))

    def add(self, key: str, arrays: Mapping[str, NDArray[Any] | None]) -> None:
        """The arrays of the next partition; None is left out."""
        self._array(f"{self._parts}/key", np.frombuffer(key.encode(), np.uint8))
        for name, array in arrays.items():
            if array is not None:
                self._array(f"{self._parts}/{name}", array)
        self._parts += 1

    def _array(self, name: str, array: NDArray[Any]) -> None:
        # ZipInfo without a date means 1980: the bytes depend on the content alone.
        with self._zip.open(zipfile.ZipInfo(name + ".npy"), "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._zip.close()


def add_result(writer: NpzWriter, result: PartitionResult) -> None:
    """Append one partition to a rank's ``features.npz``."""
    apart = ("key", "carried", "outputs", "output_columns")
    arrays = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in apart}
    arrays |= {_OUTPUT + name: array for name, array in result.outputs.items()}
    masked = {name: name + _MASK for name in _MASKED}
    for name, array in result.carried.items():
        arrays[_CARRIED + name] = array
        masked[_CARRIED + name] = _CARRIED_MASK + name
    for name, mask in masked.items():
        if np.ma.is_masked(arrays[name]):
            arrays[mask] = np.ma.getmaskarray(arrays[name])
    writer.add(result.key, arrays)


def add_moments(writer: NpzWriter, key: str, moments: Moments) -> None:
    """Append one partition to a rank's ``moments.npz``."""
    writer.add(key, moments.to_arrays())


def read_results(data: Source, where: str, *, features: bool = True) -> ReadResults:
    """A rank's ``features.npz``; raises `RunError` naming `where` if it is broken.

    Without `features` only the columns are read, which are a tenth of the object.
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
    """The model's columns but the redshift, taken out of a partition's arrays."""
    arrays.setdefault("z_pred", None)  # type: ignore[arg-type]
    names = [name for name in arrays if name.startswith(_OUTPUT)]
    return {name.removeprefix(_OUTPUT): arrays.pop(name) for name in names}


def _carried(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The carried columns, taken out of a partition's arrays."""
    names = [name for name in arrays if name.startswith(_CARRIED)]
    carried = {name.removeprefix(_CARRIED): arrays.pop(name) for name in names}
    for name in carried:
        mask = arrays.pop(_CARRIED_MASK + name, None)
        if mask is not None:
            carried[name] = np.ma.masked_array(carried[name], mask=mask)
    return carried


def read_moments(data: Source, where: str) -> tuple[Stamp, list[tuple[str, Moments]]]:
    """A rank's ``moments.npz``; raises `RunError` naming `where` if it is broken."""
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
"""Header of an array as `NpzWriter` writes it."""


def _array(data: bytes) -> NDArray[Any]:
    """An array out of the bytes of a member.

    Not by numpy: it reads headers by `ast`, which Python 3.11 cannot do in several threads at once
    (SystemError, "AST constructor recursion depth mismatch").
    """
    major = data[6] if data[:6] == b"\x93NUMPY" else 0
    start = {1: 10, 2: 12, 3: 12}.get(major, len(data))
    length = int.from_bytes(data[8:start], "little")
    header = _HEADER.fullmatch(data, start, start + length)
    if header is None:
        raise ValueError("this is not an array of a rank's objects")
    shape = tuple(int(size) for size in header[2].replace(b",", b" ").split())
    dtype = np.dtype(header[1].decode())
    if not dtype.itemsize:  # of empty texts
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype, offset=start + length).reshape(shape)
