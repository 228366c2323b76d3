"""The worker's role enforced: ministack with AUTH=true evaluates the policies of the template."""

from __future__ import annotations

import io
import json
import zipfile

import ministack as doubles
import pytest
from double import PYTHON

from perseid.aws import stack as stacks
from perseid.aws.deploy.deployment import deploy
from perseid.aws.deploy.policy import deployer, rendezvous_deployer, runner
from perseid.aws.deploy.template import Options, default_bucket
from perseid.aws.session import Aws
from perseid.cli import main
from perseid.errors import StorageError
from perseid.rendezvous import Config, EmbeddedServer
from perseid.storage import Storage

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


GAPS = ["states:DescribeMapRun", "ecs:DescribeServices", "ecs:UpdateService", "ecs:ListTasks",
        "ecs:DescribeTasks"]  # fmt: skip


@pytest.fixture(scope="module")
def deployed(packages_folder):
    """A stack on a server that enforces IAM; this process is the account's root."""
    with (
        doubles.running(AUTH="true", LAMBDA_STRICT="0") as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.env.items():
            patch.setenv(name, value)
        aws = Aws()
        done = deploy(
            aws, Options(rendezvous=True), packages_folder, lambda event: None,
            lambda changes: True, compression=1, interpreter=PYTHON,
        )  # fmt: skip
        yield aws, dict(done.outputs)


@pytest.fixture(scope="module")
def data(deployed, put_survey):
    url = f"s3://{deployed[1]['Bucket']}/survey"
    put_survey(url, 3)
    return url


def as_person(aws, patch, name, policy):
    """From here on this process is a user with this policy and no other.

    ministack takes another resource than IAM's reference says for a few calls: those are allowed.
    """
    iam = aws.client("iam")
    policy["Statement"].append({"Effect": "Allow", "Action": GAPS, "Resource": "*"})
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    patch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    patch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])


def bad_findings(stack, capsys):
    """Doctor's lines of what is not as it should be."""
    capsys.readouterr()
    main(["aws", "doctor", "--stack", stack])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10
    return [line for line in lines if line.startswith("BAD")]


def test_the_roles_let_a_whole_run_work(deployed, data, monkeypatch):
    """Ranks that meet: address and secret of the stack are read, too. Then the run is replaced."""
    aws, outputs = deployed
    ssm, results = aws.client("ssm"), f"s3://{outputs['Bucket']}/runs/strict"
    secret = ssm.get_parameter(Name=outputs["RendezvousSecretParameter"], WithDecryption=True)
    config = Config(
        host="127.0.0.1", port=0, http_port=None, secret=secret["Parameter"]["Value"].encode()
    )
    words = ["run", "--engine", "aws", "--data", data, "--out", results, "--quiet"]
    iam = aws.client("iam")
    for role in iam.list_roles()["Roles"]:  # ministack asks for the cluster's ARN: see `as_person`
        if "InitializeRole" in role["RoleName"] or "SummarizeRole" in role["RoleName"]:
            gaps = {"Effect": "Allow", "Action": GAPS[1:3], "Resource": "*"}
            document = json.dumps({"Version": "2012-10-17", "Statement": [gaps]})
            iam.put_role_policy(
                RoleName=role["RoleName"], PolicyName="gaps", PolicyDocument=document
            )
    aws.client("ecs").update_service(  # it runs already: the run need not start it
        cluster=outputs["RendezvousCluster"], service=outputs["RendezvousService"], desiredCount=1
    )
    with EmbeddedServer(config) as server:
        ssm.put_parameter(
            Name=outputs["RendezvousAddressParameter"], Overwrite=True,
            Value=json.dumps({"address": str(server.address)}),
        )  # fmt: skip
        assert main([*words, "--transport", "direct"]) == 0
    records = json.loads(Storage(results).get("combined_data.json"))
    assert [record["transport"] for record in records] == ["direct"] * 3
    assert main([*words, "--replace"]) == 0


