"""Destroy touches what is perseid's and nothing else: foreign stacks, DNS records, no stack."""

from __future__ import annotations

import json

import pytest
from double import PYTHON

from perseid.aws import stack as stacks
from perseid.aws.deploy.deployment import deploy
from perseid.aws.deploy.template import Options
from perseid.cli import main

FOREIGN = {
    "Resources": {"Own": {"Type": "AWS::SSM::Parameter", "Properties": {
        "Name": "/foreign/own", "Type": "String", "Value": "theirs"}}}
}  # fmt: skip


@pytest.fixture(scope="module")
def foreign(stack):
    """A stack that somebody else made."""
    client = stack.aws.client("cloudformation")
    client.create_stack(StackName="foreign", TemplateBody=json.dumps(FOREIGN))
    client.get_waiter("stack_create_complete").wait(
        StackName="foreign", WaiterConfig={"Delay": 1, "MaxAttempts": 30}
    )
    return "foreign"


def is_untouched(stack):
    value = stack.aws.client("ssm").get_parameter(Name="/foreign/own")["Parameter"]["Value"]
    return value == "theirs" and stacks.outputs(stack.aws, "foreign") == {}


def test_a_stack_that_is_not_ours_is_not_destroyed(stack, foreign, capsys):
    assert main(["aws", "destroy", "--stack", foreign, "--yes"]) == 2
    assert "the stack foreign in us-east-1 is not perseid's" in capsys.readouterr().err
    assert is_untouched(stack)


def test_a_stack_that_is_not_ours_is_not_updated(stack, foreign, capsys):
    words = ["--stack", foreign, "--yes", "--python", "3.12"]
    assert main(["aws", "deploy", *words]) == 2
    said = capsys.readouterr()
    assert "is not perseid's" in said.err
    assert "packaging" not in said.err  # found before anything else was done
    assert is_untouched(stack)
    with pytest.raises(stack.aws.client("ssm").exceptions.ParameterNotFound):
        stack.aws.client("ssm").get_parameter(Name="/foreign/rendezvous-secret")


def test_a_stack_that_is_not_there_is_said_to_be_none(stack, capsys):
    assert main(["aws", "destroy", "--stack", "nowhere", "--yes"]) == 2
    said = capsys.readouterr()
    assert "there is no stack nowhere in us-east-1" in said.err
    assert "is gone" not in said.out


def record(ttl, *addresses):
    values = [{"Value": address} for address in addresses]
    return {"Name": "meet.example.org", "Type": "A", "TTL": ttl, "ResourceRecords": values}


def in_zone(client, zone):
    sets = client.list_resource_record_sets(HostedZoneId=zone)["ResourceRecordSets"]
    return [entry["Name"] for entry in sets if entry["Type"] == "A"]


@pytest.mark.parametrize(
    ("left", "goes"),
    [
        (record(15, "192.0.2.7"), True),  # stale, as after `rendezvous stop`
        (record(300, "192.0.2.7"), False),
        (record(15, "192.0.2.7", "192.0.2.8"), False),
        (None, True),
    ],
)
def test_the_dns_record_goes_with_the_stack_if_it_is_ours(
    stack, packages_folder, capsys, left, goes
):
    """Its address soon is another account's, who would then be called by our name."""
    client = stack.aws.client("route53")
    made = client.create_hosted_zone(Name="example.org", CallerReference=str(left))
    zone = made["HostedZone"]["Id"].rpartition("/")[2]
    deploy(
        stack.aws, Options(name="zoned", zone=zone, record="meet.example.org"),
        packages_folder, lambda event: None, lambda changes: True, compression=1,
        interpreter=PYTHON,
    )  # fmt: skip
    if left is not None:
        change = {"Changes": [{"Action": "UPSERT", "ResourceRecordSet": left}]}
        client.change_resource_record_sets(HostedZoneId=zone, ChangeBatch=change)
    assert main(["aws", "destroy", "--stack", "zoned", "--yes", "--delete-bucket"]) == 0
    said = capsys.readouterr()
    assert ("kept: DNS record meet.example.org" in said.out) == (not goes)
    assert in_zone(client, zone) == ([] if goes else ["meet.example.org."])
    assert ("deleted the DNS record" in said.err) == (goes and left is not None)


def test_a_zone_that_is_gone_keeps_nothing_from_being_destroyed(stack, packages_folder, capsys):
    client = stack.aws.client("route53")
    made = client.create_hosted_zone(Name="example.org", CallerReference="gone")
    zone = made["HostedZone"]["Id"].rpartition("/")[2]
    deploy(
        stack.aws, Options(name="zoned", zone=zone, record="meet.example.org"),
        packages_folder, lambda event: None, lambda changes: True, compression=1,
        interpreter=PYTHON,
    )  # fmt: skip
    client.delete_hosted_zone(Id=zone)
    assert main(["aws", "destroy", "--stack", "zoned", "--yes", "--delete-bucket"]) == 0
    assert "kept: DNS record meet.example.org" in capsys.readouterr().out
    assert stacks.describe(stack.aws, "zoned") is None
