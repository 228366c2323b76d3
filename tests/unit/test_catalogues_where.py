"""Conditions on rows: what they choose, and what is said of those that cannot be read."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseid.catalogues.where import Where
from perseid.errors import BadInputError

TABLE = pa.table(
    {
        "id": pa.array([2**64 - 1, 2**63, 5], pa.uint64()),
        "z": pa.array([0.1, np.nan, None], pa.float32()),
        "name": ["a", "it's", None],
        "good": [True, None, False],
        "odd name": [1, 2, 3],
    }
)


def chosen(text: str, table: pa.Table = TABLE) -> list[int]:
    rows = table.append_column("place", [range(len(table))])
    return rows.filter(Where.parse(text).expression(table.schema))["place"].to_pylist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("id == 18446744073709551615", [0]),
        ("id = 9223372036854775809", []),
        ("z <= 0.1", [0]),
        ("z == 0.1", [0]),
        ("z is null", [1, 2]),
        ("NOT z IS NOT NULL", [1, 2]),
        ("name == 'it''s' or name = 'a'", [0, 1]),
        ("good = true", [0]),
        ("good is not null and not good == true", [2]),
        ('"odd name" in (1, 3)', [0, 2]),
        ("id > 5.5", [0, 1]),
        ("id >= 4.5 and id <= 5.5", [2]),
        ("id == 5.5", []),
        ("id != 5.5", [0, 1, 2]),
        ("id > -1", [0, 1, 2]),
        ("id < -1 or id > 1e30", []),
        ("id > 1 and id < 6 or z > 0", [0, 2]),
        ("id > 1 and (id < 6 or z > 0)", [0, 2]),
        ("not (not (not id <> 5))", [2]),
        ("z > -1e99 and z<+1e+2", [0]),
    ],
)
def test_rows(text, rows):
    assert chosen(text) == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "column's name is expected"),
        ("z >", "a number or a text in single quotes is expected"),
        ("z > 'a'", "cannot be compared with 'a'"),
        ("name > 1", "write the value in single quotes"),
        ("good > 1", "true or false"),
        ("__import__('os')", "a comparison such as"),
        ("z > 1 z", "not expected here"),
        ("(z > 1", "is not closed"),
        ("id in (1, 2", "is not closed"),
        ("id in 1", r"'\(' is expected"),
        ("z is 1", "'null' is expected"),
        ("z > 1; drop", "this cannot be read"),
        ("z > 0x10", "this cannot be read"),
        ("q = 1", "does not have"),
        ("(" * 1000, "50 parentheses"),
        ("not " * 1000 + "z > 1", "50 parentheses"),
    ],
)
def test_what_cannot_be_read(text, said):
    with pytest.raises(BadInputError, match=said) as found:
        Where.parse(text).expression(TABLE.schema)
    assert "\n" not in str(found.value)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | st.text("zid'\"()=<>!., 019eE+-andornotinisnull", max_size=40))
def test_nothing_but_a_sentence_or_rows(text):
    try:
        chosen(text)
    except BadInputError:
        return


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False)),
)
def test_integers_are_compared_as_python_does(sign, values, value):
    table = pa.table({"n": pa.array(values, pa.int64())})
    same = {"==": "__eq__", "!=": "__ne__", "<": "__lt__", "<=": "__le__", ">": "__gt__",
            ">=": "__ge__"}[sign]  # fmt: skip
    compare = {
        "==": lambda a: a == value, "!=": lambda a: a != value, "<": lambda a: a < value,
        "<=": lambda a: a <= value, ">": lambda a: a > value, ">=": lambda a: a >= value,
    }[sign]  # fmt: skip
    assert same
    text = repr(value).replace("inf", "1e999")
    expected = [place for place, one in enumerate(values) if compare(one)]
    assert chosen(f"n {sign} {text}", table) == expected
