"""The template and the state machine under the linters, and rules of our own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cfnlint
import pytest
from cfnlint.decode import cfn_yaml

import perseid.aws.deploy
from perseid.aws.deploy import policy, template
from perseid.aws.deploy.template import default_bucket
from perseid.aws.observe.workflow_bill import GIVEN_UP

DATA = Path(perseid.aws.deploy.__file__).parent / "data"
ERRORS = Path(perseid.aws.__file__).parents[1] / "errors.py"


def run(*words, **options):
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(*words, **options):
    """Get a linter from its registry; where there is no way to it, the test is skipped."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, **options)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        pytest.skip(f"{words[-1]} cannot be installed here: {said[-1] if said else 'no reason'}")


def test_cfn_lint_finds_nothing():
    linter = Path(sys.executable).parent / "cfn-lint"
    assert run(linter, "--include-checks", "I", "--ignore-checks", "I3011", "I3042", "W2001", "--",
               DATA / "template.yaml").strip() == ""  # fmt: skip


def machine():
    return json.loads(template.definition())


def test_both_maps_differ_in_their_kind_alone():
    states = machine()["States"]
    standard = json.dumps(states["WorkersStandard"])
    express = json.dumps(states["WorkersExpress"])
    for one, other in (("STANDARD", "EXPRESS"), ("standard", "express"), ("Standard", "Express")):
        standard = standard.replace(one, other)
    assert standard == express


def test_every_way_out_of_the_machine_is_caught_or_has_a_cause():
    states = machine()["States"]
    for name, state in states.items():
        if state["Type"] in ("Task", "Map"):
            assert any("States.ALL" in catch["ErrorEquals"] for catch in state["Catch"]), name
        if state["Type"] == "Fail":
            assert state.get("CausePath", "$.").startswith("$.")
            assert state.get("CausePath") or state["Cause"]
    work = states["WorkersStandard"]["ItemProcessor"]["States"]["WorkStandard"]
    assert states["WorkersStandard"]["ResultPath"] is None  # 256 KiB would be 800 ranks
    throttled, _ = work["Retry"]
    assert throttled["ErrorEquals"] == ["Lambda.TooManyRequestsException"]
    # Scheduled, started, failed: three events each, and a history holds 25,000.
    assert 1000 <= throttled["MaxAttempts"] <= 25_000 / 3 - 100
    final, again = work["Catch"]
    assert again["ErrorEquals"] == ["States.ALL"]
    assert (final["Next"], again["Next"]) == ("GiveUpStandard", "CountStandard")


def test_states_wait_longer_than_their_functions():
    """Lambda's own error of a time-out has a cause; that of the state has none."""
    text = (DATA / "template.yaml").read_text()
    for name in ("Initialize", "Summarize"):
        function = text.split(f"\n  {name}:\n")[1].split("\n\n")[0]
        limit = int(function.split("\n      Timeout: ")[1].split("\n")[0])
        assert machine()["States"][name]["TimeoutSeconds"] > limit, name


def test_errors_that_are_not_retried_are_errors_of_ours():
    states = machine()["States"]
    named = states["WorkersStandard"]["ItemProcessor"]["States"]["WorkStandard"]["Catch"][0]
    ours = ERRORS.read_text()
    for name in named["ErrorEquals"]:
        assert f"class {name}(" in ours, name
    assert set(named["ErrorEquals"]) == GIVEN_UP  # so they are billed


NAMES = ["perseid", *("x" * length for length in (1, 16, 32))]
"""Of stacks; 32 characters is the longest."""


def policies(name):
    region, account = "ap-southeast-1", "1" * 12
    bucket = default_bucket(name[:20], account, region)
    arn = f"arn:aws:iam::{account}:policy/" + "b" * 60
    return {
        "deploy": policy.deployer(name, account, region, bucket, ["surveys-of-others"]),
        "bounded": policy.deployer(name, account, region, bucket, boundary=arn),
        "given": policy.deployer(name, account, region, bucket, role=arn),
        "rendezvous": policy.rendezvous_deployer(name, account, region, "Z" * 21),
        "run": policy.runner(name, account, region, ["data"], ["results"], "Z" * 21),
    }


@pytest.mark.parametrize("name", NAMES)
def test_policies_fit_iam_and_name_what_they_allow(name):
    for kind, made in policies(name).items():
        size = len(json.dumps(made, separators=(",", ":")))
        assert size <= 6144, (kind, size)  # a managed policy's limit
        for statement in made["Statement"]:
            wild = statement["Resource"] == ["*"] and "Condition" not in statement
            names = {action.partition(":")[2] for action in statement["Action"]}
            readers = ("Describe", "List", "Get")
            assert not wild or statement["Sid"] == "TaskDefinitions" or all(
                name.startswith(readers) for name in names
            ), statement["Sid"]  # fmt: skip


