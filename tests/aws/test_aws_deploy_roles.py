"""The worker's role enforced: ministack with AUTH=true evaluates the policies of the template."""

from __future__ import annotations

import io
import json
import sys
import zipfile

import boto3
import ministack as doubles
import pytest

from perseid.aws.deploy import deploy
from perseid.aws.session import Aws
from perseid.aws.template import Options

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PROBE = '''
import boto3
def handler(event, context):
    """Make one call with the function's own role; the error's code, or ok."""
    client = boto3.client(event["service"])
    try:
        getattr(client, event["call"])(**event["with"])
    except client.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    return "ok"
'''


@pytest.fixture(scope="module")
def strict(packages_folder):
    """A stack on a server that enforces IAM; the worker's code replaced by a probe of its role."""
    with (
        doubles.running(AUTH="true", LAMBDA_STRICT="0") as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.env.items():
            patch.setenv(name, value)
        aws = Aws()
        done = deploy(
            aws, Options(python=PYTHON), packages_folder, lambda event: None, lambda changes: True,
            compression=1,
        )  # fmt: skip
        probe = io.BytesIO()
        with zipfile.ZipFile(probe, "w") as archive:
            archive.writestr("probe.py", PROBE)
        client = boto3.client("lambda")
        for part in ("Initialize", "Worker", "Summarize", "Ping"):
            name = done.outputs[f"{part}Function"]
            client.update_function_code(FunctionName=name, ZipFile=probe.getvalue())
            client.update_function_configuration(FunctionName=name, Handler="probe.handler")
        aws.client("s3").create_bucket(Bucket="somebody-elses")
        for bucket in ("somebody-elses", done.outputs["Bucket"]):
            aws.client("s3").put_object(Bucket=bucket, Key="object", Body=b"x")
        yield aws, dict(done.outputs)


def attempt(strict, part, service, call, **arguments):
    """What the role of a function gets for an answer."""
    aws, outputs = strict
    event = {"service": service, "call": call, "with": arguments}
    answer = aws.client("lambda").invoke(
        FunctionName=outputs[f"{part}Function"], Payload=json.dumps(event).encode()
    )
    said = json.loads(answer["Payload"].read())
    assert isinstance(said, str), said
    return said


def test_a_worker_may_do_its_work(strict):
    bucket = strict[1]["Bucket"]
    assert attempt(strict, "Worker", "s3", "get_object", Bucket=bucket, Key="object") == "ok"
    assert (
        attempt(strict, "Worker", "s3", "put_object", Bucket=bucket, Key="r/0.json", Body="x")
        == "ok"
    )
    assert attempt(strict, "Worker", "s3", "list_objects_v2", Bucket=bucket) == "ok"
    absent = attempt(strict, "Worker", "s3", "get_object", Bucket=bucket, Key="absent")
    assert absent == "NoSuchKey"  # not 403: the pipeline must tell them apart
    name = strict[1]["RendezvousSecretParameter"]
    assert attempt(strict, "Worker", "ssm", "get_parameter", Name=name, WithDecryption=True) == "ok"


@pytest.mark.parametrize(
    ("service", "call", "arguments"),
    [
        ("s3", "get_object", {"Bucket": "somebody-elses", "Key": "object"}),
        ("s3", "put_object", {"Bucket": "somebody-elses", "Key": "object", "Body": "x"}),
        ("s3", "list_objects_v2", {"Bucket": "somebody-elses"}),
        ("s3", "delete_bucket", {"Bucket": "somebody-elses"}),
        ("ssm", "get_parameter", {"Name": "/perseid/rendezvous-address"}),
        ("ssm", "put_parameter", {"Name": "/perseid/rendezvous-secret", "Value": "x",
                                  "Overwrite": True}),
        ("lambda", "invoke", {"FunctionName": "perseid-initialize"}),
        ("stepfunctions", "list_state_machines", {}),
        ("iam", "list_roles", {}),
        ("ecs", "list_clusters", {}),
    ],
)  # fmt: skip
def test_a_worker_may_do_nothing_else(strict, service, call, arguments):
    said = attempt(strict, "Worker", service, call, **arguments)
    assert said in ("AccessDenied", "AccessDeniedException"), said


@pytest.mark.parametrize("part", ["Initialize", "Worker", "Summarize"])
def test_no_run_may_change_what_the_functions_and_the_task_execute(strict, part):
    """A script of a run would else put its own server where the rendezvous' task fetches it."""
    aws, outputs = strict
    listed = aws.client("s3").list_objects_v2(Bucket=outputs["Bucket"], Prefix="perseid/")
    keys = [entry["Key"] for entry in listed["Contents"]]
    assert any("/code/tools-" in key for key in keys), keys
    for key in (*keys, "perseid/another/code/tools-0.zip"):
        where = {"Bucket": outputs["Bucket"], "Key": key}
        refused = attempt(strict, part, "s3", "put_object", **where, Body="x")
        assert refused == "AccessDenied", key
        assert attempt(strict, part, "s3", "delete_object", **where) == "AccessDenied", key


def test_summarize_may_not_read_the_secret_and_ping_may_do_nothing(strict):
    bucket, secret = strict[1]["Bucket"], strict[1]["RendezvousSecretParameter"]
    refused = ("AccessDenied", "AccessDeniedException")
    assert attempt(strict, "Summarize", "s3", "get_object", Bucket=bucket, Key="object") == "ok"
    assert (
        attempt(strict, "Summarize", "s3", "delete_object", Bucket=bucket, Key="object") in refused
    )
    assert attempt(strict, "Summarize", "ssm", "get_parameter", Name=secret) in refused
    assert attempt(strict, "Ping", "s3", "get_object", Bucket=bucket, Key="object") in refused
    assert attempt(strict, "Ping", "ssm", "get_parameter", Name=secret) in refused
