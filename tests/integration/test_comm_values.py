"""What reductions give: ops x types x world sizes, NaN and signed zeros, one rank and many."""

from __future__ import annotations

import functools
import math
import operator
import struct
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks import run_threads

from perseid.errors import BadInputError

NAN = float("nan")
SIZES = [1, 2, 3, 5, 8]


def is_nan(value):
    return isinstance(value, (float, np.floating, Decimal)) and math.isnan(value)


def extreme(choose, left, right):
    for value in (left, right):
        if is_nan(value):
            return value
    return choose(left, right)


EXPECTED = {
    "sum": operator.add,
    "prod": operator.mul,
    "max": lambda left, right: extreme(max, left, right),
    "min": lambda left, right: extreme(min, left, right),
    "and": lambda left, right: bool(left) and bool(right),
    "or": lambda left, right: bool(left) or bool(right),
}


def expected(op, values):
    if op in ("and", "or"):
        values = [bool(value) for value in values]
    return functools.reduce(EXPECTED[op], values)


def same(one, other):
    """Equal, and of the same type; a NaN equals a NaN."""
    if is_nan(one) or is_nan(other):
        return is_nan(one) and is_nan(other)
    return one == other and type(one) is type(other)


def bits(value):
    return struct.pack("<d", value) if isinstance(value, float) else repr(value)


def all_ways(comm, values, op):
    mine, rank = values[comm.rank], comm.rank
    whole = comm.allreduce(mine, op)
    assert same(whole, expected(op, values)), (op, values, whole)
    on_root = comm.reduce(mine, op, comm.world_size - 1)
    if rank == comm.world_size - 1:
        assert same(on_root, expected(op, values))
    assert same(comm.scan(mine, op), expected(op, values[: rank + 1]))
    before = comm.exscan(mine, op)
    assert (before is None) == (rank == 0)
    if rank:
        assert same(before, expected(op, values[:rank]))
    part = comm.reduce_scatter([mine] * comm.world_size, op)
    assert same(part, expected(op, values))
    return bits(whole)


# Sums of whole numbers are exact in any order; NaN and signed zeros are what orders could change.
FLOATS = st.sampled_from([0.0, -0.0, 1.0, 2.0, -3.0, NAN, -NAN, math.inf])
OBJECTS = {
    "int": st.integers(-5, 5),
    "float": FLOATS,
    "bool": st.booleans(),
    "float32": FLOATS.map(np.float32),
    "float64": FLOATS.map(np.float64),
    "int64": st.integers(-5, 5).map(np.int64),
    "Decimal": st.sampled_from([Decimal(1), Decimal("NaN"), Decimal(3)]),
}


@pytest.mark.parametrize("kind", list(OBJECTS))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SIZES), st.sampled_from(sorted(EXPECTED)), st.data(), st.booleans())
def test_objects_of_every_type_reduce_the_same_way_everywhere(kind, size, op, data, shared):
    values = data.draw(st.lists(OBJECTS[kind], min_size=size, max_size=size))
    if kind == "Decimal":
        op = op if op in ("max", "min") else "max"
    results = run_threads(size, all_ways, values, op, oversubscribed=shared)
    assert len(set(results)) == 1, "all ranks have the same bits"


UFUNCS = {
    "sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum,
    "and": np.logical_and, "or": np.logical_or,
}  # fmt: skip


def arrays_of(comm, columns, op):
    mine = columns[comm.rank]
    into = np.empty_like(mine)
    comm.Allreduce(mine, into, op)
    logical = op in ("and", "or")
    rows = [(column != 0).astype(column.dtype) if logical else column for column in columns]

    def expected_of(parts):
        with np.errstate(all="ignore"):
            return functools.reduce(UFUNCS[op], parts).astype(mine.dtype)

    np.testing.assert_array_equal(into, expected_of(rows))
    place = np.empty_like(mine)
    comm.Reduce(mine, place, op, 0)
    if comm.rank == 0:
        np.testing.assert_array_equal(place, expected_of(rows))
    comm.Scan(mine, place, op)
    np.testing.assert_array_equal(place, expected_of(rows[: comm.rank + 1]))
    comm.Exscan(mine, place, op)
    if comm.rank:
        np.testing.assert_array_equal(place, expected_of(rows[: comm.rank]))
    comm.Reduce_scatter(np.tile(mine, comm.world_size), place, op)
    np.testing.assert_array_equal(place, expected_of(rows))
    return into.tobytes()


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "uint16", "float16", "float32",
                                   "float64", "complex64", "complex128"])  # fmt: skip
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(SIZES), st.sampled_from(sorted(UFUNCS)), st.sampled_from([1, 2, 7, 9000]),
    st.integers(0, 2**32 - 1), st.booleans(),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_arrays_of_every_type_reduce_the_same_way_everywhere(dtype, size, op, length, seed, shared):
    random = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind
    some = [0.0, -0.0, 1.0, 2.0, NAN, -NAN] if kind in "fc" else [0, 1, 2, 5]
    columns = [random.choice(some, length).astype(dtype) for _ in range(size)]
    if kind == "c" and op in ("sum", "prod"):
        columns = [column + 1j * random.choice([0.0, NAN, -NAN], length).astype(column.real.dtype)
                   for column in columns]  # fmt: skip
    if kind == "c" and op == "prod":
        op = "sum"  # a product of complex NaNs depends on how it is bracketed
    results = run_threads(size, arrays_of, columns, op, oversubscribed=shared)
    assert len(set(results)) == 1, "all ranks have the same bits"


