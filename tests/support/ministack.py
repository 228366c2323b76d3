"""A real process of ministack (AWS at large on loopback) in an environment of its own."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-ministack"
REQUIREMENTS = ("ministack==1.5.33", "boto3==1.43.106", "awslambdaric==4.2.2")
"""ministack pins botocore, so it does not fit beside ours; functions see boto3 as on Lambda."""
REGION = "us-east-1"


@dataclass(frozen=True)
class Ministack:
    """A running server; `env` is what a client process needs to talk to it."""

    endpoint: str
    env: dict[str, str]
    log: Path


def python() -> Path:
    """The interpreter of ministack's environment, which is made where it is missing (10 s)."""
    mark = FOLDER / ".ready"
    wanted = "\n".join([sys.version, *REQUIREMENTS])
    with open(ROOT / ".venv-ministack.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.is_file() or mark.read_text() != wanted:
            subprocess.run(
                [sys.executable, "-m", "venv", "--clear", FOLDER], check=True, timeout=120
            )
            command = [FOLDER / "bin/python", "-m", "pip", "install", "-q"]
            command += ["--disable-pip-version-check", *REQUIREMENTS]
            subprocess.run(command, check=True, timeout=300)
            mark.write_text(wanted)
    return FOLDER / "bin/python"


@contextmanager
def running(**settings: str) -> Iterator[Ministack]:
    """Start a server, give it settings as environment variables, kill it in the end."""
    interpreter, port = python(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="ministack-"))
    mine = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    mine |= {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "MINISTACK_REGION": REGION}
    mine |= {"SFN_WAIT_SCALE": "0.05", "TMPDIR": str(folder), "LOG_LEVEL": "WARNING"}
    mine |= {"LAMBDA_ACCOUNT_CONCURRENCY": "0", "PYTHONDONTWRITEBYTECODE": "1", **settings}
    log = folder / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [interpreter, "-m", "ministack.app"], cwd=folder, env=mine, stdout=out, stderr=out,
            preexec_fn=die_with_parent, start_new_session=True,
        )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    env = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION,
    }  # fmt: skip
    try:
        _wait(endpoint, process, log)
        yield Ministack(endpoint, env, log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its Lambda processes, too
        process.wait(10)
        subprocess.run(["rm", "-rf", folder], check=False, timeout=60)


def limited(client: Any, machine: str, at_once: int = 6, tolerated: float = 100.0) -> str:
    """A copy of a state machine with fixed limits in place of the paths, which ministack ignores.

    It would start 64 environments at once otherwise, and tolerate no failure.
    """
    found = client.describe_state_machine(stateMachineArn=machine)
    definition = json.loads(found["definition"])
    for state in definition["States"].values():
        if state["Type"] == "Map":
            del state["MaxConcurrencyPath"], state["ToleratedFailurePercentagePath"]
            state |= {"MaxConcurrency": at_once, "ToleratedFailurePercentage": tolerated}
    name = f"{found['name']}-limited-{at_once}-{int(tolerated)}"
    made = client.create_state_machine(
        name=name, definition=json.dumps(definition), roleArn=found["roleArn"]
    )
    return str(made["stateMachineArn"])


def run_to_end(
    client: Any, machine: str, name: str, given: Mapping[str, Any], seconds: float = 240
) -> dict[str, Any]:
    """Start an execution and wait for its end; what DescribeExecution says, output decoded."""
    arn = client.start_execution(stateMachineArn=machine, name=name, input=json.dumps(given))
    return wait_for(client, arn["executionArn"], seconds)


def wait_for(client: Any, arn: str, seconds: float = 240) -> dict[str, Any]:
    """The execution once it ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = client.describe_execution(executionArn=arn)
        if found["status"] != "RUNNING":
            if found.get("output"):
                found["output"] = json.loads(found["output"])
            return dict(found)
        time.sleep(0.1)
    raise AssertionError(f"{arn} still runs after {seconds} s")


def _wait(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{endpoint}/_ministack/health", timeout=1).close()
        except urllib.error.HTTPError:  # it answers
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"ministack did not start:\n{log.read_text()[-2000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
