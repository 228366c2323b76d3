"""The NAT laboratory: built where it can be, else skipped with the reason.

PERSEID_REQUIRE_NAT=1 turns the skip into a failure.
"""

from __future__ import annotations

import os
from functools import lru_cache

import nat_lab
import pytest


@lru_cache(maxsize=1)
def reason() -> str:
    return nat_lab.why_not()


@pytest.fixture
def lab():
    """A function that builds a laboratory with a delay (seconds one way) and a loss."""
    if reason():
        if os.environ.get("PERSEID_REQUIRE_NAT"):
            pytest.fail(f"PERSEID_REQUIRE_NAT is set, but the NAT laboratory: {reason()}")
        pytest.skip(f"the NAT laboratory needs root and nftables: {reason()}")
    built = []

    def build(delay: float = 0.005, loss: float = 0.0) -> nat_lab.Lab:
        built.append(nat_lab.Lab(delay, loss))
        return built[-1]

    yield build
    for one in built:
        one.__exit__()
