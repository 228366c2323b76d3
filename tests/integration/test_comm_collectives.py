"""Every collective against NumPy's answer: random programs, all world sizes and roots."""

from __future__ import annotations

import functools
import hashlib
import operator
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks import run_ranks, run_threads

from perseid.comm import MAXLOC, MINLOC, Communicator, Op
from perseid.comm.collectives import allgather, allreduce, bcast, gather
from perseid.errors import BadInputError, ClosedError

DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint32", "float32", "float64",
          "complex64", "complex128"]  # fmt: skip
UFUNCS = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum,
          "and": np.logical_and, "or": np.logical_or}  # fmt: skip


def data(rank: int, salt: int, dtype: str, size: int) -> np.ndarray:
    """What a rank contributes; every rank can compute every other's."""
    rng = np.random.default_rng([rank, salt])
    if dtype == "bool":
        return rng.random(size) < 0.7
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 7, size).astype(dtype)
    values = rng.standard_normal(size)
    return (values + 1j * rng.standard_normal(size) if "complex" in dtype else values).astype(dtype)


def close(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype
    tolerance = 1e-3 if expected.dtype in (np.float32, np.complex64) else 1e-9
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def reduced(values: list[np.ndarray], op: str) -> np.ndarray:
    combine = UFUNCS[op]
    return functools.reduce(lambda a, b: combine(a, b).astype(a.dtype), values)


def affine(left, right):
    """Composition of x -> a x + b: associative, not commutative."""
    return (left[0] * right[0] % 997, (left[1] * right[0] + right[1]) % 997)


class Step:
    """One call of a random program: made on every rank, compared with NumPy's answer there."""

    def __init__(self, name, root, dtype, size, op, salt):
        self.name, self.root, self.dtype, self.size = name, root, dtype, size
        self.op = "max" if op in ("and", "or") and dtype != "bool" else op
        if "complex" in dtype and self.op in ("max", "min"):
            self.op = "sum"
        self.salt = salt

    def __repr__(self):
        return f"{self.name}(root={self.root}, {self.size} {self.dtype}, {self.op})"

    def of(self, rank):
        return data(rank, self.salt, self.dtype, self.size)

    def run(self, comm: Communicator) -> object:
        return getattr(self, self.name)(comm, self.root % comm.world_size)

    def everyone(self, comm):
        return [self.of(rank) for rank in range(comm.world_size)]

    def barrier(self, comm, root):
        comm.barrier()

    def bcast(self, comm, root):
        got = comm.bcast(self.of(root) if comm.rank == root else None, root)
        np.testing.assert_array_equal(got, self.of(root))

    def Bcast(self, comm, root):
        array = self.of(comm.rank)
        comm.Bcast(array, root)
        np.testing.assert_array_equal(array, self.of(root))

    def gather(self, comm, root):
        got = comm.gather(self.of(comm.rank), root)
        if comm.rank != root:
            assert got is None
            return
        for one, expected in zip(got, self.everyone(comm), strict=True):
            np.testing.assert_array_equal(one, expected)

    def Gather(self, comm, root):
        into = np.empty(self.size * comm.world_size, self.dtype) if comm.rank == root else None
        comm.Gather(self.of(comm.rank), into, root)
        if comm.rank == root:
            np.testing.assert_array_equal(into, np.concatenate(self.everyone(comm)))

    def allgather(self, comm, root):
        uneven = self.of(comm.rank)[: comm.rank]
        for rank, one in enumerate(comm.allgather(uneven)):
            np.testing.assert_array_equal(one, self.of(rank)[:rank])

    def Allgather(self, comm, root):
        into = np.empty(self.size * comm.world_size, self.dtype)
        comm.Allgather(self.of(comm.rank), into)
        np.testing.assert_array_equal(into, np.concatenate(self.everyone(comm)))

    def scatter(self, comm, root):
        whole = self.everyone(comm) if comm.rank == root else None
        np.testing.assert_array_equal(comm.scatter(whole, root), self.of(comm.rank))

    def Scatter(self, comm, root):
        whole = np.concatenate(self.everyone(comm)) if comm.rank == root else None
        into = np.empty(self.size, self.dtype)
        comm.Scatter(whole, into, root)
        np.testing.assert_array_equal(into, self.of(comm.rank))

    def reduce(self, comm, root):
        got = comm.reduce(self.of(comm.rank), self.op, root)
        if comm.rank == root:
            close(np.asarray(got).astype(self.dtype), reduced(self.everyone(comm), self.op))
        else:
            assert got is None

    def Reduce(self, comm, root):
        mine = self.of(comm.rank)
        into = np.empty_like(mine) if comm.rank == root else None
        comm.Reduce(mine, into, self.op, root)
        np.testing.assert_array_equal(mine, self.of(comm.rank))
        if into is not None:
            close(into, reduced(self.everyone(comm), self.op))

    def allreduce(self, comm, root):
        got = np.asarray(comm.allreduce(self.of(comm.rank), self.op)).astype(self.dtype)
        close(got, reduced(self.everyone(comm), self.op))
        return got.tobytes()

    def Allreduce(self, comm, root):
        mine = self.of(comm.rank)
        into = np.empty_like(mine)
        comm.Allreduce(mine, into, self.op)
        np.testing.assert_array_equal(mine, self.of(comm.rank))
        close(into, reduced(self.everyone(comm), self.op))
        return into.tobytes()

    def reduce_scatter(self, comm, root):
        parts = [self.of(comm.rank) * (1 if self.dtype == "bool" else part % 2)
                 for part in range(comm.world_size)]  # fmt: skip
        got = comm.reduce_scatter([part.astype(self.dtype) for part in parts], self.op)
        factor = 1 if self.dtype == "bool" else comm.rank % 2
        expected = [(one * factor).astype(self.dtype) for one in self.everyone(comm)]
        close(np.asarray(got).astype(self.dtype), reduced(expected, self.op))

    def Reduce_scatter(self, comm, root):
        size = comm.world_size
        rows = [data(rank, self.salt, self.dtype, self.size * size) for rank in range(size)]
        into = np.empty(self.size, self.dtype)
        comm.Reduce_scatter(rows[comm.rank], into, self.op)
        cut = slice(self.size * comm.rank, self.size * (comm.rank + 1))
        close(into, reduced([row[cut] for row in rows], self.op))

    def alltoall(self, comm, root):
        mine = [(comm.rank, to, self.of(comm.rank)) for to in range(comm.world_size)]
        for rank, (source, to, array) in enumerate(comm.alltoall(mine)):
            assert (source, to) == (rank, comm.rank)
            np.testing.assert_array_equal(array, self.of(rank))

    def Alltoall(self, comm, root):
        size = comm.world_size
        rows = [data(rank, self.salt, self.dtype, self.size * size) for rank in range(size)]
        into = np.empty_like(rows[0])
        comm.Alltoall(rows[comm.rank], into)
        expected = [row.reshape(size, self.size)[comm.rank] for row in rows]
        np.testing.assert_array_equal(into, np.concatenate(expected))

    def scan(self, comm, root):
        got = comm.scan(self.of(comm.rank), self.op)
        expected = reduced(self.everyone(comm)[: comm.rank + 1], self.op)
        close(np.asarray(got).astype(self.dtype), expected)

    def Scan(self, comm, root):
        into = np.empty(self.size, self.dtype)
        comm.Scan(self.of(comm.rank), into, self.op)
        close(into, reduced(self.everyone(comm)[: comm.rank + 1], self.op))

    def exscan(self, comm, root):
        got = comm.exscan(self.of(comm.rank), self.op)
        if not comm.rank:
            assert got is None
            return
        expected = reduced(self.everyone(comm)[: comm.rank], self.op)
        close(np.asarray(got).astype(self.dtype), expected)

    def Exscan(self, comm, root):
        into = np.zeros(self.size, self.dtype)
        comm.Exscan(self.of(comm.rank), into, self.op)
        if comm.rank:
            close(into, reduced(self.everyone(comm)[: comm.rank], self.op))

    def strictly(self, comm, root):
        pairs = [(3 + rank * self.salt % 89, rank + 1) for rank in range(comm.world_size)]
        expected = functools.reduce(affine, pairs)
        assert comm.allreduce(pairs[comm.rank], affine) == expected
        assert comm.scan(pairs[comm.rank], affine) == functools.reduce(
            affine, pairs[: comm.rank + 1]
        )
        got = comm.reduce(pairs[comm.rank], Op.custom(affine, associative=True), root)
        assert got == (expected if comm.rank == root else None)

    def places(self, comm, root):
        pairs = [(rank * self.salt % 5, rank) for rank in range(comm.world_size)]
        assert comm.allreduce(pairs[comm.rank], MINLOC) == min(pairs)
        assert comm.allreduce(pairs[comm.rank], MAXLOC) == max(pairs, key=lambda p: (p[0], -p[1]))

    def messages(self, comm, root):
        size, rank = comm.world_size, comm.rank
        if size == 1:
            return
        jump = 1 + self.salt % (size - 1)
        to, source = (rank + jump) % size, (rank - jump) % size
        np.testing.assert_array_equal(comm.sendrecv(self.of(rank), to, source), self.of(source))
        comm.send(("first", rank), to, tag=1)
        comm.send(("second", rank), to, tag=2)
        assert comm.recv(source, tag=2) == ("second", source)
        assert comm.recv(source) == ("first", source)
        comm.Send(self.of(rank), to)
        into = np.empty(self.size, self.dtype)
        comm.Recv(into, source)
        np.testing.assert_array_equal(into, self.of(source))
        comm.Sendrecv(self.of(rank), to, into, source)
        np.testing.assert_array_equal(into, self.of(source))

    def groups(self, comm, root):
        colors = [rank * self.salt % 3 for rank in range(comm.world_size)]
        part = comm.split(colors[comm.rank], -comm.rank)
        members = [r for r in reversed(range(comm.world_size)) if colors[r] == colors[comm.rank]]
        assert part.allgather(comm.rank) == members
        assert part.allreduce(comm.rank) == sum(members)
        lower = part.split(None if part.rank else 0)
        assert (lower is None) == bool(part.rank)


SLOW = pytest.mark.slow
STEPS = [name for name in vars(Step) if not name.startswith("_")
         and name not in ("of", "run", "everyone")]  # fmt: skip
PROGRAMS = st.lists(
    st.builds(
        Step,
        st.sampled_from(STEPS),
        st.integers(0, 16),
        st.sampled_from(DTYPES),
        st.sampled_from([0, 1, 2, 3, 17, 1000, 9000, 40_000]),
        st.sampled_from(sorted(UFUNCS)),
        st.integers(0, 1000),
    ),
    min_size=1,
    max_size=8,
)


def run_program(comm: Communicator, program: list[Step]) -> list[object]:
    return [step.run(comm) for step in program]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 17), PROGRAMS)
