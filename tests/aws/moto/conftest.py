"""The same stack on moto, deployed once; AWS variables of this process point to it in a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import moto_server
import pytest
from double import Stack, deployed, variables

AT_ONCE = 6
"""Functions that the account may run at once: more are throttled."""


@pytest.fixture(scope="session")
def moto_stack(packages_folder: Path) -> Iterator[Stack]:
    """A running moto, and the stack ``perseid`` on it."""
    with moto_server.running(AT_ONCE) as server:
        with variables(server.env):
            stack = deployed(server, packages_folder)
        yield stack


@pytest.fixture(scope="module")
def moto(moto_stack: Stack) -> Iterator[Stack]:
    """The stack, for the tests of one module."""
    with variables(moto_stack.server.env):
        yield moto_stack
