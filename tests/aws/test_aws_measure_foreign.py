"""Tables of runs that others made: log groups with many interleaved streams, their executions."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import boto3
import pytest
from moto.server import ThreadedMotoServer

from perseid.aws.observe.calls import Calls
from perseid.aws.observe.foreign import group_runs
from perseid.aws.session import Aws
from perseid.cli import main
from perseid.errors import BadInputError, NotFoundError
from perseid.measure.sources.load_options import LoadOptions

GROUP = "/aws/lambda/cosmic-executor"
INIT = "/aws/lambda/cosmic-init"
RANKS, STREAMS, EVENTS_A_CALL = 60, 7, 500


def lines_of(rank: int, path: str) -> list[str]:
    """What the existing executor logs for a rank; rank 3 runs out of time, rank 5 leaves none."""
    request = f"{path.rpartition('/')[2]:0>4}{rank:04d}-0000-4000-8000-000000000000"
    item = {"WORLD_SIZE": str(RANKS), "RANK": str(rank), "RESULT_PATH": path, "BATCH_SIZE": 512}
    item |= {"DATA_PREFIX": "25MB", "SCRIPT": "/tmp/Anomaly Detection/Inference/inference.py"}
    lines = [f"START RequestId: {request} Version: $LATEST", f"received:  {item}"]
    lines += [f"downloading key: part {n}" for n in range(4)]
    if rank == 3:
        lines.append(f"2026-11-20T10:00:00Z {request} Task timed out after 900.00 seconds")
    lines.append(f"END RequestId: {request}")
    if rank != 5:
        lines.append(
            f"REPORT RequestId: {request}\tDuration: {6000 + rank}.00 ms\tBilled Duration: "
            f"{6500 + rank} ms\tMemory Size: 10240 MB\tMax Memory Used: {2800 + rank} MB\t"
            + ("Init Duration: 499.10 ms\t" if rank < STREAMS else "")
            + ("Status: timeout" if rank == 3 else "")
        )
    return lines


def fill(client, began: float) -> None:
    """Two runs of 60 ranks over 7 streams; a stream's invocations follow one another."""
    client.create_log_group(logGroupName=GROUP)
    for stream in range(STREAMS):
        name = f"2026/11/20/[$LATEST]{stream:032x}"
        client.create_log_stream(logGroupName=GROUP, logStreamName=name)
        lines = [
            line
            for path in ("result-partition-25MB/1GB/1", "result-partition-25MB/1GB/2")
            for rank in range(stream, RANKS, STREAMS)
            for line in lines_of(rank, path)
        ]
        events = [
            {"timestamp": round((began + 0.01 * n) * 1e3), "message": line}
            for n, line in enumerate(lines)
        ]
        client.put_log_events(logGroupName=GROUP, logStreamName=name, logEvents=events)


def check(runs) -> None:
    """By hand: 59 REPORTs a run, of 6,000 + rank ms; 58 of 60 ranks ended well."""
    assert [run.name.rpartition("/")[2] for run in runs] == ["1", "2"]
    for run in runs:
        assert (run.expected, run.received, run.unreported) == (60, 58, 1)
        assert run.is_complete is False
        assert len(run.reports) == 59
        assert sum(report.cold for report in run.reports) == STREAMS - 1  # rank 5 has no REPORT
        reported = [rank for rank in range(RANKS) if rank != 5]
        assert sorted(run.durations) == [(6000 + rank) / 1e3 for rank in reported]
        assert sum(r.billed_ms for r in run.reports) == sum(6500 + rank for rank in reported)
        assert run.max_memory_mb == 2859
        assert (run.partition, run.data, run.batch_size) == ("25MB", "1GB", 512)


@pytest.fixture(scope="module")
def group(ministack):
    began = time.time() - 600
    fill(boto3.client("logs"), began)
    return began


def test_a_log_group_on_ministack(group):
    check(group_runs(Calls(Aws()), [GROUP], group - 1, time.time(), None, LoadOptions()))


def test_the_same_on_moto_page_by_page(monkeypatch):
    """A second server; its pages hold few events here, so that there are many of them."""
    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_REGION": "us-east-1"}
        settings |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        calls, began = Calls(Aws()), time.time() - 600
        client = calls.client("logs")
        fill(client, began)
        client.meta.events.register("provide-client-params.cloudwatch-logs.FilterLogEvents", _few)
        check(group_runs(calls, [GROUP], began - 1, time.time(), None, LoadOptions()))
        total = STREAMS * 2 * sum(len(lines_of(rank, "a/1")) for rank in range(RANKS)) / STREAMS
        assert calls.counts["cloudwatch-logs.FilterLogEvents"] >= total / EVENTS_A_CALL
        with pytest.raises(NotFoundError):
            group_runs(calls, ["/aws/lambda/none"], 0, time.time(), None, LoadOptions())
    finally:
        server.stop()


