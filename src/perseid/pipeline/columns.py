"""What a rank leaves for the merge: columns and features of each partition, and their statistics.

Both objects are npz files (plain zip of npy) without dates: the same item gives the same bytes.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from perseid.errors import RunError
from perseid.jsontext import parse_json
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
    """Of the partition."""
    z_pred: NDArray[np.float32]
    """(n,), NaN where flagged."""
    flag: NDArray[np.int32]
    """(n,): 0, `NOT_FINITE`, `NO_ANSWER` or `MISSING_INPUT`."""
    object_id: NDArray[Any] | None = None
    """(n,): int64, uint64 or text; masked where single ids are missing."""
    z_spec: NDArray[np.float64] | None = None
    """(n,), NaN where it is missing."""
    label: NDArray[np.int32] | None = None
    """(n,), masked where single labels are missing."""
    features: NDArray[np.float32] | None = None
    """(n, d), NaN where flagged; None where nothing is scored."""

    def __len__(self) -> int:
        return len(self.z_pred)

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


_MASKED, _MASK = ("object_id", "label"), ".missing"
"""Columns of which single values may be missing, and the name of the array that says which."""


class NpzWriter:
    """Writes arrays into an npz file one by one; a context manager."""

    def __init__(self, path: Path, stamp: Stamp) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._parts = 0
        text = json.dumps([stamp.run_id, stamp.rank, list(stamp.groups.items())])
        self._array("stamp", np.frombuffer(text.encode(), np.uint8))

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
    arrays = {f.name: getattr(result, f.name) for f in fields(result) if f.name != "key"}
    for name in _MASKED:
        if np.ma.is_masked(arrays[name]):
            arrays[name + _MASK] = np.ma.getmaskarray(arrays[name])
    writer.add(result.key, arrays)


def add_moments(writer: NpzWriter, key: str, moments: Moments) -> None:
    """Append one partition to a rank's ``moments.npz``."""
    writer.add(key, moments.to_arrays())


def read_results(data: bytes, where: str) -> tuple[Stamp, list[PartitionResult]]:
    """A rank's ``features.npz``; raises `RunError` naming `where` if it is broken."""
    stamp, parts = _read(data, where)
    for _, arrays in parts:
        for name in _MASKED:
            mask = arrays.pop(name + _MASK, None)
            if mask is not None:
                arrays[name] = np.ma.masked_array(arrays[name], mask=mask)
    return stamp, [PartitionResult(key=key, **arrays) for key, arrays in parts]


def read_moments(data: bytes, where: str) -> tuple[Stamp, list[tuple[str, Moments]]]:
    """A rank's ``moments.npz``; raises `RunError` naming `where` if it is broken."""
    stamp, parts = _read(data, where)
    return stamp, [(key, Moments.from_arrays(arrays)) for key, arrays in parts]


def _read(data: bytes, where: str) -> tuple[Stamp, list[tuple[str, dict[str, NDArray[Any]]]]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            run_id, rank, groups = parse_json(file["stamp"].tobytes())
            parts: dict[int, dict[str, NDArray[Any]]] = {}
            for name in file.files:
                number, _, array = name.partition("/")
                if array:
                    parts.setdefault(int(number), {})[array] = file[name]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{where} is broken: run the rank again by `perseid resume`") from error
    stamp = Stamp(run_id, rank, dict(groups))
    return stamp, [(p.pop("key").tobytes().decode(), p) for _, p in sorted(parts.items())]