def allowed(made):
    return {action for s in made["Statement"] if s["Effect"] == "Allow" for action in s["Action"]}


def test_a_boundary_or_a_role_keeps_who_deploys_from_administering_the_account():
    made = policies("perseid")
    assert "iam:CreateRole" in allowed(made["deploy"])
    assert not {"iam:CreateRole", "iam:PutRolePolicy"} & allowed(made["given"])
    for statement in made["bounded"]["Statement"]:
        if {"iam:CreateRole", "iam:PutRolePolicy"} & set(statement["Action"]):
            assert "iam:PermissionsBoundary" in statement["Condition"]["StringEquals"]


def test_a_stack_without_rendezvous_needs_no_right_to_what_only_that_has():
    services = {action.partition(":")[0] for action in allowed(policies("perseid")["deploy"])}
    assert not {"ec2", "ecs", "events", "route53"} & services


NEVER_CALLED = {
    "AWS::EC2::Route": "ReplaceRoute",  # a route of ours is never changed
    "AWS::EC2::SecurityGroup": "DescribeInstances UpdateSecurityGroupRuleDescriptionsEgress "
    "UpdateSecurityGroupRuleDescriptionsIngress",  # its rules never change
    "AWS::EC2::Subnet": "AssociateSubnetCidrBlock DisassociateSubnetCidrBlock "
    "ModifySubnetAttribute",  # neither IPv6 nor attributes
    "AWS::EC2::SubnetRouteTableAssociation": "ReplaceRouteTableAssociation",
    "AWS::EC2::VPC": "CreateVpcEncryptionControl ModifyVpcTenancy",  # neither is set
    "AWS::EC2::VPCGatewayAttachment": "AttachVpnGateway DescribeVpnGateways DetachVpnGateway",
    "AWS::ECS::Cluster": "PutAccountSetting PutAccountSettingDefault UpdateClusterSettings "
    "DescribeKey",  # no key; settings of the account are not ours; the cluster's never change
    "AWS::ECS::Service": "StopServiceDeployment",  # the circuit breaker stops it
    "AWS::Events::Rule": "UntagResource",  # tags of the stack are never removed
    "AWS::IAM::Role": "AttachRolePolicy DetachRolePolicy UpdateRole UpdateRoleDescription "
    "PutRolePermissionsBoundary DeleteRolePermissionsBoundary",  # `boundary` allows the first
    "AWS::Lambda::Function": "DescribeMountTargets ListMountTargets CreateGrant Decrypt "
    "DescribeKey Encrypt GenerateDataKey AssociateRuntimeAlias DeleteFunctionCodeSigningConfig "
    "GetCodeSigningConfig PassCapacityProvider PublishVersion PutFunctionCodeSigningConfig "
    "PutFunctionRecursionConfig PutFunctionScalingConfig PutRuntimeManagementConfig "
    "GetObjectVersion",  # no file system, key, code signing, version or capacity provider
    "AWS::Logs::LogGroup": "TagDeliveryStream AssociateKmsKey DisassociateKmsKey "
    "CreateLogDelivery DeleteDataProtectionPolicy DeleteIndexPolicy DeleteResourcePolicy "
    "PutBearerTokenAuthentication PutDataProtectionPolicy PutIndexPolicy "
    "PutLogGroupDeletionProtection PutResourcePolicy REST.PUT.OBJECT",  # none of these is set
    "AWS::StepFunctions::StateMachine": "Decrypt DescribeKey GenerateDataKey GetObjectVersion",
}
"""Actions that a resource handler's schema names and that no property of ours has it call."""


def test_the_policies_allow_what_cloudformations_handlers_call():
    """By the resources' own schemas, which come with cfn-lint."""
    schemas = Path(cfnlint.__file__).parent / "data" / "schemas"
    files = json.loads((schemas / "providers" / "us-east-1.json").read_text())
    made = policies("perseid")
    mine = {action.lower() for kind in ("deploy", "rendezvous") for action in allowed(made[kind])}
    lacking = {}
    for kind in set(re.findall(r"\n    Type: (AWS::\S+)", template.template())):
        handlers = json.loads((schemas / f"resources/{files[kind]}.json").read_text())["handlers"]
        parts = [handlers[name]["permissions"] for name in handlers if name != "list"]
        named = {action for part in parts for action in part if action.lower() not in mine}
        excepted = set(NEVER_CALLED.get(kind, "").split())
        assert excepted <= {action.partition(":")[2] for action in named}, kind
        left = {action for action in named if action.partition(":")[2] not in excepted}
        if left:
            lacking[kind] = left
    assert lacking == {}