def _few(params, **_):
    params["limit"] = EVENTS_A_CALL


def test_the_command_with_times(group, capsys):
    since = datetime.fromtimestamp(group - 1, UTC).isoformat()
    words = ["table", "--log-group", GROUP, "--from", since, "--format", "csv", "--table", "runs"]
    assert main(words) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3
    assert rows[1].startswith("1GB,512,60,58/60,6.059,slowest worker")
    assert main(["table", "--log-group", GROUP, "--from", "2020-01-01", "--to", "2020-01-02"]) == 2
    assert "no invocation was logged" in capsys.readouterr().err
    assert main(["table", "--log-group", GROUP]) == 2
    assert "needs --from" in capsys.readouterr().err
    assert main(["table", "--log-group", GROUP, "--from", "yesterday"]) == 2
    assert "is not a time" in capsys.readouterr().err


@pytest.fixture(scope="module")
def others(ministack):
    """A state machine of somebody else: init, an inline map over two items, an end; executed."""
    roles, machines = boto3.client("iam"), boto3.client("stepfunctions")
    trust = {"Version": "2012-10-17", "Statement": []}
    role = roles.create_role(RoleName="others", AssumeRolePolicyDocument=json.dumps(trust))
    wait = {"Type": "Wait", "Seconds": 1, "End": True}
    definition = {
        "StartAt": "Init",
        "States": {
            "Init": {"Type": "Pass", "Result": [1, 2], "ResultPath": "$.items", "Next": "Each"},
            "Each": {
                "Type": "Map", "ItemsPath": "$.items", "ResultPath": None, "Next": "Finish",
                "ItemProcessor": {"StartAt": "Work", "States": {"Work": wait}},
            },
            "Finish": {"Type": "Succeed"},
        },
    }  # fmt: skip
    made = machines.create_state_machine(
        name="others", definition=json.dumps(definition), roleArn=role["Role"]["Arn"]
    )
    arn = made["stateMachineArn"]
    for number in (1, 2):
        given = {"result_path": f"result-partition-25MB/2GB/{number}"}
        machines.start_execution(stateMachineArn=arn, name=f"e{number}", input=json.dumps(given))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        states = machines.list_executions(stateMachineArn=arn)["executions"]
        if all(state["status"] == "SUCCEEDED" for state in states):
            break
        time.sleep(0.1)
    return arn


def test_executions_of_others_give_the_times_of_their_steps(others):
    calls, client = Calls(Aws()), boto3.client("logs")
    client.create_log_group(logGroupName=INIT)
    client.create_log_stream(logGroupName=INIT, logStreamName="one")
    found = boto3.client("stepfunctions").list_executions(stateMachineArn=others)["executions"]
    began = min(entry["startDate"] for entry in found).timestamp()
    lines = [
        line.replace("1GB", "2GB")
        for number in (1, 2)
        for line in lines_of(number, f"result-partition-25MB/1GB/{number}")
    ]
    events = [{"timestamp": round(began * 1e3) + n, "message": m} for n, m in enumerate(lines)]
    client.put_log_events(logGroupName=INIT, logStreamName="one", logEvents=events)
    runs = group_runs(calls, [INIT], began - 5, time.time(), others, LoadOptions())
    assert len(runs) == 2
    for run in runs:
        execution = run.execution
        assert run.whole.seconds == pytest.approx(execution.seconds)
        assert run.whole.what == "whole execution"
        assert 0 < run.map.seconds <= run.whole.seconds
        assert [step.name for step in execution.steps] == ["Init", "Each", "Finish"]
        assert run.usage.transitions == execution.transitions >= 3
        assert len(run.reports) == 1


def test_no_invocation_at_all_is_a_sentence(ministack):
    client = boto3.client("logs")
    client.create_log_group(logGroupName="/aws/lambda/empty")
    with pytest.raises(BadInputError, match="no invocation was logged in /aws/lambda/empty"):
        group_runs(Calls(Aws()), ["/aws/lambda/empty"], 0, time.time(), None, LoadOptions())
