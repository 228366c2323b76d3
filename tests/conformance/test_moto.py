"""The AWS engine on moto."""

from __future__ import annotations

import faulty_stack
import pytest
from aws_lab import aws_lab
from conformance_suite import Conformance, here, reference, whole  # noqa: F401
from double import variables


@pytest.fixture(scope="module")
def lab(moto_stack, tmp_path_factory):
    with variables(moto_stack.server.env):
        faulty = faulty_stack.make(moto_stack, name="conformance")
        yield aws_lab(moto_stack, faulty, tmp_path_factory.mktemp("moto"))


class TestMoto(Conformance):
    """See `conformance_suite.Conformance`."""