@pytest.mark.parametrize(
    ("keys", "option"),
    [({"data": "s3://locked/survey"}, "--data-bucket"),
     ({"results": "s3://locked/runs/1"}, "--results-bucket")],
)  # fmt: skip
def test_a_bucket_that_the_roles_may_not_use_is_named_with_the_remedy(
    deployed, data, put_survey, capsys, keys, option
):
    aws, outputs = deployed
    aws.client("s3").create_bucket(Bucket="locked")
    put_survey("s3://locked/survey", 2, rows=8)  # who starts the run may read it
    given = {"data": data, "results": f"s3://{outputs['Bucket']}/runs/locked"} | keys
    words = ["--data", given["data"], "--out", given["results"]]
    assert main(["run", "--engine", "aws", *words, "--quiet"]) == 2
    assert f"`perseid aws deploy {option} locked`" in capsys.readouterr().err


def test_the_policy_of_who_runs_is_enough_to_run_and_no_more(deployed, data, monkeypatch, capsys):
    aws, outputs = deployed
    bucket = outputs["Bucket"]
    policy = runner("perseid", aws.account, aws.region, [bucket], [bucket])
    as_person(aws, monkeypatch, "runs", policy)
    results = f"s3://{bucket}/runs/person"
    words = ["--engine", "aws", "--data", data, "--out", results]
    assert main(["run", *words, "--detach", "--quiet"]) == 0, capsys.readouterr()
    assert main(["logs", results, "--follow"]) == 0, capsys.readouterr()
    assert main(["status", results, "--wait"]) == 0, capsys.readouterr()
    assert "complete: 3 of 3 ranks" in capsys.readouterr().out
    assert main(["table", results]) == 0
    assert main(["resume", results, "--engine", "aws", "--quiet"]) == 0, capsys.readouterr()
    assert main(["aws", "rendezvous", "status"]) == 0, capsys.readouterr()
    assert main(["aws", "rendezvous", "stop"]) == 0, capsys.readouterr()
    assert bad_findings("perseid", capsys) == []
    listed = Storage(f"s3://{bucket}/perseid").list()
    code = next(info.key for info in listed if "/code/tools-" in info.key)
    with pytest.raises(StorageError, match="may not do this"):
        Storage(f"s3://{bucket}/perseid").put(code, b"another server")
    assert main(["aws", "destroy", "--yes"]) == 2
    assert "these credentials may not call DeleteStack" in capsys.readouterr().err
    assert stacks.describe(Aws(), "perseid") is not None


def test_the_policy_of_who_deploys_is_enough_to_deploy_and_destroy(
    deployed, packages_folder, monkeypatch, capsys
):
    aws, _ = deployed
    bucket = default_bucket("theirs", aws.account, aws.region)
    policy = deployer("theirs", aws.account, aws.region, bucket)
    policy["Statement"] += rendezvous_deployer("theirs", aws.account, aws.region)["Statement"]
    as_person(aws, monkeypatch, "deploys", policy)
    mine = Aws()
    for timeout in (900, 60):
        done = deploy(
            mine, Options(name="theirs", rendezvous=True, timeout=timeout), packages_folder,
            lambda event: None, lambda changes: True, compression=1, interpreter=PYTHON,
        )  # fmt: skip
        assert done.outputs["WorkerTimeout"] == str(timeout)
    assert bad_findings("theirs", capsys) == []
    for what in ("status", "stop"):
        assert main(["aws", "rendezvous", what, "--stack", "theirs"]) == 0, capsys.readouterr()
    capsys.readouterr()
    assert main(["aws", "destroy", "--stack", "perseid", "--yes"]) == 2
    assert "may not call" in capsys.readouterr().err
    assert main(["aws", "destroy", "--stack", "theirs", "--yes", "--delete-bucket"]) == 0
    assert stacks.describe(aws, "theirs") is None


TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
                   "Principal": {"Service": ["lambda.amazonaws.com", "states.amazonaws.com"]}}],
}  # fmt: skip
LAB = "s3:* logs:* lambda:* states:* ssm:GetParameter"
"""What the one role of a lab's account may do; it need not be narrow."""
DENIED = ("iam:Create* iam:Put* iam:Attach* iam:Delete* iam:Get* iam:List* ec2:* ecs:* events:* "
          "route53:*")  # fmt: skip


