"""A run that is stopped while a worker hangs: nobody waits for what that worker may still log."""

from __future__ import annotations

import json
import time

import pytest

import perseid
from perseid.aws.engine import AwsEngine
from perseid.aws.executions import Executions
from perseid.aws.observe.calls import Calls
from perseid.aws.observe.run_archive import REPORT_SECONDS
from perseid.cli import main
from perseid.errors import BadInputError, RunInterruptedError
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage


def say_that_it_began(stack, function, run):
    """What CloudWatch shows of an invocation that goes on; ministack shows it at its end only."""
    logs, group = stack.aws.client("logs"), f"/aws/lambda/{function}"
    logs.create_log_stream(logGroupName=group, logStreamName="goes-on")
    mark = json.dumps({"event": "start", "run": run, "rank": 3, "attempt": 1})
    lines = ["START RequestId: goes-on Version: $LATEST", f"PERSEID {mark}"]
    now = int(time.time() * 1e3)
    events = [{"timestamp": now, "message": f"{line}\n"} for line in lines]
    logs.put_log_events(logGroupName=group, logStreamName="goes-on", logEvents=events)


def test_a_stopped_run_ends_at_once_and_is_resumed(stack, faulty, faulty_data):
    results = f"{stack.bucket}/runs/stopped-hanging"
    plan = json.dumps({"3": ["hang"]}).encode()
    Storage(f"{stack.bucket}/runs").put("stopped-hanging.faults.json", plan)
    engine = Executions(Calls(stack.aws), faulty.place)
    started = engine.start(RunRequest.parse({"data": faulty_data, "results": results}))
    deadline = time.monotonic() + 60
    while engine.look(started).succeeded < 3 and time.monotonic() < deadline:
        time.sleep(0.3)
    engine.stop(started)
    engine.watch(started, lambda now: None, first=0.2, longest=0.5, seconds=60)
    say_that_it_began(stack, faulty.function, started.name)
    before = time.monotonic()
    with pytest.raises(RunInterruptedError, match="perseid resume"):
        engine.finish(started)
    assert time.monotonic() - before < REPORT_SECONDS - 10
    again = engine.resume(results)
    engine.watch(again, lambda now: None, first=0.2, longest=0.5, seconds=120)
    summary = json.loads(Storage(results).get("summary.json"))
    assert summary["status"] == "complete"
    kept = json.loads(Storage(results).get("engine.json"))  # of the first look
    assert sorted(a["rank"] for a in kept["attempts"] if a["ending"] == "done") == [0, 1, 2]


def test_a_run_is_stopped_at_its_spending_cap(stack, faulty, faulty_data):
    """One rank hangs for as long as its function may; the others have cost more than the cap."""
    results = f"{stack.bucket}/runs/capped"
    plan = json.dumps({"3": ["hang"]}).encode()
    Storage(f"{stack.bucket}/runs").put("capped.faults.json", plan)
    executions = Executions(Calls(stack.aws), faulty.place)
    engine = AwsEngine(executions=executions, max_usd=1e-6)
    with pytest.raises(RunInterruptedError, match="`max_usd` is 1e-06; what is done stays"):
        perseid.run(faulty_data, results=results, engine=engine, progress=False)
    [arn] = executions.executions(results)
    found = stack.aws.client("stepfunctions").describe_execution(executionArn=arn)
    assert found["status"] == "ABORTED"


def test_a_cap_needs_somebody_who_keeps_it(capsys, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    words = ["run", "--engine", "aws", "--data", "s3://b/d", "--out", "s3://b/r", "--max-usd"]
    assert main([*words, "0.5", "--detach"]) == 2
    assert "--detach would end" in capsys.readouterr().err
    with pytest.raises(BadInputError, match="max_usd is -1"):
        AwsEngine(max_usd=-1.0)
