"""Every method of the communicator has an example in its docstring, and the example runs."""

from __future__ import annotations

import inspect
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from perseid import Communicator, RendezvousServer
from perseid.comm import MAX, SUM

EXAMPLE = re.compile(r"``(comm\.(\w+)\([^`]*\))``")
METHODS = {
    name: inspect.getdoc(method)
    for name, method in inspect.getmembers(Communicator, callable)
    if not name.startswith("_") and name not in ("join", "from_environment", "close")
}
TO_ONE = {"send": 0, "recv": 1, "Send": 0, "Recv": 1}
"""Examples of one rank, and which."""


def examples() -> list[str]:
    found = {name: EXAMPLE.search(doc) for name, doc in METHODS.items()}
    missing = [name for name, match in found.items() if match is None or match[2] != name]
    assert missing == []
    order = [name for name in found if name not in TO_ONE] + ["send", "recv", "Send", "Recv"]
    return [found[name][1] for name in order]


def test_every_example_runs_on_two_ranks():
    programs = examples()
    assert len(programs) > 20

    def rank(number: int, address: str) -> dict[str, object]:
        said = {}
        with Communicator.join("examples", number, 2, address, deadline=30, timeout=30) as comm:
            names = {"comm": comm, "np": np, "SUM": SUM, "MAX": MAX}
            for program in programs:
                name = EXAMPLE.match(f"``{program}``")[2]
                if TO_ONE.get(name, number) == number:
                    said[name] = eval(program, names)
        return said

    with RendezvousServer() as server, ThreadPoolExecutor(2) as pool:
        zero, one = pool.map(rank, (0, 1), [server.address] * 2)
    assert (zero["allreduce"], one["scan"], one["recv"]) == (2, 2, "x")
    assert (zero["gather"], one["gather"]) == ([3, 3], None)
    assert one["scatter"] == one["allgather"][1] == 1


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_does(name):
    assert len(METHODS[name]) > 30
