"""The AWS engine on ministack."""

from __future__ import annotations

import pytest
from aws_lab import aws_lab
from conformance_suite import Conformance, here, reference, whole  # noqa: F401


@pytest.fixture(scope="module")
def lab(ministack, stack, faulty, tmp_path_factory):
    return aws_lab(stack, faulty, tmp_path_factory.mktemp("ministack"))


class TestMinistack(Conformance):
    """See `conformance_suite.Conformance`."""
