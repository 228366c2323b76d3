"""A second state machine beside a deployed one, whose worker fails as it is told."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from ministack import python

from perseid.aws.calls import Calls
from perseid.aws.engine import AwsEngine
from perseid.aws.place import Place
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage

HERE = Path(__file__).parent
BOOTSTRAP = """#!/bin/sh
cd "$LAMBDA_TASK_ROOT"
export PYTHONPATH="$LAMBDA_TASK_ROOT"
exec {python} -m awslambdaric faulty_lambda.handler
"""
"""AWS's own runtime client: error names, exits and time-outs are as on Lambda."""


@dataclass(frozen=True)
class FaultyStack:
    """The same state machine with another worker."""

    place: Place
    function: str


def make(stack, *, timeout: int = 60, name: str = "faulty", at_once: int = 0) -> FaultyStack:
    """Put the worker's zip with one more module up as a function, and the definition around it.

    With `at_once`, no more of the function's calls are let through at one moment; ministack names
    that refusal Lambda.Unknown in executions, Step Functions Lambda.TooManyRequestsException.
    """
    own = Place.of_outputs(stack.outputs, "perseid")
    lambdas, machines = stack.aws.client("lambda"), stack.aws.client("stepfunctions")
    settings = lambdas.get_function_configuration(FunctionName=own.worker)
    variables = settings.get("Environment", {}).get("Variables", {})
    made = lambdas.create_function(
        FunctionName=name,
        Runtime="provided.al2023",
        Handler="faulty_lambda.handler",
        Role=settings["Role"],
        Code={"ZipFile": code(stack.packages["worker"].path)},
        MemorySize=own.memory_mb,
        Timeout=timeout,
        Environment={"Variables": variables | stack.server.env},
    )
    given = machines.describe_state_machine(stateMachineArn=own.state_machine)
    arn, worker = made["FunctionArn"], settings["FunctionArn"]
    text = given["definition"].replace(worker, arn).replace(f'"{own.worker}"', f'"{arn}"')
    assert arn in text
    # As the template does: two first invocations at once would each make ministack's group anew.
    stack.aws.client("logs").create_log_group(logGroupName=f"/aws/lambda/{name}")
    if at_once:
        lambdas.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=at_once)
        text = text.replace("Lambda.TooManyRequestsException", "Lambda.Unknown")
    machine = machines.create_state_machine(
        name=name, definition=text, roleArn=given["roleArn"], type="STANDARD"
    )
    place = replace(own, state_machine=machine["stateMachineArn"], worker=name)
    return FaultyStack(place, name)


def code(package: Path) -> bytes:
    """The worker's zip with the faulty handler and AWS's bootstrap in it."""
    data = io.BytesIO(package.read_bytes())
    with zipfile.ZipFile(data, "a", zipfile.ZIP_STORED) as target:
        target.write(HERE / "faulty_lambda.py", "faulty_lambda.py")
        entry = zipfile.ZipInfo("bootstrap")
        entry.external_attr = 0o755 << 16
        target.writestr(entry, BOOTSTRAP.format(python=python()))
    return data.getvalue()


def run(stack, faulty, data, name, plan, **keys):
    """A run with faults as planned; (engine, started, what came of it, what was seen)."""
    results = f"{stack.bucket}/runs/{name}"
    Storage(f"{stack.bucket}/runs").put(f"{name}.faults.json", json.dumps(plan).encode())
    engine = AwsEngine(Calls(stack.aws), faulty.place)
    started = engine.start(RunRequest.parse({"data": data, "results": results, **keys}))
    seen = []
    engine.watch(started, seen.append, first=0.5, longest=1.0, seconds=240)
    return engine, started, engine.finish(started), seen


def endings(result, rank):
    """(attempt, how it ended) of each of a rank's attempts."""
    return [(a.attempt, a.ending.value) for a in result.mapped.attempts if a.rank == rank]