def test_random_programs_give_numpys_answer_and_the_same_bits_everywhere(size, program):
    results = run_threads(size, run_program, program)
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 16, 17])
def test_every_operation_in_every_world_size(size):
    program = [
        Step(name, index, DTYPES[(index + size) % len(DTYPES)], elements, op, index)
        for index, name in enumerate(STEPS)
        for elements, op in ((3, "sum"), (9000, "max"))
    ]
    results = run_threads(size, run_program, program)
    assert all(result == results[0] for result in results)


def test_forty_one_ranks_as_processes():
    program = [
        Step(name, 40, "float64", 50, "sum", 5)
        for name in ("allreduce", "Allreduce", "gather", "bcast", "scatter", "scan", "allgather")
    ]
    results = run_ranks(41, run_program, program)
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("size", [2, 3, 8, 13])
def test_ranks_that_share_cores_get_the_same_answers(size):
    program = [
        Step(name, index, "int64", 7, "sum", index)
        for index, name in enumerate(["barrier", "allreduce", "Allreduce", "strictly", "places"])
    ]
    results = run_threads(size, run_program, program, oversubscribed=True)
    assert all(result == results[0] for result in results)


def every_root(comm):
    for root in range(comm.world_size):
        for name in ("bcast", "Bcast", "gather", "Gather", "scatter", "Scatter", "reduce",
                     "Reduce", "strictly"):  # fmt: skip
            for size in (0, 5, 20_000):
                getattr(Step(name, root, "int32", size, "sum", root), name)(comm, root)


