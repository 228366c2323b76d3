"""A real process of moto (AWS at large on loopback) that runs state machines and functions."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import double
import ministack


@contextmanager
def running(at_once: int = 0) -> Iterator[double.Double]:
    """Start a server whose account runs so many functions at once (0: no limit); kill it."""
    port = double.free_port()
    env = {"MOTO_PORT": str(port), "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, __file__, str(port), str(ministack.python()), str(at_once)]
    with double.running(command, port, env, "/moto-api/data.json", 60) as server:
        keep_tasks(server.endpoint)
        yield server


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


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