def test_names_of_roles_are_not_cut():
    """CloudFormation cuts them at 64 characters; the policies tell them by their beginning."""
    roles = re.findall(r"\n  (\w+):\n    Type: AWS::IAM::Role", template.template())
    assert len(roles) == 8
    for role in roles:
        assert template.NAME_CHARACTERS + len(f"-{role}-") + len("1ABCDEF2GHIJ") <= 64


def test_the_address_parameter_is_never_changed_by_a_deployment():
    """Any change of its properties would put the template's value in place of the address."""
    text = template.template().split("\n  AddressParameter:\n")[1].split("\nOutputs:")[0]
    assert text.split("    Properties:\n")[1].strip() == (
        'Name: !Sub "/${AWS::StackName}/rendezvous-address"\n'
        "      Type: String\n"
        "      Description: Where the rendezvous is now; written by the DNS updater.\n"
        '      Value: \'{"address": null, "task": null, "started": null}\''
    )


def test_every_parameter_but_the_list_of_chosen_ones_is_used():
    text = template.template().split("\nConditions:\n")[1]
    used = set(re.findall(r"!Ref \"?(\w+)", text)) | set(re.findall(r"\$\{(\w+)\}", text))
    assert template.parameter_names() - used == {"Chosen"}


def test_the_image_is_of_one_version_of_python():
    [image] = re.findall(r"RendezvousImage: .*Default: \"(.+)\"", template.template())
    assert re.fullmatch(r"public\.ecr\.aws/docker/library/python:3\.12\.\d+-slim-\w+", image)


def test_the_service_goes_before_the_way_out_of_its_network():
    """A gateway cannot be detached while public addresses of its network are in use."""
    service = template.template().split("\n  Service:\n")[1].split("\n    Properties:")[0]
    after = service.split("DependsOn: [")[1].split("]")[0].split(", ")
    assert {"GatewayAttachment", "Route", "SubnetRoute", "OtherSubnetRoute"} <= set(after)


def test_the_map_may_act_on_its_children_by_both_forms_of_their_names():
    """AWS's documents have NAME/LABEL:ID and NAME:ID; no double says which one is checked."""
    role = template.template().split("\n  StateMachineRole:\n")[1].split("\n  MachineLogs:\n")[0]
    rights = role.split("Sid: ChildrenEnd")[1].split("Sid:")[0]
    assert ":execution:${AWS::StackName}-run/*" in rights
    assert ":execution:${AWS::StackName}-run:*" in rights


@pytest.mark.slow
def test_asl_validator_finds_nothing(tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine")
    install("npm", "install", "--loglevel=error", "--no-audit", "asl-validator@4.0.0", cwd=tmp_path)
    run("npx", "asl-validator", "--json-path", DATA / "statemachine.asl.json", cwd=tmp_path)


@pytest.mark.slow
def test_checkov_finds_nothing_but_what_is_listed(tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    pip = (tmp_path / "venv/bin/python", "-m", "pip", "install", "-q")
    install(*pip, "--disable-pip-version-check", "checkov==3.3.30")
    # By its name alone: checkov takes a path of 40 characters for the key of an AWS account.
    run(tmp_path / "venv/bin/checkov", "--config-file", Path(__file__).parent / "checkov.yaml",
        "-f", "template.yaml", cwd=DATA)  # fmt: skip


def test_errors_of_express_children_are_logged_where_that_was_asked_for():
    """Step Functions keeps nothing of them else; the machine's role has to set the delivery up."""
    resources = cfn_yaml.loads(template.template())["Resources"]
    condition, logging, _ = resources["StateMachine"]["Properties"]["LoggingConfiguration"][
        "Fn::If"
    ]
    assert condition == resources["MachineLogs"]["Condition"] == "HasErrorLogs"
    assert (logging["Level"], logging["IncludeExecutionData"]) == ("ERROR", False)
    [policy] = resources["StateMachineRole"]["Properties"]["Policies"]
    statements = [entry["Fn::If"] for entry in policy["PolicyDocument"]["Statement"]
                  if "Fn::If" in entry]  # fmt: skip
    [rights] = [one[1] for one in statements if one[0] == "HasErrorLogs"]
    assert "logs:CreateLogDelivery" in rights["Action"]
