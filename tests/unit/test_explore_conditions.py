"""What an address selects: read, written, and applied to a table."""

from __future__ import annotations

import contextlib

import numpy as np
import pyarrow as arrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseid.errors import BadInputError
from perseid.explore.binning import Axis, Cells
from perseid.explore.conditions import (
    Holds,
    InBox,
    InLasso,
    InRange,
    OneOf,
    Query,
    _even_odd,
    inside,
    parse,
)
from perseid.explore.object_table import ColumnKind, ObjectTable

NAMES = st.text(min_size=1, max_size=8)
NUMBERS = st.floats(-1e6, 1e6).map(lambda v: round(v, 6))
RANGES = st.builds(InRange, NAMES, st.none() | NUMBERS, st.none() | NUMBERS)
CONDITIONS = st.one_of(
    RANGES,
    st.builds(OneOf, NAMES, st.lists(st.integers(-9, 9), min_size=1).map(tuple)),
    st.builds(Holds, NAMES, st.text(max_size=8)),
    st.builds(InBox, RANGES, RANGES),
    st.builds(InLasso, NAMES, NAMES, st.lists(
        st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=6).map(tuple)),
)  # fmt: skip


@given(CONDITIONS)
def test_a_condition_is_read_as_it_was_written(condition):
    assert parse(condition.text()) == condition


@given(st.lists(CONDITIONS, max_size=3), st.lists(CONDITIONS, max_size=3), st.booleans())
def test_an_address_says_all_of_a_query(filters, selection, descending):
    query = Query(tuple(filters), tuple(selection), "z_pred", descending, 3, "label=1")
    assert Query.parse(query.pairs()) == query


@given(st.text(max_size=40))
def test_anything_else_is_a_sentence_of_ours(text):
    with contextlib.suppress(BadInputError):
        assert parse(parse(text).text()) == parse(text)


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=3, max_size=12),
    st.integers(0, 99),
)
def test_a_lasso_by_cells_is_the_lasso_point_by_point(corners, seed):
    points = np.random.default_rng(seed).uniform(-3.2, 3.2, (2, 3000))
    points[0, :10] = np.nan
    polygon = np.asarray(corners)
    flat = (polygon.max(axis=0) <= polygon.min(axis=0)).any()
    wanted = np.zeros(3000, bool) if flat else _even_odd(*points, polygon)
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    wanted &= (points[0] >= low[0]) & (points[0] <= high[0])
    assert (inside(*points, corners) == wanted).all()


def table() -> ObjectTable:
    return ObjectTable(
        arrow.table({
            "object_id": arrow.array(["a1", None, "b2", "A3"]),
            "partition": ["10.pt", "2.pt", "2.pt", "10.pt"],
            "row": arrow.array([0, 0, 1, 1], arrow.int32()),
            "z_pred": arrow.array([0.3, float("nan"), None, 0.1], arrow.float32()),
            "label": arrow.array([1, None, 0, 1], arrow.int32()),
            "good": arrow.array([True, False, None, True]),
            "pdf": arrow.array([[1.0], [2.0], None, [3.0]]),
        }),
        {1: "merger"},
    )  # fmt: skip


def test_columns_by_their_kind():
    one = table()
    assert "pdf" not in one.names
    kinds = {name: one.kind(name) for name in one.names}
    assert kinds == {
        "object_id": ColumnKind.TEXT, "partition": ColumnKind.TEXT, "row": ColumnKind.NUMBER,
        "z_pred": ColumnKind.NUMBER, "label": ColumnKind.CATEGORY, "good": ColumnKind.CATEGORY,
    }  # fmt: skip
    assert [c.name for c in one.categories("label")] == ["label 0", "merger"]
    assert one.order("partition", descending=False).tolist() == [1, 2, 0, 3], "natural order"
    assert one.order("z_pred", descending=True).tolist()[:2] == [0, 3], "missing ones are last"
    assert one.order("z_pred", descending=False).tolist()[:2] == [3, 0]
    assert one.order("object_id", descending=True).tolist()[-1] == 1


def test_conditions_on_a_table():
    one = table()
    for condition, rows in (
        (InRange("z_pred", 0.1, None), [0, 3]),
        (InRange("z_pred", None, 0.2), [3]),
        (OneOf("label", (1,)), [0, 3]),
        (OneOf("good", (0,)), [1]),
        (Holds("object_id", "a"), [0, 3]),
        (Holds("partition", "2.PT"), [1, 2]),
        (InBox(InRange("z_pred", 0, 1), InRange("row", 1, 1)), [3]),
    ):
        assert np.flatnonzero(condition.rows(one)).tolist() == rows, condition
    with pytest.raises(BadInputError, match="no column 'nothing'"):
        InRange("nothing", 0, 1).rows(one)


def test_cells_count_like_numpy():
    random = np.random.default_rng(8)
    x, y = random.normal(size=(2, 5000))
    x[:50], y[20:90] = np.nan, np.inf
    some = random.random(5000) < 0.3
    wide, high = Axis(-2.0, 2.0, 17), Axis(-1.0, 3.0, 9)
    cells = Cells.of((wide, x), (high, y))
    good = np.isfinite(x) & np.isfinite(y)
    for rows in (None, some):
        use = good if rows is None else good & rows
        wanted, _, _ = np.histogram2d(x[use], y[use], (wide.edges, high.edges))
        assert (cells.counts(rows) == wanted).all()
    total = cells.counts().sum() + cells.outside()
    assert total == 5000
    means = cells.means(np.where(some, 4.0, np.nan))
    assert set(means[np.isfinite(means)]) == {4.0}
