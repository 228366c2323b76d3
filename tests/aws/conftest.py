"""Fixtures of the AWS tests: ministack with the whole stack deployed on it, and small surveys."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import faulty_stack
import ministack as doubles
import numpy as np
import pytest

from perseid.aws.deploy import deploy
from perseid.aws.packaging import Package, build
from perseid.aws.session import Aws
from perseid.aws.template import Options
from perseid.aws.wheels import Target
from perseid.storage import Storage
from perseid.survey.cutouts import Cutouts
from perseid.survey.reader import write_cutouts

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""ministack runs functions with its own interpreter, whatever their runtime says."""
UNSET = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CONFIG_FILE")


@dataclass(frozen=True)
class Stack:
    """A deployed stack on ministack."""

    aws: Aws
    outputs: dict[str, str]
    server: doubles.Ministack
    packages: dict[str, Package]

    @property
    def bucket(self) -> str:
        """URL of the stack's own bucket."""
        return f"s3://{self.outputs['Bucket']}"


@pytest.fixture(scope="session")
def ministack() -> Iterator[doubles.Ministack]:
    """A running ministack; this process' AWS variables point to it."""
    with doubles.running() as server, pytest.MonkeyPatch.context() as patch:
        for name in UNSET:
            patch.delenv(name, raising=False)
        for name, value in server.env.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def packages_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the zips of the session are."""
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="session")
def packages(packages_folder: Path) -> dict[str, Package]:
    """The zips, by name."""
    return build(packages_folder, Target(python=PYTHON), compression=1)


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
def stack(ministack: doubles.Ministack, packages_folder: Path) -> Stack:
    """The stack ``perseid``, deployed by the deployer itself."""
    aws = Aws()
    done = deploy(
        aws, Options(python=PYTHON), packages_folder, lambda event: None, lambda changes: True,
        compression=1,
    )  # fmt: skip
    return Stack(aws, dict(done.outputs), ministack, dict(done.packages))


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