@pytest.mark.parametrize("size", [2, 3, 5, 7, 11, 16, 17, pytest.param(41, marks=SLOW)])
def test_every_root(size):
    run_threads(size, every_root)


def repeated(comm, dtype, size):
    mine = data(comm.rank, 1, dtype, size)
    into = np.empty_like(mine)
    seen = set()
    for _ in range(3):
        comm.Allreduce(mine, into)
        seen.add(into.tobytes())
        comm.Allreduce(into.copy(), into, "max")
        seen.add(into.tobytes())
    return seen


@pytest.mark.parametrize(("size", "elements"), [(5, 10), (8, 10), (6, 100_000), (8, 100_000)])
def test_sums_of_floats_are_the_same_bits_in_each_repetition_and_on_each_rank(size, elements):
    results = run_threads(size, repeated, "float64", elements)
    assert len(results[0]) == 1
    assert all(result == results[0] for result in results)


def nan_and_zero(comm):
    mine = np.array([np.nan if comm.rank == 2 else comm.rank, -0.0 if comm.rank else 0.0])
    into = np.empty_like(mine)
    comm.Allreduce(mine, into, "max")
    return into.tobytes()


def test_nan_and_signed_zero_agree_on_all_ranks():
    results = run_threads(5, nan_and_zero)
    assert len(set(results)) == 1
    assert np.isnan(np.frombuffer(results[0])[0])


