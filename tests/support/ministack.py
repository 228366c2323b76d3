"""A real process of ministack (AWS at large on loopback) in an environment of its own."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import double

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-ministack"
PROGRAM = Path(__file__).with_name("ministack_program.py")
REQUIREMENTS = ("ministack==1.5.33", "boto3==1.43.106", "awslambdaric==4.2.2")
"""ministack pins botocore, so it does not fit beside ours; functions see boto3 as on Lambda."""


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
def running(**settings: str) -> Iterator[double.Double]:
    """Start a server, give it settings as environment variables, kill it in the end."""
    port = double.free_port()
    env = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "MINISTACK_REGION": double.REGION}
    env |= {"SFN_WAIT_SCALE": "0.05", "LOG_LEVEL": "WARNING"}
    env |= {"LAMBDA_ACCOUNT_CONCURRENCY": "0", "PYTHONDONTWRITEBYTECODE": "1", **settings}
    command = [python(), "-P", PROGRAM]  # beside it lies this module of the same name
    with double.running(command, port, env, "/_ministack/health", 30) as server:
        yield server


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
