"""Fixtures that start AWS doubles, ministack and moto, each with the whole stack deployed on it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import faulty_stack
import ministack as doubles
import moto_server
import numpy as np
import pytest
from double import PYTHON, Double, Stack, deployed, variables

from perseid.aws import stack_events
from perseid.aws.deploy.packaging import Package, build
from perseid.aws.deploy.wheels import Target
from perseid.aws.session import Aws
from perseid.storage import Storage
from perseid.survey.cutouts import Cutouts
from perseid.survey.reader import write_cutouts

AT_ONCE = 6
"""Functions that the account may run at once: more are throttled."""


@pytest.fixture(scope="session")
def ministack() -> Iterator[Double]:
    """A running ministack; this process' AWS variables point to it."""
    with doubles.running() as server, variables(server.env):
        yield server


@pytest.fixture
def aws(ministack: Double, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """A session with ministack that looks at stacks ten times a second."""
    monkeypatch.setattr(stack_events, "POLL_SECONDS", 0.1)
    return Aws()


@pytest.fixture(scope="session")
def packages_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the zips of the session are."""
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="session")
def packages(packages_folder: Path) -> dict[str, Package]:
    """The zips, by name."""
    return build(packages_folder, Target(), interpreter=PYTHON, compression=1)


@pytest.fixture(scope="session")
def unpacked(
    packages: dict[str, Package], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Folders as Lambda unpacks the zips, by name."""
    folders = {}
    for name, package in packages.items():
        folders[name] = tmp_path_factory.mktemp(name)
        with zipfile.ZipFile(package.path) as archive:
            archive.extractall(folders[name])
    return folders


@pytest.fixture(scope="session")
def stack(ministack: Double, packages_folder: Path) -> Stack:
    """The stack ``perseid`` on it."""
    return deployed(ministack, packages_folder)


@pytest.fixture(scope="session")
def faulty(stack: Stack) -> faulty_stack.FaultyStack:
    """The stack's state machine with a worker that fails as it is told."""
    return faulty_stack.make(stack)


@pytest.fixture(scope="session")
def faulty_data(stack: Stack, put_survey: Callable[..., None]) -> str:
    """A survey of four partitions for it."""
    url = f"{stack.bucket}/faulty-data"
    put_survey(url, 4, rows=8)
    return url


@pytest.fixture(scope="session")
def put_survey(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """A function that puts a survey of numbered partitions into a folder or bucket."""

    def put(url: str, partitions: int, rows: int = 8) -> None:
        folder = tmp_path_factory.mktemp("survey")
        storage = Storage(url)
        rng = np.random.default_rng(partitions * 1000 + rows)
        for number in range(1, partitions + 1):
            images = rng.standard_normal((rows, 5, 32, 32)).astype(np.float32)
            magnitudes = 18 + rng.standard_normal((rows, 5))
            path = folder / f"{number}.pt"
            redshift = rng.random(rows).astype(np.float32)
            write_cutouts(Cutouts(images, magnitudes, redshift), path)
            storage.put(path.name, path.read_bytes())

    return put


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


@pytest.fixture
def moto_unlimited() -> Iterator[Double]:
    """A moto of its own, whose account runs as many functions at once as are called."""
    with moto_server.running() as server, variables(server.env):
        yield server