def left_to_right(comm):
    trace = comm.allreduce(str(comm.rank), lambda a, b: f"({a}{b})")
    chain = comm.scan(str(comm.rank), lambda a, b: f"({a}{b})")
    array = np.array([float(comm.rank + 1)])
    into = np.empty(1)
    comm.Allreduce(array, into, np.subtract)
    return trace, chain, into[0]


def test_other_functions_are_evaluated_strictly_by_rank():
    results = run_threads(5, left_to_right)
    assert {trace for trace, _, _ in results} == {"((((01)2)3)4)"}
    assert [chain for _, chain, _ in results][2:4] == ["((01)2)", "(((01)2)3)"]
    assert {value for _, _, value in results} == {1.0 - 2 - 3 - 4 - 5}


def uneven(comm):
    counts = [rank * 3000 for rank in range(comm.world_size)]
    mine = np.full(counts[comm.rank], comm.rank, np.int16)
    into = np.empty(sum(counts), np.int16)
    comm.Gather(mine, into if comm.rank == 1 else None, 1, counts)
    expected = np.repeat(np.arange(comm.world_size), counts)
    if comm.rank == 1:
        np.testing.assert_array_equal(into, expected)
    back = np.empty_like(mine)
    comm.Scatter(into if comm.rank == 1 else None, back, 1, counts)
    np.testing.assert_array_equal(back, mine)
    comm.Allgather(mine, into, np.array(counts))
    np.testing.assert_array_equal(into, expected)


def test_parts_of_different_sizes_and_a_rank_with_nothing():
    run_threads(5, uneven)


def all_to_all_first(comm):
    """Everybody sends 4 MiB to everybody before anyone receives."""
    mine = np.full(1 << 19, float(comm.rank))
    others = [rank for rank in range(comm.world_size) if rank != comm.rank]
    for rank in others:
        comm.Send(mine, rank)
    into = np.empty_like(mine)
    for rank in others:
        comm.Recv(into, rank)
        assert (into == rank).all()
    return comm.transports


def test_ranks_that_all_send_first_do_not_block_each_other():
    routes = run_ranks(4, all_to_all_first)
    assert routes[0] == {1: "direct", 2: "direct", 3: "direct"}


