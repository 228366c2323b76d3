"""When two catalogues say the same, and what is said where they do not."""

from __future__ import annotations

import io
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perseid import Catalogue, Storage
from perseid.errors import BadInputError, NotFoundError

ROWS = {
    "object_id": [7, 8, None],
    "partition": ["1.pt", "2.pt", "10.pt"],
    "row": [0, 0, 0],
    "z_pred": [0.1, np.nan, 0.0],
    "anomaly_rank": [1, None, 2],
}


def catalogue(columns=ROWS, **changed) -> Catalogue:
    store, data = Storage(f"memory://{uuid.uuid4().hex}"), io.BytesIO()
    pq.write_table(pa.table({**columns, **changed}), data)
    store.put("catalogue.parquet", data.getvalue())
    return Catalogue(store)


def test_the_order_of_rows_and_carried_columns_do_not_count():
    other = {name: values[::-1] for name, values in ROWS.items()}
    assert catalogue().equals(catalogue(other))
    assert catalogue().equals(catalogue(other, seeing=[1.0, 2.0, 3.0]))
    assert catalogue(carried=["a", "b", "c"]).difference(catalogue()) is None


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("z_pred", [0.1, np.nan, -0.0], "z_pred of partition 10.pt, row 0 is 0.0 and -0.0"),
        ("z_pred", [0.1, 0.2, 0.0], "z_pred of partition 2.pt, row 0 is nan and 0.2"),
        ("object_id", [7, 9, None], "object_id of partition 2.pt, row 0 is 8 and 9"),
        ("anomaly_rank", [1, 3, 2], "anomaly_rank of partition 2.pt, row 0 is None and 3"),
        ("partition", ["1.pt", "2.pt", "11.pt"], "partition of partition 10.pt, row 0"),
    ],
)
def test_a_difference_of_one_bit_is_found_and_named(column, values, said):
    difference = catalogue().difference(catalogue(**{column: values}))
    assert difference.startswith(said)
    assert not catalogue().equals(catalogue(**{column: values}))


LISTS = [[1.0], [2.0, 3.0], [-0.0]]


@pytest.mark.parametrize(
    ("values", "row"),
    [
        (LISTS, None),
        ([[1.0, 2.0], [3.0], [-0.0]], 0),  # the same values, cut elsewhere
        ([[1.0], [2.0, 3.0], [0.0]], 2),
        ([[1.0], [2.0, 4.0], [-0.0]], 1),
        ([[1.0], [2.0, 3.0], None], 2),
        ([[1.0], [2.0, 3.0], []], 2),
        ([[1.0], None, [-0.0]], 1),
    ],
    ids=["same", "cut", "sign", "value", "null", "empty", "null-between"],
)
def test_lists_of_any_lengths_are_compared_row_by_row(values, row):
    one, other = catalogue(z_pred=LISTS), catalogue(z_pred=values)
    said = one.difference(other)
    assert (said is None) == (row is None)
    if row is not None:
        place = ROWS["partition"][row]
        assert said.startswith(f"z_pred of partition {place}, row 0 is ")
    assert other.difference(other) is None


def test_other_rows_or_columns_are_said():
    fewer = {name: values[:2] for name, values in ROWS.items()}
    assert catalogue().difference(catalogue(fewer)) == "3 rows and 2 rows"
    without = {name: values for name, values in ROWS.items() if name != "z_pred"}
    assert "z_pred" in catalogue().difference(catalogue(without))


def test_for_other_libraries():
    one = catalogue()
    assert one.to_arrow().num_rows == len(one) == 3
    table = one.to_astropy()
    assert table["object_id"].mask.tolist() == [False, False, True]
    assert table["partition"].tolist() == ROWS["partition"]
    assert "the first 3" in one._repr_html_()


def test_what_is_no_catalogue():
    store = Storage(f"memory://{uuid.uuid4().hex}")
    with pytest.raises(NotFoundError, match=r"has no catalogue\.parquet"):
        Catalogue(store)
    store.put("catalogue.parquet", b"PAR1 nothing PAR1")
    with pytest.raises(BadInputError, match="is not a Parquet file"):
        len(Catalogue(store))
