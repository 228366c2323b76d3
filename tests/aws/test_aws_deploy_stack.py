"""The stack's life by the command line: dry run, deploy, deploy again, doctor, destroy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from double import PYTHON

from perseid.aws import stack as stacks
from perseid.aws.deploy.deployment import deploy, ensure_bucket
from perseid.aws.deploy.packaging import PACKAGES
from perseid.aws.deploy.template import Options, default_bucket, parameters
from perseid.aws.deploy.wheels import PYTHONS, Target
from perseid.aws.session import Aws
from perseid.aws.stack_resources import StackResources
from perseid.cli import main
from perseid.errors import AwsError, BadInputError, NotFoundError
from perseid.storage import Storage


def cli(*words, check=True, env=None):
    done = subprocess.run(
        [sys.executable, "-m", "perseid", *words], capture_output=True, text=True, timeout=120,
        env=env or os.environ, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def put(aws, folder, **options):
    """Deploy the stack ``other``; the changes that were shown, and the outputs."""
    shown = []
    done = deploy(
        aws, Options(name="other", rendezvous=True, **options), folder, lambda event: None,
        lambda changes: shown.extend(changes) or True, compression=1, interpreter=PYTHON,
    )  # fmt: skip
    return shown, done.outputs


def test_dry_run_writes_everything_without_aws(tmp_path):
    bare = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    bare |= {"HOME": os.environ["HOME"], "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    where = ("--zone", "/hostedzone/Z0123", "--record", "rendezvous.example.org")
    done = cli("aws", "deploy", "--dry-run", str(tmp_path), "--python", "3.12", *where, env=bare)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        "template.yaml", "statemachine.asl.json", "parameters.json", "policy-deploy.json",
        "policy-run.json", "worker.zip.txt", "control.zip.txt", "tools.zip.txt",
    }  # fmt: skip
    listing = (tmp_path / "worker.zip.txt").read_text()
    assert "perseid/model/data/default.onnx" in listing
    assert "numpy/__init__.py" in listing
    values = {
        entry["ParameterKey"]: entry["ParameterValue"]
        for entry in json.loads((tmp_path / "parameters.json").read_text())
    }
    assert values["CodeBucket"] == "perseid-account-region"
    assert values["HostedZoneId"] == "Z0123"  # whichever of its two forms Route 53 printed
    assert len(values["RendezvousStart"]) <= 4096  # CloudFormation's limit
    assert (tmp_path / "template.yaml").stat().st_size <= 51_200  # of a TemplateBody
    assert "of 250 MiB" in done.stdout
    assert "nothing was sent to AWS" in done.stdout


def test_a_stack_is_updated_in_place_and_keeps_what_is_not_said(stack, packages_folder):
    aws = stack.aws
    shown, outputs = put(aws, packages_folder, memory_mb=512, read_buckets=("surveys-elsewhere",))
    assert {change.action for change in shown} == {"Add"}
    assert {"Worker", "StateMachine", "Service"} <= {change.resource for change in shown}
    assert outputs["WorkerMemory"] == "512"
    same, _ = put(aws, packages_folder)
    assert same == []  # no change, nothing shown
    changed, outputs = put(aws, packages_folder, timeout=60, storage_mb=1024, error_logs=True)
    assert [(c.action, c.resource, c.replacement) for c in changed if c.resource == "Worker"] == [
        ("Modify", "Worker", False)
    ]
    function = aws.client("lambda").get_function_configuration(
        FunctionName=outputs["WorkerFunction"]
    )
    assert (function["MemorySize"], function["Timeout"]) == (512, 60)
    assert StackResources.of_outputs(outputs, "other").tmp_mb == 1024
    assert "StateMachine" in {change.resource for change in changed}
    values = stacks.describe(aws, "other").parameters
    assert values["ReadBuckets"].endswith("arn:aws:s3:::surveys-elsewhere")
    assert values["ErrorLogs"] == "yes"


def test_a_running_rendezvous_survives_a_deployment(stack, packages_folder):
    aws = stack.aws
    put(aws, packages_folder)
    ecs = aws.client("ecs")
    ecs.update_service(cluster="other", service="other-rendezvous", desiredCount=1)
    put(aws, packages_folder, timeout=120)
    [service] = ecs.describe_services(cluster="other", services=["other-rendezvous"])["services"]
    assert service["desiredCount"] == 1
    ecs.update_service(cluster="other", service="other-rendezvous", desiredCount=0)


def test_the_secret_is_in_no_template_parameter_or_output(stack):
    ssm = stack.aws.client("ssm")
    name = stack.outputs["RendezvousSecretParameter"]
    found = ssm.get_parameter(Name=name, WithDecryption=True)["Parameter"]
    assert found["Type"] == "SecureString"
    assert len(bytes.fromhex(found["Value"])) == 32
    cloudformation = stack.aws.client("cloudformation")
    said = json.dumps(cloudformation.describe_stacks(StackName="perseid"), default=str)
    said += json.dumps(cloudformation.describe_stack_events(StackName="perseid"), default=str)
    said += json.dumps(cloudformation.get_template(StackName="perseid"), default=str)
    assert found["Value"] not in said


def test_functions_have_a_role_and_a_kept_log_group_each(stack):
    functions = stack.aws.client("lambda").list_functions()["Functions"]
    ours = [f for f in functions if f["FunctionName"].startswith("perseid-")]
    assert len(ours) == 6
    assert len({f["Role"] for f in ours}) == 5
    assert not any(f.get("VpcConfig", {}).get("SubnetIds") for f in ours)
    groups = stack.aws.client("logs").describe_log_groups(logGroupNamePrefix="/aws/lambda/perseid-")
    kept = {g["logGroupName"]: g.get("retentionInDays") for g in groups["logGroups"]}
    named = {f["FunctionName"] for f in ours} - {"perseid-worker-larger"}  # logs as the worker does
    assert {f"/aws/lambda/{name}" for name in named} <= set(kept)
    assert set(kept.values()) == {30}


def test_doctor_says_of_each_thing_how_it_is(stack):
    done = cli("aws", "doctor", check=False)
    lines = {line[6:20].strip(): line[:4].strip() for line in done.stdout.splitlines()}
    assert lines["credentials"] == lines["stack"] == lines["roles"] == lines["clock"] == "ok"
    assert lines["functions"] == "ok", done.stdout
    assert lines["buckets"] == lines["state machine"] == "ok"
    assert lines["rendezvous"] == "-"
    assert "perseid aws rendezvous start" in done.stdout
    absent = cli("aws", "doctor", "--stack", "absent", check=False)
    assert absent.returncode == 1
    assert "perseid aws deploy" in absent.stdout


def test_destroy_leaves_data_and_says_what_stays(stack, packages_folder):
    aws = stack.aws
    _, outputs = put(aws, packages_folder)
    bucket = outputs["Bucket"]
    assert bucket == "perseid-000000000000-us-east-1-other"
    storage = Storage(f"s3://{bucket}")
    storage.put("survey/1.pt", b"data")
    asked = cli("aws", "destroy", "--stack", "other", check=False)
    assert asked.returncode == 2
    assert "--yes" in asked.stderr
    done = cli("aws", "destroy", "--stack", "other", "--yes")
    assert f"kept: s3://{bucket}" in done.stdout
    assert stacks.describe(aws, "other") is None
    assert [info.key for info in storage.list()] == ["survey/1.pt"]
    with pytest.raises(aws.client("ssm").exceptions.ParameterNotFound):
        aws.client("ssm").get_parameter(Name="/other/rendezvous-secret")
    with pytest.raises(NotFoundError, match="perseid aws deploy"):
        stacks.outputs(aws, "other")
    again = cli("aws", "destroy", "--stack", "other", "--yes", "--delete-bucket")
    assert "kept:" not in again.stdout
    assert bucket not in [b["Name"] for b in aws.client("s3").list_buckets()["Buckets"]]


def test_a_failed_deployment_names_what_failed_first(stack, packages_folder):
    with pytest.raises(AwsError, match="Worker"):
        deploy(
            stack.aws, Options(name="broken", layers=("no-arn",)), packages_folder,
            lambda event: None, lambda changes: True, compression=1, interpreter=PYTHON,
        )  # fmt: skip
    before = stacks.describe(stack.aws, "broken")
    assert before is not None
    assert before.status == "ROLLBACK_COMPLETE"
    done = deploy(  # what made it fail is not sent again
        stack.aws, Options(name="broken"), packages_folder, lambda event: None,
        lambda changes: True, compression=1, interpreter=PYTHON,
    )  # fmt: skip
    assert done.changed
    assert stacks.describe(stack.aws, "broken").parameters["WorkerLayers"] == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory_mb": 64}, "WorkerMemory"),
        ({"reserved": -1}, "ReservedConcurrency"),
        ({"log_days": 17}, "LogRetention"),
        ({"read_buckets": ("s3://surveys/25MB",)}, "names of buckets"),
        ({"write_buckets": ("Results_here",)}, "names of buckets"),
    ],
)
def test_values_that_aws_would_refuse_late_are_refused_before_anything_is_made(
    stack, packages_folder, options, said
):
    with pytest.raises(AwsError, match=said):
        deploy(
            stack.aws, Options(name="refused", **options), packages_folder,
            lambda event: None, lambda changes: True, compression=1, interpreter=PYTHON,
        )  # fmt: skip
    left = stacks.describe(stack.aws, "refused")
    assert left is None or left.under_review


@pytest.mark.parametrize("previous", [{}, {"Runtime": "python3.11"}, {"Runtime": "python3.13"}])
def test_a_runtime_that_the_wheels_do_not_fit_is_neither_chosen_nor_inherited(previous):
    """Lambda's 3.11 has glibc 2.26; whoever deploys may well run 3.11 themselves."""
    target = Options().target(previous)
    own = PYTHON if PYTHON in PYTHONS else "3.12"
    assert target.python == ("3.13" if previous.get("Runtime") == "python3.13" else own)
    with pytest.raises(BadInputError, match=r"cannot run Python '3\.11'.*choose 3\.12"):
        Target(python="3.11")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "has_underscore"}, "letters, digits"),
        ({"name": "1st"}, "begin with a letter"),
        ({"name": "open-"}, "end with a letter or digit"),
        ({"name": ""}, "letters, digits"),
        ({"name": "x" * 33}, "longer"),
        ({"name": "Aws-lab"}, "Parameter Store"),
        ({"name": "ssm"}, "Parameter Store"),
        ({"role": "arn:r", "boundary": "arn:b"}, "--permissions-boundary"),
        ({"vpc": "vpc-1"}, "--subnet"),
        ({"zone": "Z1"}, "--record"),
    ],
)
def test_options_that_cannot_be_used(options, said):
    with pytest.raises(BadInputError, match=said):
        Options(**options)