def large(comm):
    """Every byte counts: random ones, compared by their digest."""
    size = 100_000_000
    array = np.empty(size, np.uint8)
    if comm.rank == 1:
        array[:] = np.frombuffer(np.random.default_rng(7).bytes(size), np.uint8)
    comm.Bcast(array, 1)
    digests = [hashlib.sha256(array).hexdigest()]
    ends = [array[: comm.rank * 1000], array[-comm.rank * 1000 :] if comm.rank else array[:0]]
    found = comm.gather(ends, 0)
    if comm.rank == 0:
        for rank, (first, last) in enumerate(found):
            np.testing.assert_array_equal(first, array[: rank * 1000])
            np.testing.assert_array_equal(last, array[size - rank * 1000 :])
    digests.append(hashlib.sha256(comm.bcast(array if comm.rank == 1 else None, 1)).hexdigest())
    return digests


def test_a_hundred_megabytes():
    expected = hashlib.sha256(np.random.default_rng(7).bytes(100_000_000)).hexdigest()
    assert run_ranks(3, large) == [[expected] * 2] * 3


def incast(comm):
    size = 1 << 17
    mine = np.full(size, float(comm.rank))
    into = np.empty(size * comm.world_size) if comm.rank == 0 else None
    comm.Gather(mine, into)
    if into is not None:
        np.testing.assert_array_equal(into[::size], np.arange(comm.world_size))
    return len(comm.gather(mine.tobytes()) or [])


def test_all_to_one_with_a_megabyte_each():
    assert run_ranks(11, incast)[0] == 11


def algorithms(comm):
    """The large-message algorithms at sizes that would not choose them."""
    size, rank = comm.world_size, comm.rank
    for length in (0, 1, size, 1000):
        mine = data(rank, length, "int64", length)
        expected = sum(data(r, length, "int64", length) for r in range(size))
        for algorithm in [allreduce.ring] + [allreduce.halving] * (size & (size - 1) == 0):
            call = comm._group.call(8)
            op, kept = Op("sum", operator.add, True, True, np.add), mine.copy()
            for into in (np.full_like(mine, -1), mine):
                algorithm(call, op, mine, into)
                np.testing.assert_array_equal(into, expected)
                if into is not mine:
                    np.testing.assert_array_equal(mine, kept)
            mine = kept
        view = memoryview(bytearray(data(0, 1, "uint8", length).tobytes()))
        if rank:
            view[:] = bytes(length)
        if length and size > 1:
            bcast.pipeline(comm._group.call(3, 0), view, 0, chunk=7)
            assert bytes(view) == data(0, 1, "uint8", length).tobytes()


@pytest.mark.parametrize("size", [2, 3, 4, 7, 8])
def test_algorithms_for_large_arrays_at_any_length(size):
    run_threads(size, algorithms)
    assert min(allreduce.LARGE_BYTES, allgather.LARGE_BYTES, gather.LARGE_BYTES) > 0


def spoil(left, right):
    """A function that uses up what it is given."""
    right += left
    left[...] = -1
    return right


