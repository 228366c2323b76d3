"""The same stack on moto, deployed once; AWS variables of this process point to it in a module."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import moto_server
import pytest

from perseid.aws.deploy import deploy
from perseid.aws.packaging import Package
from perseid.aws.session import Aws
from perseid.aws.template import Options

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
UNSET = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CONFIG_FILE")
AT_ONCE = 6
"""Functions that the account may run at once: more are throttled."""


@dataclass(frozen=True)
class Stack:
    """The deployed stack."""

    aws: Aws
    outputs: dict[str, str]
    server: moto_server.Moto
    packages: dict[str, Package]

    @property
    def bucket(self) -> str:
        """URL of the stack's own bucket."""
        return f"s3://{self.outputs['Bucket']}"


@contextmanager
def variables(env: Mapping[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in UNSET:
            patch.delenv(name, raising=False)
        for name, value in env.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def moto_stack(packages_folder: Path) -> Iterator[Stack]:
    """A running moto, and the stack ``perseid`` on it, deployed by the deployer itself."""
    with moto_server.running(AT_ONCE) as server:
        with variables(server.env):
            aws = Aws()
            done = deploy(
                aws, Options(python=PYTHON), packages_folder, lambda event: None,
                lambda changes: True, compression=1,
            )  # fmt: skip
        yield Stack(aws, dict(done.outputs), server, dict(done.packages))


@pytest.fixture(scope="module")
def moto(moto_stack: Stack) -> Iterator[Stack]:
    """The stack, for the tests of one module."""
    with variables(moto_stack.server.env):
        yield moto_stack