@pytest.mark.parametrize(
    ("memory", "asked", "given"),
    [(None, None, "3008"), (512, None, "1024"), (3007, None, "3008"), (3008, None, "0"),
     (4096, None, "8192"), (8000, None, "10240"), (10240, None, "0"), (None, 4096, "4096"),
     (None, 0, "0")],
)  # fmt: skip
def test_twice_the_memory_for_another_attempt_as_far_as_a_new_account_has_it(memory, asked, given):
    options = Options(memory_mb=memory, retry_memory_mb=asked)
    packages = {name: SimpleNamespace(key=name) for name in PACKAGES}
    values = parameters(options, packages, Target(), "bucket", {})
    assert values["RetryMemory"] == given
    again = parameters(Options(memory_mb=1024), packages, Target(), "bucket", values)
    assert again["RetryMemory"] == ("2048" if asked is None else given)


def test_no_less_memory_for_another_attempt():
    packages = {name: SimpleNamespace(key=name) for name in PACKAGES}
    with pytest.raises(BadInputError, match="--retry-memory 1024 is not more than the 1769 MB"):
        parameters(Options(retry_memory_mb=1024), packages, Target(), "bucket", {})


def test_a_name_too_long_for_a_bucket_of_its_own_is_refused_in_time():
    name, account = "x" * 29, "123456789012"
    assert len(default_bucket(name, account, "eu-central-1")) == 63  # the longest that S3 takes
    with pytest.raises(BadInputError, match=r"at most 29 characters.*--bucket"):
        default_bucket(name + "x", account, "eu-central-1")


