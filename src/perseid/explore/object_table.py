"""The columns of a catalogue, prepared for fast sorting, filtering and binning.

A column is converted from the Arrow table when it is first needed, and sorted when it is first
sorted by; after that, operations on a million rows take milliseconds.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError
from perseid.survey.kinds import label_name
from perseid.survey.partition import natural_key

KEPT_ORDERS = 16
"""Maximum number of sort orders that are kept, at 4 bytes per row each."""
CATEGORIES = ("label", "flag", "class", "rating")
"""Columns whose numbers stand for names."""
MOST_CATEGORIES = 64
"""Maximum number of different values of a category column; with more, the column is text."""

T = TypeVar("T")


class ColumnKind(StrEnum):
    """How a column is filtered and drawn."""

    NUMBER = "number"
    CATEGORY = "category"
    TEXT = "text"


@dataclass(frozen=True)
class Category:
    """One value of a column of categories."""

    value: int
    """Code of the category in the column."""
    name: str


class ResultCache:
    """Recent results by key; each is computed once, even if threads request it simultaneously."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        # Held while computing, so that the same result is never computed twice; reentrant, since
        # one result may need another.
        self._lock = threading.RLock()

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the result for a key, computing it if it is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                found: T = self._kept[key]
                return found
            found = compute()
            self._kept[key] = found
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
            return found

    def forget(self, gone: Callable[[Hashable], bool]) -> None:
        """Drop the results for whose key `gone` is true."""
        with self._lock:
            for key in [key for key in self._kept if gone(key)]:
                del self._kept[key]


