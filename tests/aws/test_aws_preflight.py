"""What would fail is found before an execution starts, with a sentence each."""

from __future__ import annotations

from dataclasses import replace

import boto3
import pytest
from botocore.stub import Stubber

from perseid.aws.preflight import CHECKS, Preflight
from perseid.aws.session import Aws
from perseid.aws.stack_resources import StackResources
from perseid.cli import main
from perseid.pipeline.initialize import plan
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage


def run_of(stack, data, transport="store", **parameters):
    """A run of four ranks that is about to start on a stack with these parameters."""
    results = f"{stack.bucket}/runs/preflight"
    manifest = plan(RunRequest.parse({"data": data, "results": results, "transport": transport}))
    place = StackResources.of_outputs(stack.outputs, "perseid")
    run = Preflight(Aws(), "perseid", place, manifest)
    run.__dict__["parameters"] = {**run.parameters, **parameters}
    return run


def said(run, name):
    return dict(CHECKS)[name](run)


def test_nothing_is_in_the_way_and_nothing_is_started(stack, faulty_data, capsys):
    machine, out = stack.outputs["StateMachineArn"], f"{stack.bucket}/runs/looked-at"
    client = stack.aws.client("stepfunctions")
    before = len(client.list_executions(stateMachineArn=machine)["executions"])
    words = ["run", "--engine", "aws", "--data", faulty_data, "--out", out, "--dry-run"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[6:20].strip() for line in lines[:-1]] == [name for name, _ in CHECKS]
    assert not [line for line in lines if line.startswith("BAD")]
    assert lines[-1] == "4 ranks can be started; nothing was started"
    assert len(client.list_executions(stateMachineArn=machine)["executions"]) == before
    assert list(Storage(out).list()) == []


def test_data_that_the_functions_may_not_read_keep_a_run_from_starting(stack, put_survey, capsys):
    boto3.client("s3").create_bucket(Bucket="strangers")
    put_survey("s3://strangers/25MB", 2)
    out = f"{stack.bucket}/runs/strange"
    words = ["run", "--engine", "aws", "--data", "s3://strangers/25MB", "--out", out, "--quiet"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "may not use strangers: `perseid aws deploy --data-bucket strangers`" in error
    assert "--no-preflight starts it nevertheless" in error
    assert list(Storage(out).list()) == []


@pytest.mark.parametrize(
    ("name", "parameters", "transport", "state", "words"),
    [
        ("concurrency", {"ReservedConcurrency": "2"}, "direct", "bad",
         "4 ranks have to run at once, and only 2 functions may"),
        ("concurrency", {"ReservedConcurrency": "2"}, "store", "note",
         "4 ranks run 2 at once, in about 2 rounds"),
        ("concurrency", {"ReservedConcurrency": "9"}, "direct", "ok", "4 ranks, 9 may run at once"),
        ("rendezvous", {"Rendezvous": "no"}, "relay", "bad", "this stack has no rendezvous"),
        ("rendezvous", {"Rendezvous": "no"}, "auto", "skip", "none is needed"),
        ("rights", {"ReadBuckets": "arn:aws:s3:::another"}, "store", "bad", "--results-bucket"),
    ],
)  # fmt: skip
def test_what_will_fail_is_a_sentence(
    stack, faulty_data, name, parameters, transport, state, words
):
    found = said(run_of(stack, faulty_data, transport, **parameters), name)
    assert found[0] == state
    assert words in found[1]


def test_too_little_memory_is_a_note(stack, faulty_data):
    run = run_of(stack, faulty_data)
    small = replace(run, place=replace(run.place, memory_mb=128))
    state, text = said(small, "memory")
    assert (state, "perseid aws deploy --memory" in text) == ("note", True)
    assert said(run, "memory")[0] == "ok"


@pytest.mark.parametrize(("decision", "state"), [("implicitDeny", "bad"), ("allowed", "ok")])
def test_iam_is_asked_what_the_workers_role_may(stack, faulty_data, decision, state):
    run = run_of(stack, faulty_data)
    actions = sum(len(names) for names in run.buckets.values())
    answer = {"EvaluationResults": [{"EvalActionName": "s3:GetObject", "EvalDecision": decision}]}
    with Stubber(run.aws.client("iam")) as stub:
        for _ in range(actions):
            stub.add_response("simulate_principal_policy", answer)
        found = said(run, "rights")
        stub.assert_no_pending_responses()
    assert found[0] == state
    assert ("s3:PutObject" in found[1]) == (state == "bad")


def test_who_may_not_ask_iam_is_not_kept_from_running(stack, faulty_data):
    run = run_of(stack, faulty_data)
    with Stubber(run.aws.client("iam")) as stub:
        stub.add_client_error("simulate_principal_policy", "AccessDenied", "no")
        found = {check.name: check.state for check in run.checks()}
    assert found["rights"] == "skip"


@pytest.mark.parametrize(("given", "state"), [("", "bad"), ("arn:aws:kms:us-east-1:1:key/k", "ok")])
def test_a_key_that_no_role_may_use(stack, put_survey, given, state):
    client = boto3.client("s3")
    client.create_bucket(Bucket="keyed")
    put_survey("s3://keyed/25MB", 2)
    rule = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "arn:aws:kms:us-east-1:1:key/k"}
    client.put_bucket_encryption(Bucket="keyed", ServerSideEncryptionConfiguration={
        "Rules": [{"ApplyServerSideEncryptionByDefault": rule}]})  # fmt: skip
    found = said(run_of(stack, "s3://keyed/25MB", KmsKey=given), "keys")
    assert found[0] == state


def test_results_in_another_region(stack, faulty_data):
    run = run_of(stack, faulty_data)
    with Stubber(run.aws.client("s3")) as stub:
        for _ in run.buckets:
            stub.add_response("head_bucket", {"BucketRegion": "eu-west-3"})
        state, text = said(run, "regions")
    assert state == "bad"
    assert "in eu-west-3, and Step Functions reads a run's items in us-east-1 only" in text


@pytest.mark.parametrize(
    ("states", "found"),
    [(("Pending", "Active"), "ok"), (("Pending", "Failed"), "bad"), (("Inactive",), "ok")],
)
def test_functions_that_are_being_created_are_waited_for(stack, faulty_data, states, found):
    run = run_of(stack, faulty_data)
    client = run.aws.client("lambda")
    with Stubber(client) as stubbed:
        for state in (*states, "Active", "Active"):
            stubbed.add_response("get_function_configuration", {"State": state})
        assert said(run, "functions")[0] == found
