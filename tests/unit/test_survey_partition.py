"""What sizes mean, and the order of partitions."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseid.errors import BadInputError
from perseid.survey import natural_key, parse_size, rows_per_partition

SDSS = (5, 32, 32)


@pytest.mark.parametrize(
    ("size", "rows", "partitions"),
    [("25MB", 1278, 517), ("50MB", 2556, 259), ("75MB", 3834, 173), ("100MB", 5113, 130)],
)
def test_the_published_rows_and_numbers_of_partitions(size, rows, partitions) -> None:
    assert rows_per_partition(parse_size(size), SDSS) == rows
    assert -(-659_817 // rows) == partitions


def test_other_shapes() -> None:
    assert rows_per_partition(parse_size("1MB"), (3, 8, 8)) == (1 << 20) // (3 * 64 * 4 + 12 + 8)
    assert rows_per_partition(20_508, SDSS) == 1
    with pytest.raises(BadInputError, match="holds no row: a row has 20508 bytes"):
        rows_per_partition(20_507, SDSS)


@pytest.mark.parametrize(
    ("text", "size"),
    [("25MB", 25 << 20), ("25 mib", 25 << 20), ("1.5GB", 3 << 29), ("64kb", 65536), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "25", "MB", "-1MB", "0MB", "1TBs", "1e3MB", "25MB please"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(BadInputError, match="such as 25MB"):
        parse_size(text)


def test_numbers_sort_by_value() -> None:
    keys = ["1.pt", "2.pt", "10.pt", "100.pt", "a/1.pt", "a/2/1.pt", "a/10/1.pt", "b1c2.pt"]
    shuffled = random.Random(1).sample(keys, len(keys))
    assert sorted(shuffled, key=natural_key) == keys
    assert sorted(["01.pt", "1.pt", "2.pt"], key=natural_key) == ["01.pt", "1.pt", "2.pt"]


@given(st.lists(st.text(), min_size=2))
def test_any_keys_have_one_order(keys: list[str]) -> None:
    once = sorted(keys, key=natural_key)
    backwards = once[::-1]
    assert sorted(backwards, key=natural_key) == once
