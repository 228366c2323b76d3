"""A server process that stands in for AWS on loopback, and our stack deployed on it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from perseid.aws.deploy.deployment import deploy
from perseid.aws.deploy.packaging import Package
from perseid.aws.deploy.template import Options
from perseid.aws.session import Aws
from perseid.lifetime import bound_to_parent

REGION = "us-east-1"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""Of the functions: doubles run them with their own interpreter, whatever their runtime says."""
UNSET = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CONFIG_FILE")


@dataclass(frozen=True)
class Double:
    """A running server; `env` is what a client process needs to talk to it."""

    endpoint: str
    env: dict[str, str]
    log: Path


@dataclass(frozen=True)
class Stack:
    """A stack deployed on it."""

    aws: Aws
    outputs: dict[str, str]
    server: Double
    packages: dict[str, Package]

    @property
    def bucket(self) -> str:
        """URL of the stack's own bucket."""
        return f"s3://{self.outputs['Bucket']}"


@contextmanager
def running(
    command: Sequence[str | Path], port: int, env: Mapping[str, str], health: str, seconds: float
) -> Iterator[Double]:
    """Start a server with these variables (of AWS it has no others), wait until it answers at the
    path `health`, kill it in the end."""
    folder = Path(tempfile.mkdtemp(prefix="aws-double-"))
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MOTO_"))}
    log = folder / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env={**mine, "TMPDIR": str(folder), **env}, stdout=out, stderr=out,
            preexec_fn=bound_to_parent(), start_new_session=True,
        )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    client = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION,
    }  # fmt: skip
    try:
        _wait(endpoint + health, process, log, seconds)
        yield Double(endpoint, client, log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its Lambda processes, too
        process.wait(10)
        subprocess.run(["rm", "-rf", folder], check=False, timeout=60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:  # it answers
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{url} did not come to answer:\n{log.read_text()[-2000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def variables(env: Mapping[str, str]) -> Iterator[None]:
    """This process' AWS variables are those of a double."""
    with pytest.MonkeyPatch.context() as patch:
        for name in UNSET:
            patch.delenv(name, raising=False)
        for name, value in env.items():
            patch.setenv(name, value)
        yield


def deployed(server: Double, folder: Path) -> Stack:
    """The stack ``perseid``, deployed by the deployer itself; zips go to the folder."""
    aws = Aws()
    done = deploy(
        aws, Options(rendezvous=True), folder, lambda event: None, lambda changes: True,
        compression=1, interpreter=PYTHON,
    )  # fmt: skip
    return Stack(aws, dict(done.outputs), server, dict(done.packages))