def nan_bits(comm):
    """Of two NaNs the processor keeps one: it must be the same one on all ranks."""
    found = []
    for dtype in ("float16", "float32", "float64", "complex64", "complex128"):
        for length in (1, 2, 3, 17, 1000):
            for start in (0, 1):
                mine = np.empty(length + 1, dtype)[start : start + length]
                mine[:] = np.nan if comm.rank % 2 else -np.nan
                into = np.empty(length + 3, dtype)[comm.rank % 3 :][:length]
                for op in ("sum", "prod", "max", "min"):
                    comm.Allreduce(mine, into, op)
                    found.append(into.tobytes())
                comm.Allreduce(mine, mine)
                found.append(mine.tobytes())
    return found


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_of_nans_of_both_signs_all_ranks_keep_the_same(size):
    results = run_threads(size, nan_bits)
    assert all(result == results[0] for result in results)


def the_examples(comm):
    values = [0, 1, NAN, 3]
    assert math.isnan(comm.allreduce(values[comm.rank], "max"))
    assert math.isnan(comm.allreduce(values[comm.rank], "min"))
    value, place = comm.allreduce((values[comm.rank], comm.rank), "maxloc")
    assert (math.isnan(value), place) == (True, 2)
    value, place = comm.allreduce((NAN if comm.rank else 1.0, comm.rank), "minloc")
    assert (math.isnan(value), place) == (True, 1)


def test_a_nan_is_the_greatest_and_the_least_wherever_it_is():
    run_threads(4, the_examples)


def logical_alone(comm):
    five = np.array([5, 0])
    into = np.empty_like(five)
    comm.Allreduce(five, into, "and")
    assert comm.allreduce(5, "and") is True
    assert comm.scan(5, "or") is True
    assert comm.allreduce(np.array([5, 0]), "or").tolist() == [1, 0]
    return into.tolist()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_and_is_logical_in_a_world_of_any_size(size):
    assert run_threads(size, logical_alone) == [[1, 0]] * size


def kinds(comm):
    """What a program that was tried alone relies on, in a world of any size."""
    found = []
    for op in ("and", "or"):
        for dtype in ("bool", "int8", "float64"):
            found.append(comm.allreduce(np.array([2, 0]).astype(dtype), op))
    for op in ("minloc", "maxloc"):
        for no_pair in (1, None, (1,), (1, 2, 3), {0: 1, 1: 2}, np.array(3)):
            for call in (comm.allreduce, comm.reduce, comm.scan, comm.exscan):
                with pytest.raises(BadInputError, match=r"combines \(value, place\) pairs"):
                    call(no_pair, op)
            with pytest.raises(BadInputError, match=r"combines \(value, place\) pairs"):
                comm.reduce_scatter([no_pair] * comm.world_size, op)
        found.append(comm.allreduce([7.0, 3], op))
    return [(type(one), getattr(one, "dtype", None), list(one)) for one in found]


@pytest.mark.parametrize("size", [2, 3])
def test_the_kind_of_a_result_does_not_depend_on_the_number_of_ranks(size):
    alone = run_threads(1, kinds)
    assert run_threads(size, kinds) == alone * size


# --- the same memory given twice -----------------------------------------------------------------


def same_memory(comm, length):
    """Each call as if the arrays lay apart; ``into`` starts where ``array`` does, or within."""
    rank, size = comm.rank, comm.world_size
    after, before = (rank + 1) % size, (rank - 1) % size

    def made(rank):
        return np.arange(length * size) + 1000 * rank

    both = made(rank)
    comm.Alltoall(both, both)
    parts = [made(other)[rank * length : (rank + 1) * length] for other in range(size)]
    np.testing.assert_array_equal(both, np.concatenate(parts))

    both = made(rank)
    comm.Sendrecv(both, after, both, before)
    np.testing.assert_array_equal(both, made(before))

    for start in range(size):  # this rank's part may lie at any place of the whole
        whole = made(rank)
        mine = whole[start * length : (start + 1) * length]
        kept = [made(other)[start * length : (start + 1) * length] for other in range(size)]
        comm.Allgather(mine, whole)
        np.testing.assert_array_equal(whole, np.concatenate(kept))
        for root in range(size):
            whole = made(rank)
            mine = whole[start * length : (start + 1) * length]
            comm.Gather(mine, whole if rank == root else None, root)
            if rank == root:
                np.testing.assert_array_equal(whole, np.concatenate(kept))
            whole = made(rank)
            mine = whole[start * length : (start + 1) * length]
            comm.Scatter(whole if rank == root else None, mine, root)
            np.testing.assert_array_equal(mine, made(root)[rank * length : (rank + 1) * length])
        whole = made(rank)
        mine = whole[start * length : (start + 1) * length]
        comm.Reduce_scatter(whole, mine)
        sums = sum(made(other)[rank * length : (rank + 1) * length] for other in range(size))
        np.testing.assert_array_equal(mine, sums)

    both = made(rank)
    comm.Scan(both, both)
    np.testing.assert_array_equal(both, sum(made(other) for other in range(rank + 1)))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 3, 20_000])
def test_arrays_that_share_memory_give_what_arrays_apart_give(size, length):
    run_threads(size, same_memory, length)