def lab_role(iam):
    """The role that the account's owner made, and that nobody there may change."""
    made = iam.create_role(RoleName="LabRole", AssumeRolePolicyDocument=json.dumps(TRUST))
    may = {"Effect": "Allow", "Action": LAB.split(), "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [may]})
    iam.put_role_policy(RoleName="LabRole", PolicyName="own", PolicyDocument=document)
    return made["Role"]["Arn"]


def test_a_store_only_stack_is_deployed_run_and_destroyed_without_iam_ec2_and_ecs(
    deployed, packages_folder, put_survey, monkeypatch, capsys
):
    """As in a student's lab account: one role is there, none may be made, and no network."""
    aws, _ = deployed
    bucket, role = "students", lab_role(aws.client("iam"))
    aws.client("s3").create_bucket(Bucket=bucket)
    policy = deployer("lab", aws.account, aws.region, bucket, role=role)
    policy["Statement"] += runner("lab", aws.account, aws.region, [bucket], [bucket])["Statement"]
    policy["Statement"] = [s for s in policy["Statement"] if s["Effect"] == "Allow"]
    policy["Statement"].append({"Effect": "Deny", "Action": DENIED.split(), "Resource": "*"})
    as_person(aws, monkeypatch, "student", policy)
    done = deploy(
        Aws(), Options(name="lab", bucket=bucket, role=role), packages_folder,
        lambda event: None, lambda changes: True, compression=1, interpreter=PYTHON,
    )  # fmt: skip
    assert not any(name.startswith(("Ping", "Dns", "RendezvousC")) for name in done.outputs)
    assert bad_findings("lab", capsys) == []
    put_survey(f"s3://{bucket}/survey", 3)
    run = f"s3://{bucket}/runs/1"
    words = ["--engine", "aws", "--stack", "lab", "--data", f"s3://{bucket}/survey", "--out"]
    refused = [*words, f"{run}0", "--quiet", "--transport", "direct"]
    assert main(["run", *refused]) == 2
    assert "this stack has no rendezvous" in capsys.readouterr().err
    assert list(Storage(f"{run}0").list()) == []  # the place is free again
    assert main(["run", *words, run, "--quiet"]) == 0, capsys.readouterr().err
    assert main(["table", run]) == 0, capsys.readouterr().err
    assert main(["aws", "rendezvous", "status", "--stack", "lab"]) == 2
    assert "this stack has no rendezvous" in capsys.readouterr().err
    assert main(["aws", "destroy", "--stack", "lab", "--yes"]) == 0, capsys.readouterr().err
    assert stacks.describe(aws, "lab") is None


@pytest.fixture(scope="module")
def strict(deployed):
    """The stack, the code of its functions replaced by a probe of their roles."""
    aws, outputs = deployed
    probe = io.BytesIO()
    with zipfile.ZipFile(probe, "w") as archive:
        archive.writestr("probe.py", PROBE)
    client = aws.client("lambda")
    for part in ("Initialize", "Worker", "Summarize", "Ping", "DnsUpdater"):
        name = outputs[f"{part}Function"]
        client.update_function_code(FunctionName=name, ZipFile=probe.getvalue())
        client.update_function_configuration(FunctionName=name, Handler="probe.handler")
    roles = {r["LogicalResourceId"]: r["PhysicalResourceId"]
             for r in aws.client("cloudformation").list_stack_resources(StackName="perseid")[
                 "StackResourceSummaries"]}  # fmt: skip
    for part in ("StateMachine", "Task", "TaskExecution"):  # as if a function had it
        role = aws.client("iam").get_role(RoleName=roles[f"{part}Role"])["Role"]["Arn"]
        outputs[f"{part}Function"] = f"probe-{part}"
        client.create_function(
            FunctionName=f"probe-{part}", Runtime="python3.12", Handler="probe.handler",
            Role=role, Code={"ZipFile": probe.getvalue()}, Timeout=60,
        )  # fmt: skip
    aws.client("s3").create_bucket(Bucket="somebody-elses")
    for bucket in ("somebody-elses", outputs["Bucket"]):
        aws.client("s3").put_object(Bucket=bucket, Key="object", Body=b"x")
    return aws, outputs


def attempt(strict, part, service, call, /, **arguments):
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


REFUSED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")
OBJECT = {"Bucket": "{Bucket}", "Key": "object"}
OTHER = {"Bucket": "somebody-elses", "Key": "object"}
SECRET = {"Name": "{RendezvousSecretParameter}", "WithDecryption": True}
NEW_SECRET = {"Name": "{RendezvousSecretParameter}", "Value": "x", "Overwrite": True}
ADDRESS = {"Name": "{RendezvousAddressParameter}"}
CLUSTER = {"cluster": "{RendezvousCluster}"}


def filled(arguments, outputs):
    return {key: value.format(**outputs) if isinstance(value, str) else value
            for key, value in arguments.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "service", "call", "arguments"),
    [
        ("Initialize", "s3", "get_object", OBJECT),
        ("Initialize", "s3", "put_object", OBJECT | {"Body": "x"}),
        ("Initialize", "ssm", "get_parameter", ADDRESS),
        ("Initialize", "ssm", "get_parameter", SECRET),
        ("Summarize", "s3", "get_object", OBJECT),
        ("Summarize", "s3", "put_object", OBJECT | {"Body": "x"}),
        ("DnsUpdater", "ec2", "describe_network_interfaces", {}),
        ("DnsUpdater", "ssm", "get_parameter", ADDRESS),
        ("DnsUpdater", "ssm", "put_parameter", ADDRESS | {"Value": "{{}}", "Overwrite": True}),
        ("StateMachine", "s3", "get_object", OBJECT),
        ("StateMachine", "lambda", "invoke", {"FunctionName": "{WorkerFunction}",
                                              "InvocationType": "DryRun"}),
        ("StateMachine", "lambda", "invoke", {"FunctionName": "{LargerWorkerFunction}",
                                              "InvocationType": "DryRun"}),
    ],
)  # fmt: skip
def test_a_role_may_do_its_work(strict, part, service, call, arguments):
    """ministack knows neither the condition of ListTasks nor the resource of GetParameters."""
    said = attempt(strict, part, service, call, **filled(arguments, strict[1]))
    assert said == "ok"


