"""Arguments that no call can use: each method x each argument x values of every wrong kind."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pytest
from ranks import run_ranks, run_threads

from perseid.comm import Communicator, Op
from perseid.errors import BadInputError, JobKeyRefusedError, PeerLostError
from perseid.rendezvous import Client, EmbeddedServer


class Unshowable:
    """Neither a number nor a text, and its ``repr`` fails."""

    def __repr__(self):
        raise RuntimeError("no repr")


class Unindexable:
    def __index__(self):
        raise ZeroDivisionError("no index")


class Incomparable:
    __hash__ = None

    def __eq__(self, other):
        raise ZeroDivisionError("not to be compared")


class Unlisted(Sequence):
    def __len__(self):
        return 2

    def __getitem__(self, at):
        raise ZeroDivisionError("no items")


def read_only():
    array = np.arange(4.0)
    array.setflags(write=False)
    return array


JUNK = {
    "text": "x", "bytes": b"xx", "fraction": 1.5, "nan": math.nan, "true": True, "complex": 1j,
    "dict": {0: 1, 1: 2}, "set": {1, 2}, "iterator": iter([1, 2]), "slice": slice(2), "dots": ...,
    "unshowable": Unshowable(), "unindexable": Unindexable(), "incomparable": Incomparable(),
    "unlisted": Unlisted(), "Decimal": Decimal(1), "no items": [], "lists": [[1], [2]],
    "fractions": [2.0, 2.0], "texts": ["2", "2"], "negative": [-1, 3], "too large": [2**62, 2**62],
    "one number": np.array(1.0), "two rows": np.ones((2, 2)), "objects": np.array([None, 1]),
    "names": np.array(["a", "b"]), "records": np.zeros(2, [("a", "i4")]),
    "swapped": np.ones(2, ">f8"), "days": np.array(["2020"], "M8[D]"),
    "masked": np.ma.array([1.0, 2.0]), "no elements": np.empty(0),
    "long": np.ones(2, np.longdouble), "scalar": np.float64(1), "memory": memoryview(b"ab"),
    "class": ValueError("x"),
}  # fmt: skip
"""By name: what cannot be any argument but an object to send."""
FITS = {
    "array": {"no elements", "two rows", "one number"},
    "into": {"no elements", "two rows", "one number"},
    "values": {"text", "unlisted", "bytes", "lists", "fractions", "texts", "negative",
               "too large", "no items", "two rows", "objects", "names", "records", "swapped",
               "masked", "long", "memory", "days"},
    "op": set(),
    "color": {"text"},
}  # fmt: skip
"""By argument: values which may be of use to it in a world of two."""
NEVER_WRONG = {"value", "error"}
METHODS = {
    name: [one for one in inspect.signature(method).parameters if one != "self"]
    for name, method in inspect.getmembers(Communicator, inspect.isfunction)
    if not name.startswith("_") and name != "close"
}
CASES = [
    (method, argument)
    for method, arguments in METHODS.items()
    for argument in arguments
    if argument not in NEVER_WRONG
]


def good(method, comm):
    """Arguments with which the call would wait for the other rank."""
    size, other = comm.world_size, (comm.rank + 1) % comm.world_size
    whole, part = np.zeros(2 * size), np.zeros(2)
    arrays = {"array": part, "into": part.copy()}
    if method in ("Gather", "Allgather"):
        arrays["into"] = whole
    elif method in ("Scatter", "Reduce_scatter"):
        arrays["array"] = whole
    elif method == "Alltoall":
        arrays = {"array": whole, "into": whole.copy()}
    every = arrays | {
        "dest": other, "source": other, "root": comm.rank, "tag": 0, "sendtag": 0, "recvtag": 0,
        "op": "sum", "value": 1, "values": [1] * size, "color": 0, "key": 0,
    }  # fmt: skip
    return {name: every[name] for name in METHODS[method] if name in every}


def refused(comm, method, argument, junk):
    given = good(method, comm) | {argument: junk}
    if argument == "into_counts":
        given["counts"] = [2] * comm.world_size
    try:
        getattr(comm, method)(**given)
    except BadInputError:
        return True
    except Exception as error:
        raise AssertionError(f"{method}({argument}): {type(error).__name__}: {error}") from error
    return False


def all_junk(comm):
    """Only rank 0 makes the calls: each is refused before anything is sent."""
    wrong = []
    if comm.rank == 0:
        for method, argument in CASES:
            for name, junk in JUNK.items():
                if name in FITS.get(argument, ()):
                    continue
                if not refused(comm, method, argument, junk):
                    wrong.append((method, argument, name))
    return wrong, comm.allreduce(1)


@pytest.mark.parametrize("size", [1, 2])
def test_no_method_takes_what_it_cannot_use(size):
    """Some 70 arguments of 28 methods x 35 values; then the communicator is as it was."""
    assert len(METHODS) >= 26
    assert len(CASES) > 60
    assert run_threads(size, all_junk) == [([], size)] * size


def cannot_be_written(comm):
    place, size = read_only(), comm.world_size
    part = np.zeros(4 // size)
    for call in (
        lambda: comm.Allgather(part, place),
        lambda: comm.Gather(part, place, comm.rank),
        lambda: comm.Alltoall(np.zeros(4), place),
        lambda: comm.Allreduce(np.zeros(4), place),
        lambda: comm.Reduce(np.zeros(4), place, root=comm.rank),
        lambda: comm.Scan(np.zeros(4), place),
        lambda: comm.Scatter(np.zeros(4 * size), place, comm.rank),
        lambda: comm.Reduce_scatter(np.zeros(4 * size), place),
        lambda: comm.Recv(place, 1 - comm.rank),
    ):
        with pytest.raises(BadInputError):
            call()
    return comm.allreduce(1)


@pytest.mark.parametrize("size", [1, 2])
def test_a_result_that_cannot_be_written_is_refused_before_anything_is_sent(size):
    assert run_threads(size, cannot_be_written) == [size] * size


JOIN_JUNK = {
    name: {**JUNK, "no text": "\ud800", "infinite": math.inf, "huge": 1e30, "minus one": -1}
    for name in ("job", "rank", "world_size", "rendezvous", "key", "certificate", "generation",
                 "transport", "hint", "expects", "deadline", "timeout", "death_timeout",
                 "link_timeout", "silence_timeout", "store", "prefix")
}  # fmt: skip
JOINS = {
    "job": {"text"},
    "prefix": {"text", "no text"},
    "deadline": {"fraction", "scalar", "infinite", "huge"},
    "timeout": {"fraction", "scalar", "infinite", "huge"},
    "death_timeout": {"fraction", "scalar"},
    "link_timeout": {"fraction", "scalar"},
    "silence_timeout": {"fraction", "scalar"},
}


def test_no_argument_of_join_is_taken_that_cannot_be_used():
    """17 arguments x 39 values, in a world of one with a server."""
    wrong = []
    with EmbeddedServer() as server:
        for argument, junk in JOIN_JUNK.items():
            for name, value in junk.items():
                if (argument, name) == ("rendezvous", "text"):
                    continue  # a name, which is looked up until the deadline
                given = {
                    "job": "job", "rank": 0, "world_size": 1, "rendezvous": server.address,
                    "deadline": 2.0, argument: value,
                }  # fmt: skip
                try:
                    Communicator.join(**given).close()
                except (BadInputError, JobKeyRefusedError):
                    taken = False
                else:
                    taken = True
                if taken != (name in JOINS.get(argument, ())):
                    wrong.append((argument, name, taken))
    assert wrong == []


@pytest.mark.parametrize("argument", ["deadline", "timeout"])
@pytest.mark.parametrize("seconds", [1e7, 1e30, math.inf])
def test_a_time_that_no_clock_counts_is_a_long_one(argument, seconds):
    def late(comm):
        if comm.rank:
            time.sleep(0.2)
        return comm.allreduce(1)

    assert run_threads(2, late, **{argument: seconds}) == [2, 2]


@pytest.mark.parametrize("seconds", [1e6, 40_000.0, 0.5])
def test_every_time_that_a_link_may_have_is_one_that_the_kernel_takes(seconds):
    assert run_threads(2, lambda comm: comm.allreduce(1), link_timeout=seconds) == [2, 2]
    with (
        EmbeddedServer() as server,
        Client.register(server.address, "job", 0, 1, link_timeout=seconds) as client,
    ):
        client.wait_complete(math.inf)


class Unsayable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def fails_without_words(comm):
    if comm.rank:
        raise Unsayable
    comm.barrier()


def test_an_exception_that_cannot_be_shown_still_reaches_the_others():
    with pytest.raises(PeerLostError, match="Rank 1 failed with Unsayable"):
        run_ranks(2, fails_without_words)


def test_a_function_of_the_wrong_kind_is_named_by_the_reduction():
    with pytest.raises(BadInputError, match=r"made shape \(7,\) of float64"):
        run_ranks(2, lambda comm: comm.Allreduce(
            np.zeros(4), np.zeros(4), Op.custom(lambda left, right: np.ones(7))))  # fmt: skip