class ObjectTable:
    """A table with one row per object, in the order of the catalogue.

    Parameters
    ----------
    table
        A ``pyarrow.Table``.
    label_names
        Names of the survey's labels.
    """

    def __init__(self, table: Any, label_names: Mapping[int, str] | None = None) -> None:
        self._arrow = table
        self._label_names = dict(label_names or {})
        self._added: dict[str, NDArray[np.float64]] = {}
        self._columns = ResultCache(64)
        self._orders = ResultCache(KEPT_ORDERS)

    def __len__(self) -> int:
        return int(self._arrow.num_rows)

    @property
    def names(self) -> list[str]:
        """The catalogue's own columns, in order, except nested ones, which cannot be shown."""
        import pyarrow.types as types

        fields = self._arrow.schema
        return [f.name for f in fields if not types.is_nested(f.type)]

    @property
    def added(self) -> list[str]:
        """Added columns: positions in the map, ratings and the learned ranking."""
        return list(self._added)

    def add(self, name: str, values: NDArray[np.float64]) -> None:
        """Add a column of numbers, or replace one that was added before."""
        # An added column must never hide what the run has written.
        if name in self._arrow.column_names:
            raise BadInputError(f"the catalogue has a column {name!r} of its own")
        self._added[name] = values
        for cache in (self._columns, self._orders):
            cache.forget(lambda key: isinstance(key, tuple) and key[1] == name)

    def has(self, name: str) -> bool:
        """Whether this column exists and has at least one value."""
        if name in self._added:
            return bool(np.isfinite(self._added[name]).any())
        return name in self.names and self._arrow[name].null_count < len(self)

    def kind(self, name: str) -> ColumnKind:
        """How the column is filtered and drawn; raises `BadInputError` if it does not exist."""
        return self._columns.get(("kind", name), lambda: self._find_kind(name))

    def _find_kind(self, name: str) -> ColumnKind:
        import pyarrow.types as types

        if name in self._added:
            return ColumnKind.NUMBER
        if name not in self.names:
            have = ", ".join([*self.names, *self._added])
            raise BadInputError(f"the catalogue has no column {name!r}: it has {have}")
        kind = self._arrow.schema.field(name).type
        # Ids may be integers, but nobody bins or averages them.
        if name == "object_id":
            return ColumnKind.TEXT
        if name in CATEGORIES or types.is_boolean(kind):
            return ColumnKind.CATEGORY
        if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
            return ColumnKind.NUMBER
        # A survey of few partitions would make them categories, but they are searched as text.
        few = len(self._dictionary(name)[1]) <= MOST_CATEGORIES
        return ColumnKind.CATEGORY if few and name != "partition" else ColumnKind.TEXT

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column as float64, (n,); missing values are NaN, and categories are their codes."""
        if name in self._added:
            return self._added[name]
        return self._columns.get(("numbers", name), lambda: self._read_numbers(name))

    def _read_numbers(self, name: str) -> NDArray[np.float64]:
        import pyarrow.types as types

        kind = self.kind(name)
        column = self._arrow[name]
        if types.is_boolean(column.type):
            column = column.cast("int8")
        if kind is not ColumnKind.NUMBER and not types.is_integer(column.type):
            codes, _ = self._dictionary(name)
            return np.where(codes < 0, np.nan, codes.astype(np.float64))
        values = column.to_numpy(zero_copy_only=False)
        return np.asarray(values, np.float64)

    def categories(self, name: str) -> tuple[Category, ...]:
        """The categories of a column, in ascending order."""
        return self._columns.get(("categories", name), lambda: self._find_categories(name))

    def _find_categories(self, name: str) -> tuple[Category, ...]:
        import pyarrow.types as types

        column = self._arrow[name]
        if types.is_boolean(column.type):
            return (Category(0, "no"), Category(1, "yes"))
        if not types.is_integer(column.type):
            return tuple(Category(i, text) for i, text in enumerate(self._dictionary(name)[1]))
        found = sorted(value for value in column.unique().to_pylist() if value is not None)
        return tuple(Category(value, self.category_name(name, value)) for value in found)

    def category_name(self, name: str, value: int) -> str:
        """Name of a value of a category column."""
        if name == "label":
            return label_name(value, self._label_names)
        return _FLAGS.get(value, str(value)) if name == "flag" else str(value)

    def _dictionary(self, name: str) -> tuple[NDArray[np.int32], list[str]]:
        """Codes (n,), -1 for a missing value, and the texts that the codes stand for."""

        def encode() -> tuple[NDArray[np.int32], list[str]]:
            found = self._arrow[name].combine_chunks().dictionary_encode()
            texts = [str(text) for text in found.dictionary.to_pylist()]
            codes = found.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            # Natural order: part-2 before part-10.
            order = sorted(range(len(texts)), key=lambda i: natural_key(texts[i]))
            place = np.empty(len(texts) + 1, np.int32)
            place[order] = np.arange(len(texts), dtype=np.int32)
            # Code -1, a missing value, indexes the last element and so maps to itself.
            place[-1] = -1
            return place[codes], [texts[i] for i in order]

        return self._columns.get(("dictionary", name), encode)

    def texts(self, name: str) -> list[str]:
        """The different texts of a column in natural order, indexed by its codes."""
        return self._dictionary(name)[1]

    def order(self, name: str, *, descending: bool) -> NDArray[np.int32]:
        """Row numbers sorted by this column; missing values are last in both directions."""
        return self._orders.get(("order", name, descending), lambda: self._sort(name, descending))

    def _sort(self, name: str, descending: bool) -> NDArray[np.int32]:
        import pyarrow.compute as compute

        if name in self._added or self.kind(name) is not ColumnKind.TEXT or name == "partition":
            values = self._codes(name) if name == "partition" else self.numbers(name)
            # Negated, not reversed, so that NaN stays last and equal values keep their order.
            keys = -values if descending else values
            return np.argsort(keys, kind="stable").astype(np.int32)  # NaN comes last
        way = "descending" if descending else "ascending"
        found = compute.array_sort_indices(
            self._arrow[name].combine_chunks(), order=way, null_placement="at_end"
        )
        return np.asarray(found.to_numpy(zero_copy_only=False), np.int32)

    def _codes(self, name: str) -> NDArray[np.float64]:
        return self._dictionary(name)[0].astype(np.float64)

    def matching(self, name: str, text: str) -> NDArray[np.bool_]:
        """Mask of rows whose value contains this text, ignoring case; numbers count as text."""
        import pyarrow.compute as compute
        import pyarrow.types as types

        if self.kind(name) is ColumnKind.CATEGORY:
            wanted = [c.value for c in self.categories(name) if text.lower() in c.name.lower()]
            return np.isin(self.numbers(name), wanted)
        column = self._arrow[name]
        if types.is_integer(column.type):
            column = column.cast("string")
        found = compute.match_substring(column, text, ignore_case=True).fill_null(False)
        return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)

    def values(self, name: str, rows: NDArray[np.integer[Any]]) -> Sequence[object]:
        """The values of some rows as stored; None for a missing value."""
        if name in self._added:
            return [None if np.isnan(v) else float(v) for v in self._added[name][rows]]
        found: list[object] = self._arrow[name].take(_indices(rows)).to_pylist()
        return found


def _indices(rows: NDArray[np.integer[Any]]) -> Any:
    import pyarrow

    return pyarrow.array(np.asarray(rows, np.int64))


_FLAGS = {
    0: "predicted",
    1: "pixel not finite",
    2: "no finite answer",
    3: "input missing",
}
