"""The stack's life on moto: made, changed in place, deleted, by our deployer and command line."""

from __future__ import annotations

from contextlib import suppress

import pytest
from double import PYTHON

from perseid.aws import stack as stacks
from perseid.aws.deploy.deployment import deploy
from perseid.aws.deploy.doctor import CHECKS
from perseid.aws.deploy.template import Options
from perseid.cli import main
from perseid.errors import NotFoundError
from perseid.storage import Storage


def put(aws, folder, **options):
    """Deploy the stack ``other``; the changes that were shown, and what came of them."""
    shown = []
    done = deploy(
        aws, Options(name="other", rendezvous=True, **options), folder, lambda event: None,
        lambda changes: shown.extend(changes) or True, compression=1, interpreter=PYTHON,
    )  # fmt: skip
    return shown, done


@pytest.fixture(scope="module")
def other(moto, packages_folder):
    """A second stack on the same account, in a VPC that is there; its changes and outputs."""
    ec2 = moto.aws.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/24")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/26")["Subnet"]["SubnetId"]
    return put(
        moto.aws, packages_folder, memory_mb=512, read_buckets=("surveys-elsewhere",),
        vpc=vpc, subnets=(subnet,),
    )  # fmt: skip


def test_the_whole_template_is_made(moto, other):
    shown, done = other
    assert {change.action for change in shown} == {"Add"}
    made = moto.aws.client("cloudformation").list_stack_resources(StackName="other")
    names = {r["LogicalResourceId"] for r in made["StackResourceSummaries"]}
    assert {"Worker", "StateMachine", "Service", "TaskStarts", "AddressParameter"} <= names
    assert "Vpc" not in names  # its condition is false
    assert names - {""} <= {change.resource for change in shown}
    assert done.outputs["WorkerMemory"] == "512"
    assert done.outputs["StateMachineArn"].endswith(":other-run")


def test_a_stack_is_updated_in_place_and_keeps_what_is_not_said(moto, other, packages_folder):
    aws = moto.aws
    _, same = put(aws, packages_folder)
    assert not same.changed
    _, changed = put(aws, packages_folder, timeout=60)
    assert changed.changed
    assert changed.outputs["WorkerTimeout"] == "60"
    function = aws.client("lambda").get_function_configuration(FunctionName="other-worker")
    assert (function["MemorySize"], function["Timeout"]) == (512, 60)
    values = stacks.describe(aws, "other").parameters
    assert values["ReadBuckets"].endswith("arn:aws:s3:::surveys-elsewhere")
    assert stacks.describe(aws, "other").status == "UPDATE_COMPLETE"


@pytest.mark.slow
def test_doctor_finds_what_moto_knows(moto, capsys):
    """Eight attempts at each of what moto answers with an error of its own."""
    main(["aws", "doctor"])
    lines = {line[6:20].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert len(lines) == len(CHECKS), lines  # a line each, whatever the answer was
    for name in ("credentials", "region", "clock", "stack", "buckets", "roles", "state machine"):
        assert lines[name].startswith("ok"), lines[name]


def test_destroy_leaves_data_and_says_what_stays(moto, other, capsys):
    aws, bucket = moto.aws, other[1].outputs["Bucket"]
    storage = Storage(f"s3://{bucket}")
    storage.put("survey/1.pt", b"data")
    assert main(["aws", "destroy", "--stack", "other", "--yes"]) == 0
    assert f"kept: s3://{bucket}" in capsys.readouterr().out
    assert stacks.describe(aws, "other") is None
    assert [info.key for info in storage.list()] == ["survey/1.pt"]
    names = [f["FunctionName"] for f in aws.client("lambda").list_functions()["Functions"]]
    assert not [name for name in names if name.startswith("other-")]
    machines = aws.client("stepfunctions").list_state_machines()["stateMachines"]
    assert "other-run" not in [machine["name"] for machine in machines]
    with pytest.raises(aws.client("ssm").exceptions.ParameterNotFound):
        aws.client("ssm").get_parameter(Name="/other/rendezvous-secret")
    with pytest.raises(NotFoundError, match="perseid aws deploy"):
        stacks.outputs(aws, "other")
    assert main(["aws", "destroy", "--stack", "other", "--yes", "--delete-bucket"]) == 0
    assert "kept:" not in capsys.readouterr().out
    with suppress(NotFoundError):
        assert list(storage.list()) == []
    assert bucket not in [b["Name"] for b in aws.client("s3").list_buckets()["Buckets"]]