def test_policies_print_for_people_without_credentials(tmp_path):
    bare = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    for who in ("deploy", "deploy-rendezvous", "run"):
        done = cli(
            "aws", "policy", who, "--account", "123456789012", "--region", "eu-central-1", env=bare
        )
        policy = json.loads(done.stdout)
        assert policy["Version"] == "2012-10-17"
        for statement in policy["Statement"]:
            assert "*" not in statement["Action"]
        assert len(json.dumps(policy, separators=(",", ":"))) <= 6144  # IAM's limit


def test_a_bucket_in_another_region_is_found_before_anything_is_made(stack, packages_folder):
    stack.aws.client("s3").create_bucket(
        Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    with pytest.raises(BadInputError, match=r"far-away is in eu-west-1.*--region eu-west-1"):
        deploy(
            stack.aws, Options(name="far", bucket="far-away"), packages_folder,
            lambda event: None, lambda changes: True, compression=1, interpreter=PYTHON,
        )  # fmt: skip
    assert stacks.describe(stack.aws, "far") is None


def test_a_bucket_named_after_this_account_must_be_this_accounts(stack):
    """Anybody could have made it first. ministack lets all owners pass: the request is read."""
    asked = []
    aws, bucket = Aws(), stack.outputs["Bucket"]
    events = aws.client("s3").meta.events
    events.register("before-send.s3.HeadBucket", lambda request, **_: asked.append(request))
    ensure_bucket(aws, bucket, "perseid", given=False, tell=lambda said: None)
    assert asked[0].headers["x-amz-expected-bucket-owner"] == aws.account.encode()


def test_a_file_that_is_no_model_is_refused_by_the_dry_run(tmp_path, capsys):
    path = tmp_path / "notamodel.onnx"
    path.write_text("no model")
    words = ["--dry-run", str(tmp_path / "out"), "--python", "3.12", "--model", str(path)]
    assert main(["aws", "deploy", *words]) == 2
    said = capsys.readouterr()
    assert "notamodel.onnx is not a model" in said.err
    assert "wrote" not in said.out
