"""A run on AWS goes on whoever watches it: what cannot be seen is a note, not the end.

Step Functions' and S3's answers come from a real server, worded as AWS documents them.
"""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
from small_s3 import BUCKET, Answer, error, serving

from perseid.aws.engine import AwsEngine
from perseid.aws.executions import Executions, Started
from perseid.aws.observe.calls import Calls
from perseid.aws.session import Aws
from perseid.aws.stack_resources import StackResources
from perseid.errors import AwsError, ForbiddenError, NotFoundError, RunError

MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:perseid"
PLACE = StackResources(MACHINE, BUCKET, "worker", "initialize", "summarize", 1769)
STARTED = Started(PLACE.execution("one"), f"s3://{BUCKET}/runs/one")


def answered(value: object, status: int = 200) -> Answer:
    return Answer(
        status, json.dumps(value).encode(), {"Content-Type": "application/x-amz-json-1.0"}
    )


def refused(code: str) -> Answer:
    return answered({"__type": code, "message": "words of AWS"}, 400)


@pytest.fixture
def states(monkeypatch, tmp_path):
    """A server; ``server.looks`` is what DescribeExecution answers, look by look."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        server.looks = []
        counts = {"total": 2, "pending": 0, "running": 1, "succeeded": 1, "failed": 0,
                  "timedOut": 0, "aborted": 0, "resultsWritten": 0}  # fmt: skip

        def answer(asked):
            action = asked.headers.get("x-amz-target", "").rpartition(".")[2]
            if action == "DescribeExecution":
                look = server.looks.pop(0) if len(server.looks) > 1 else server.looks[0]
                if isinstance(look, Answer):
                    return look
                return answered({"status": look, "startDate": time.time(), "input": "{}"})
            if action == "ListMapRuns":
                return answered({"mapRuns": [{"mapRunArn": MACHINE + ":map"}]})
            if action == "DescribeMapRun":
                return answered({"itemCounts": counts, "status": "RUNNING"})
            return error(403, "AccessDenied", "Access Denied")

        server.answer = answer
        for name, value in {
            "AWS_ENDPOINT_URL": server.endpoint, "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1", "HOME": str(tmp_path),
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield server


def watch(**options):
    notes, seen = [], []
    Executions(Calls(Aws()), PLACE).watch(
        STARTED, seen.append, first=0.01, longest=0.02, note=notes.append, **options
    )
    return notes, [now.status for now in seen]


def test_records_that_may_not_be_read_are_a_note(states):
    states.looks = ["RUNNING", "RUNNING", "SUCCEEDED"]
    notes, seen = watch()
    assert seen == ["RUNNING", "RUNNING", "SUCCEEDED"]
    assert len(notes) == 1, "the same trouble is told once"
    assert "the run goes on" in notes[0]
    assert "s3:ListBucket" in notes[0]


def test_looks_that_fail_are_notes_until_one_works(states):
    states.looks = ["RUNNING", refused("ExpiredTokenException"), refused("AccessDeniedException"),
                    "SUCCEEDED"]  # fmt: skip
    notes, seen = watch()
    assert seen == ["RUNNING", "SUCCEEDED"]
    assert sum("ExpiredTokenException" in note for note in notes) == 1
    assert sum("may not call" in note for note in notes) == 1


def test_who_cannot_look_for_long_is_told_that_the_run_goes_on(states):
    states.looks = [refused("AccessDeniedException")]
    with pytest.raises(RunError, match=r"one goes on without this command: `perseid status s3://"):
        watch(patience=0.2)


def test_an_execution_that_is_gone_is_no_trouble_that_passes(states):
    states.looks = [refused("ExecutionDoesNotExist")]
    with pytest.raises(NotFoundError):
        watch()


@pytest.mark.parametrize("fails", ["the mark", "the start"])
def test_a_submission_that_fails_leaves_no_execution_and_no_mark(states, fails):
    """Whoever submits removes the run then: an execution that goes on would lose its items."""

    def answer(asked):
        if asked.headers.get("x-amz-target", "").endswith("StartExecution"):
            return refused("StateMachineDoesNotExist")
        if fails == "the mark" and (asked.method, asked.key) == ("PUT", "runs/one/driver.json"):
            return error(403, "AccessDenied", "Access Denied")
        return None

    states.answer = answer
    engine = AwsEngine(executions=Executions(Calls(Aws()), PLACE))
    manifest = SimpleNamespace(run_id="one", results_url=f"s3://{BUCKET}/runs/one", request={})
    with pytest.raises(ForbiddenError if fails == "the mark" else (AwsError, NotFoundError)):
        engine.submit(manifest)
    started = [a for a in states.asked if "StartExecution" in a.headers.get("x-amz-target", "")]
    assert len(started) == (fails == "the start")
    assert "runs/one/driver.json" not in states.objects
