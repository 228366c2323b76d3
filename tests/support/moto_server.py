"""A real process of moto (AWS at large on loopback) that runs state machines and functions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ministack

REGION = "us-east-1"


@dataclass(frozen=True)
class Moto:
    """A running server; `env` is what a client process needs to talk to it."""

    endpoint: str
    env: dict[str, str]
    log: Path


@contextmanager
def running(at_once: int = 0) -> Iterator[Moto]:
    """Start a server whose account runs so many functions at once (0: no limit); kill it."""
    interpreter, port = ministack.python(), ministack.free_port()
    folder = Path(tempfile.mkdtemp(prefix="moto-"))
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MOTO_"))}
    mine |= {
        "MOTO_PORT": str(port),
        "TMPDIR": str(folder),
        "PYTHONPATH": str(Path(__file__).parent),
    }
    log = folder / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, __file__, str(port), str(interpreter), str(at_once)],
            cwd=folder, env=mine, stdout=out, stderr=out,
            preexec_fn=ministack.die_with_parent, start_new_session=True,
        )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    env = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION,
    }  # fmt: skip
    try:
        _wait(endpoint, process, log)
        keep_tasks(endpoint)
        yield Moto(endpoint, env, log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its Lambda processes, too
        process.wait(10)
        subprocess.run(["rm", "-rf", folder], check=False, timeout=60)


def keep_tasks(endpoint: str) -> None:
    """Else moto's tasks come nearer to their end with each look at them."""
    stay = {"model_name": "ecs::task", "transition": {"progression": "manual", "times": 10_000}}
    request = urllib.request.Request(
        f"{endpoint}/moto-api/state-manager/set-transition",
        json.dumps(stay).encode(), {"Content-Type": "application/json"},
    )  # fmt: skip
    urllib.request.urlopen(request, timeout=10).close()


def serve(port: int, interpreter: Path, at_once: int) -> None:
    """The program of the process."""
    from moto.server import main
    from moto_hooks import install

    install(f"http://127.0.0.1:{port}", interpreter, at_once)
    main(["-H", "127.0.0.1", "-p", str(port)])


def _wait(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/data.json", timeout=5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"moto did not start:\n{log.read_text()[-2000:]}")


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