@pytest.mark.parametrize(
    ("part", "service", "call", "arguments"),
    [
        ("Initialize", "ssm", "put_parameter", NEW_SECRET),
        ("Initialize", "s3", "get_object", OTHER),
        ("Initialize", "lambda", "invoke", {"FunctionName": "perseid-worker"}),
        ("Initialize", "ecs", "delete_service", CLUSTER | {"service": "perseid-rendezvous"}),
        ("Summarize", "ecs", "delete_service", CLUSTER | {"service": "perseid-rendezvous"}),
        ("Summarize", "s3", "delete_object", OTHER),
        ("Summarize", "s3", "put_object", OTHER | {"Body": "x"}),
        ("Summarize", "ssm", "get_parameter", SECRET),
        ("Summarize", "ssm", "get_parameter", ADDRESS),
        ("Ping", "s3", "get_object", OBJECT),
        ("Ping", "ssm", "get_parameter", SECRET),
        ("Ping", "ssm", "get_parameter", ADDRESS),
        ("DnsUpdater", "ssm", "get_parameter", SECRET),
        ("DnsUpdater", "ssm", "put_parameter", NEW_SECRET),
        ("DnsUpdater", "s3", "get_object", OBJECT),
        ("DnsUpdater", "ecs", "delete_service", CLUSTER | {"service": "perseid-rendezvous"}),
        ("DnsUpdater", "route53", "list_hosted_zones", {}),
        ("StateMachine", "lambda", "invoke", {"FunctionName": "{PingFunction}"}),
        ("StateMachine", "s3", "put_object", OBJECT | {"Body": "x"}),
        ("StateMachine", "s3", "get_object", OTHER),
        ("StateMachine", "ssm", "get_parameter", SECRET),
        ("Task", "s3", "get_object", OBJECT),
        ("Task", "ssm", "get_parameter", SECRET),
        ("TaskExecution", "s3", "get_object", OBJECT),
        ("TaskExecution", "ssm", "get_parameter", SECRET),
    ],
)  # fmt: skip
def test_a_role_may_do_nothing_else(strict, part, service, call, arguments):
    said = attempt(strict, part, service, call, **filled(arguments, strict[1]))
    assert said in REFUSED, said


def test_the_rendezvous_task_may_fetch_its_package_alone(strict):
    aws, outputs = strict
    listed = aws.client("s3").list_objects_v2(Bucket=outputs["Bucket"], Prefix="perseid/")
    keys = [entry["Key"] for entry in listed["Contents"]]
    said = {key: attempt(strict, "Task", "s3", "get_object", Bucket=outputs["Bucket"], Key=key)
            for key in keys}  # fmt: skip
    allowed = [key for key, answer in said.items() if answer == "ok"]
    assert len(allowed) == 1
    assert "/tools-" in allowed[0]
