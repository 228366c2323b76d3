"""The page on which users rate objects: the next objects, the learned ranking, its precision."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from perseid.explore.explored_run import ExploredRun
from perseid.explore.object_page import ObjectView, object_view
from perseid.explore.teaching import Teaching
from perseid.explore.views import names_of

WORDS = ((1, "not interesting"), (2, "hardly"), (3, "undecided"), (4, "interesting"),
         (5, "more of these"))  # fmt: skip
"""Meaning of each rating."""


@dataclass(frozen=True)
class RankedObject:
    """One object of a gallery."""

    index: int
    name: str
    note: str


@dataclass(frozen=True)
class PrecisionRow:
    """One line of the comparison of rankings."""

    ranking: str
    percent: str
    share: float


@dataclass(frozen=True)
class TeachView:
    """Content of the page."""

    rated: int
    last: str
    """Object and value of the last rating; empty if there is none."""
    current: ObjectView | None
    """The object to rate now; None if all are rated."""
    next: tuple[RankedObject, ...]
    """Objects to rate after that."""
    top: tuple[RankedObject, ...]
    """First objects of the learned ranking."""
    labels: tuple[tuple[int, str, bool], ...]
    """For each label, its value, its name, and whether it is wanted."""
    precision: tuple[PrecisionRow, ...]
    wanted: int
    """Number of objects with a wanted label."""
    ratings: tuple[tuple[int, str], ...] = WORDS


def teach_view(explored: ExploredRun, teaching: Teaching, wanted: Collection[int]) -> TeachView:
    """Content of the page; `wanted` are the labels that count, or all but 0 if it is empty."""
    queue, rated = teaching.queue(), teaching.rated()
    labels = teaching.labels()
    # Without a choice, every label counts as interesting.
    chosen = set(wanted) or {one.value for one in labels}
    precision = teaching.precision(chosen) if labels else None
    rows: tuple[PrecisionRow, ...] = ()
    if precision is not None:
        # Both rankings are measured on the same labels, so the rows can be compared.
        pairs = (("anomaly score", precision.by_score), ("learned", precision.learned))
        rows = tuple(PrecisionRow(name, f"{100 * value:.0f} %", value) for name, value in pairs)
    # A list of none or one, so that the page needs no special case.
    last = list(teaching.file.history)[-1:]
    words = [f"{one.object_id or f'{one.partition} row {one.row}'}: {one.rating}" for one in last]
    return TeachView(
        rated=len(rated),
        last="".join(words),
        current=object_view(explored, int(queue[0]), brief=True) if len(queue) else None,
        next=_ranked(explored, queue[1:], rated),
        top=_ranked(explored, teaching.top(), rated),
        labels=tuple((one.value, one.name, one.value in chosen) for one in labels),
        precision=rows,
        wanted=precision.wanted if precision else 0,
    )


def _ranked(
    explored: ExploredRun, rows: np.ndarray, rated: dict[int, int]
) -> tuple[RankedObject, ...]:
    table = explored.needed_table()
    names = names_of(table, rows)
    return tuple(
        RankedObject(int(index), name, f"rated {rated[int(index)]}" if int(index) in rated else "")
        for index, name in zip(rows, names, strict=True)
    )
