"""Measure the columns of a catalogue, for formats whose rows have a fixed width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from perseid.catalogues.selection import Selection
from perseid.errors import BadInputError
from perseid.plaintext import one_line, option
from perseid.survey.formats.arrow import compute_module, pyarrow_module, unwrapped

Encoder = Callable[[str], bytes]
"""Function that encodes a text as a format stores it."""


@dataclass(frozen=True)
class Measure:
    """Result of a pass over a column."""

    size: int | None = None
    """Bytes of the longest text, or number of elements of each list; None for other columns and for
    columns without rows."""
    has_null: bool = False
    """Whether a value is missing."""
    range: tuple[int, int] | None = None
    """Smallest and largest value of an integer column; None for other or empty columns."""

    def with_batch(self, column: Any, name: str, encode: Encoder, form: str) -> Measure:
        """The measure that includes the values of another batch.

        Raises
        ------
        BadInputError
            The column holds lists of texts, or lists of different lengths; `form` is the format's
            name.
        """
        found = self.range
        if pyarrow_module().types.is_integer(column.type) and column.null_count < len(column):
            here = compute_module().min_max(column).as_py()
            found = (
                min(here["min"], found[0] if found else here["min"]),
                max(here["max"], found[1] if found else here["max"]),
            )
        has_null = self.has_null or column.null_count > 0
        return Measure(self._size(column, name, encode, form), has_null, found)

    def _size(self, column: Any, name: str, encode: Encoder, form: str) -> int | None:
        leaf, lists = unwrapped(column.type)
        leave = f"{form}: leave it out by {option('columns')}"
        # Neither FITS nor VOTable has a form for them that readers agree on.
        if is_text(leaf) and lists:
            raise BadInputError(f"the column {one_line(name)} holds lists of texts, which are not "
                                f"written to {leave}")  # fmt: skip
        if is_text(leaf):
            # Each different text is encoded once; most text columns repeat few texts.
            texts = column.unique().drop_null().to_pylist()
            return max([self.size or 0, *(len(encode(text)) for text in texts)])
        if not lists:
            return None
        found = set(compute_module().list_value_length(column.drop_null()).unique().to_pylist())
        # The batches before must agree with this one.
        found |= set() if self.size is None else {self.size}
        if len(lists) > 1 or len(found) > 1:
            raise BadInputError(f"the column {one_line(name)} holds lists of different lengths, "
                                f"which are not written to {leave}")  # fmt: skip
        return found.pop() if found else None


def measured(selection: Selection, encode: Encoder, form: str) -> tuple[int, dict[str, Measure]]:
    """Number of rows and the measure of each column, from one pass over the rows."""
    rows = 0
    # Measures are immutable, so all columns can begin with the same one.
    found = dict.fromkeys(selection.columns, Measure())
    for table in selection.batches():
        rows += table.num_rows
        for name, measure in found.items():
            column = table[name].combine_chunks()
            found[name] = measure.with_batch(column, name, encode, form)
    return rows, found


def is_text(kind: Any) -> bool:
    """Whether values of an Arrow type are text."""
    types = pyarrow_module().types
    return bool(types.is_string(kind) or types.is_large_string(kind))
