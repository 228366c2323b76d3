"""A second state machine beside a deployed one, whose worker fails as it is told."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from ministack import python

from perseid.aws.executions import Executions
from perseid.aws.observe.calls import Calls
from perseid.aws.stack_resources import StackResources
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage

HERE = Path(__file__).parent
BOOTSTRAP = """#!/bin/sh
cd "$LAMBDA_TASK_ROOT"
export PYTHONPATH="$LAMBDA_TASK_ROOT"
exec {python} -m awslambdaric "$_HANDLER"
"""
"""AWS's own runtime client: error names, exits and time-outs are as on Lambda."""


@dataclass(frozen=True)
class FaultyStack:
    """The same state machine with another worker."""

    place: StackResources
    function: str


def make(
    stack,
    *,
    timeout: int = 60,
    name: str = "faulty",
    at_once: int = 0,
    summarize: bool = False,
    memory: int | None = None,
) -> FaultyStack:
    """Put functions up whose zips have one more module, and the definition around them.

    With `at_once`, no more of the worker's calls are let through at one moment; ministack names
    that refusal Lambda.Unknown in executions, Step Functions Lambda.TooManyRequestsException.
    With `summarize`, that function is a faulty one, too; with `memory`, the worker has so many MB.
    """
    own = StackResources.of_outputs(stack.outputs, "perseid")
    lambdas, machines = stack.aws.client("lambda"), stack.aws.client("stepfunctions")
    given = machines.describe_state_machine(stateMachineArn=own.state_machine)
    # The larger worker first: its name begins with the worker's.
    larger = stack.outputs["LargerWorkerFunction"]
    parts = {
        larger: (f"{name}-larger", "worker", "handler"),
        own.worker: (name, "worker", "handler"),
    }
    if summarize:
        parts[own.summarize] = (f"{name}-summarize", "control", "summarize_handler")
    text = given["definition"]
    for former, (new, package, handler) in parts.items():
        settings = lambdas.get_function_configuration(FunctionName=former)
        group = name if package == "worker" else new
        if former == own.worker and memory:
            settings["MemorySize"] = memory
        arn = _function(stack, settings, new, package, handler, timeout, group)
        text = text.replace(settings["FunctionArn"], arn).replace(f'"{former}"', f'"{arn}"')
        assert arn in text
    if at_once:
        lambdas.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=at_once)
        text = text.replace("Lambda.TooManyRequestsException", "Lambda.Unknown")
    machine = machines.create_state_machine(
        name=name, definition=text, roleArn=given["roleArn"], type="STANDARD"
    )
    return FaultyStack(replace(own, state_machine=machine["stateMachineArn"], worker=name), name)


def _function(stack, settings, name, package, handler, timeout, group) -> str:
    """A function as one of the stack's, with faults; its ARN."""
    variables = settings.get("Environment", {}).get("Variables", {})
    made = stack.aws.client("lambda").create_function(
        FunctionName=name,
        Runtime="provided.al2023",
        Handler=f"faulty_lambda.{handler}",
        Role=settings["Role"],
        Code={"ZipFile": code(stack.packages[package].path)},
        MemorySize=settings["MemorySize"],
        Timeout=timeout,
        Environment={"Variables": variables | stack.server.env},
        LoggingConfig={"LogFormat": "Text", "LogGroup": f"/aws/lambda/{group}"},
    )
    # As the template does: two first invocations at once would each make ministack's group again.
    logs = stack.aws.client("logs")
    with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_group(logGroupName=f"/aws/lambda/{group}")
    return str(made["FunctionArn"])


def code(package: Path) -> bytes:
    """A function's zip with the faulty handler and AWS's bootstrap in it."""
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
    engine = Executions(Calls(stack.aws), faulty.place)
    started = engine.start(RunRequest.parse({"data": data, "results": results, **keys}))
    seen = []
    engine.watch(started, seen.append, first=0.5, longest=1.0, seconds=240)
    return engine, started, engine.finish(started), seen


def endings(result, rank):
    """(attempt, how it ended) of each of a rank's attempts."""
    return [(a.attempt, a.ending.value) for a in result.mapped.attempts if a.rank == rank]