def memory(comm):
    """Results may lie over the inputs; inputs stay as they are unless they do."""
    rank, size = comm.rank, comm.world_size
    for length in (1, 5, 20_000):
        expected = sum(data(r, length, "int64", length) for r in range(size))
        for op in ("sum", Op.custom(spoil), Op.custom(spoil, commutative=True, associative=True)):
            mine = data(rank, length, "int64", length)
            kept, into = mine.copy(), np.zeros_like(mine)
            comm.Allreduce(mine, into, op)
            np.testing.assert_array_equal(into, expected)
            for root in (0, size - 1):
                into, unused = np.zeros_like(mine), np.full(2, -5.0)
                comm.Reduce(mine, into if rank == root else unused, op, root)
                np.testing.assert_array_equal(unused, -5.0)
                if rank == root:
                    np.testing.assert_array_equal(into, expected)
                np.testing.assert_array_equal(mine, kept)
            comm.Allreduce(mine, mine, op)
            np.testing.assert_array_equal(mine, expected)
            both = np.zeros(length + 1, np.int64)
            both[:-1] = kept
            comm.Allreduce(both[:-1], both[1:], op)
            np.testing.assert_array_equal(both[1:], expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_inputs_are_kept_and_results_may_overlap_them(size):
    run_threads(size, memory)


@pytest.mark.parametrize("function", [lambda a, b: (a + b).sum(), lambda a, b: a / b])
def test_a_function_keeps_shape_and_type(function):
    left, right = np.arange(3), np.ones(3, int)
    with pytest.raises(BadInputError, match="must keep the shape and the type"):
        Op.custom(function).arrays(left, right, left)
    np.testing.assert_array_equal(left, [0, 1, 2])


def out_of_order(comm):
    """A large array is wanted while other messages come before it."""
    size = 300_000
    small, large = np.arange(5), np.arange(size)
    got_small, got_large = np.zeros_like(small), np.zeros_like(large)
    for first in (small, got_large, np.zeros(0, np.int64)):
        if comm.rank == 0:
            comm.Send(first, 1, tag=1)
            comm.send("between", 1)
            comm.Send(large, 1, tag=2)
            comm.Bcast(large)
            comm.Send(small, 1, tag=3)
        else:
            got_large[:] = -1
            comm.Recv(got_large, 0, tag=2)
            np.testing.assert_array_equal(got_large, large)
            got_large[:] = -1
            comm.Bcast(got_large)
            np.testing.assert_array_equal(got_large, large)
            comm.Recv(got_small, 0, tag=3)
            np.testing.assert_array_equal(got_small, small)
            again = np.zeros_like(first)
            comm.Recv(again, 0, tag=1)
            assert comm.recv(0) == "between"
            if first is small:
                np.testing.assert_array_equal(again, small)
    return True


def test_large_arrays_are_received_before_what_came_first():
    assert run_ranks(2, out_of_order) == [True, True]


def in_rank_order(comm):
    """ "sum" of strings and lists depends on the order, whatever the root is."""
    size = comm.world_size
    for root in range(size):
        got = comm.reduce(str(comm.rank), "sum", root)
        assert got == ("".join(map(str, range(size))) if comm.rank == root else None)
    assert comm.allreduce([comm.rank], "sum") == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_sums_of_strings_are_in_rank_order(size):
    run_threads(size, in_rank_order)


def with_itself(comm):
    array = np.arange(3.0)
    into = np.zeros(3)
    comm.Sendrecv(array, comm.rank, into, comm.rank)
    np.testing.assert_array_equal(into, array)
    return comm.sendrecv({"of": comm.rank}, comm.rank, comm.rank)


@pytest.mark.parametrize("size", [1, 2])
def test_a_ring_of_one_exchanges_with_itself(size):
    assert run_threads(size, with_itself) == [{"of": rank} for rank in range(size)]


def test_a_world_of_one_needs_no_server():
    with Communicator.join("alone", 0, 1) as comm:
        for name in STEPS:
            Step(name, 0, "float64", 10, "sum", 3).run(comm)
        assert comm.transports == {}
    with pytest.raises(ClosedError):
        comm.barrier()
    with pytest.raises(
        BadInputError, match="transport is auto, direct, relay, store, not 'pigeon'"
    ):
        Communicator.join("alone", 0, 1, transport="pigeon")


def wrong_arguments(comm):
    array = np.zeros(4)
    wrong = [
        lambda: comm.bcast(1, root=comm.world_size),
        lambda: comm.bcast(1, root=-1),
        lambda: comm.Reduce(array, array, root=-2),
        lambda: comm.send(1, comm.rank),
        lambda: comm.send(1, 99),
        lambda: comm.Send([1, 2], 1 - comm.rank),
        lambda: comm.Send(np.array(["a"]), 1 - comm.rank),
        lambda: comm.Recv(np.zeros((4, 4))[:, 1], 1 - comm.rank),
        lambda: comm.Allreduce(array, np.zeros(3)),
        lambda: comm.Allreduce(array, [0.0] * 4),
        lambda: comm.Gather(array, [0.0] * 8, root=comm.rank),
        lambda: comm.Alltoall([1.0, 2.0], np.zeros(2)),
        lambda: comm.Gather(array, np.zeros(8), comm.rank, counts=[8]),
        lambda: comm.Scatter(np.zeros(8), array, comm.rank, counts=[3, 5]),
        lambda: comm.Allgather(array, np.zeros(8), counts=[9, -1]),
        lambda: comm.Reduce_scatter(np.zeros(8), np.zeros(3), counts=[4, 4]),
        lambda: comm.Allreduce(array, np.zeros(4, np.float32)),
        lambda: comm.allreduce(1, "median"),
        lambda: comm.Allreduce(array, np.zeros(4), "minloc"),
        lambda: comm.Alltoall(np.zeros(3), np.zeros(3)),
        lambda: comm.alltoall([1]),
        lambda: comm.send(1, 1 - comm.rank, tag=2**31),
        lambda: comm.Recv(array, 1 - comm.rank, tag=-(2**31) - 1),
    ]
    for call in wrong:
        with pytest.raises(BadInputError):
            call()
    other = 1 - comm.rank
    for said, call in {
        "dest must be a whole number, not '1' (str)": lambda: comm.send(1, "1"),
        "dest must be a whole number, not 1.0 (float)": lambda: comm.Send(array, 1.0),
        "dest must be a whole number, not True (bool)": lambda: comm.send(1, True),
        "source must be a whole number, not None (NoneType)": lambda: comm.recv(None),
        "source must be a whole number, not [0] (list)": lambda: comm.Recv(array, [0]),
        "tag must be a whole number, not 'a' (str)": lambda: comm.send(1, other, "a"),
        "tag must be a whole number, not 0.5 (float)": lambda: comm.Recv(array, other, 0.5),
        "recvtag must be a whole number": lambda: comm.sendrecv(1, other, other, 0, "a"),
        "sendtag must be a whole number": lambda: comm.Sendrecv(array, other, array, other, 0.1),
        "root must be a whole number, not '0' (str)": lambda: comm.bcast(1, "0"),
        "root must be a whole number, not None": lambda: comm.Reduce(array, array, root=None),
        "root must be a whole number, not 0.0": lambda: comm.gather(1, 0.0),
        "counts must be a whole number, not 2.5": lambda: comm.Gather(array, array, 0, [2.5, 2]),
        "counts must be a list, not 4 (int)": lambda: comm.Allgather(array, array, 4),
        "values must be a list, not 5 (int)": lambda: comm.alltoall(5),
        "key must be a whole number, not 'x'": lambda: comm.split(0, "x"),
        "color must be a whole number, not 1.5": lambda: comm.split(1.5),
        "'median' is not a reduction": lambda: comm.allreduce(1, "median"),
        "7 is not a reduction": lambda: comm.Scan(array, array, 7),
        "a MaskedArray is more than its memory": lambda: comm.Send(np.ma.array([1.0]), other),
        "a MaskedArray is more": lambda: comm.Allreduce(np.ma.array([1.0]), np.zeros(1)),
        "a recarray is more than its memory": lambda: comm.Recv(
            np.zeros(1).view(np.recarray), other
        ),
    }.items():
        with pytest.raises(BadInputError, match=re.escape(said)):
            call()
    assert comm.bcast(comm.rank, np.int64(1)) == 1  # NumPy's own integers are whole numbers, too
    return comm.allreduce(1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"job": 3}, "job must be a string, not 3 (int)"),
        ({"rank": "0"}, "rank must be a whole number, not '0' (str)"),
        ({"world_size": 1.0}, "world_size must be a whole number, not 1.0 (float)"),
        ({"rendezvous": 10000}, "rendezvous must be a string, not 10000 (int)"),
        ({"key": 5}, "key must be 32 bytes or 64 hexadecimal digits, not a int"),
        ({"generation": None}, "generation must be a whole number, not None (NoneType)"),
        ({"deadline": "soon"}, "deadline must be a number of seconds, not 'soon' (str)"),
        ({"timeout": None}, "timeout must be a number of seconds, not None (NoneType)"),
        ({"store": "s3://box"}, "store must have put, get and delete"),
        ({"prefix": None}, "prefix must be a string, not None (NoneType)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_of_join_is_named(wrong, said):
    given = {"job": "job", "rank": 0, "world_size": 1} | wrong
    with pytest.raises(BadInputError, match=re.escape(said)):
        Communicator.join(**given)


def test_wrong_arguments_are_refused_before_anything_is_sent():
    assert run_threads(2, wrong_arguments) == [2, 2]
