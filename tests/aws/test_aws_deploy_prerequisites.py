"""What is found out before a stack is touched, and how its end is known, by stubbed answers."""

from __future__ import annotations

import re
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from botocore.stub import ANY, Stubber

from perseid.aws import stack, stack_events
from perseid.aws.deploy import doctor, policy, service, template
from perseid.aws.deploy.deployment import upload
from perseid.aws.deploy.destroy import destroy
from perseid.aws.deploy.packaging import Package
from perseid.aws.deploy.prerequisites import (
    check_cluster,
    check_image,
    check_results_buckets,
    check_zone,
    ensure_ecs_role,
)
from perseid.aws.deploy.template import Options
from perseid.aws.deploy.wheels import Target
from perseid.aws.session import Aws
from perseid.errors import AwsError, BadInputError
from perseid.measure.fields import Fields

ZONE = "Z0123456789"


@pytest.fixture
def aws(monkeypatch):
    for name, value in (
        ("ACCESS_KEY_ID", "k"),
        ("SECRET_ACCESS_KEY", "s"),
        ("REGION", "eu-west-1"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return Aws()


@contextmanager
def answers(aws, name):
    with Stubber(aws.client(name)) as stub:
        yield stub
        stub.assert_no_pending_responses()


def role(name):
    when = datetime.now(UTC)
    return {"Role": {"Path": "/", "RoleName": name, "RoleId": "A" * 16, "Arn": "a" * 20,
                     "CreateDate": when}}  # fmt: skip


def test_the_role_of_ecs_is_made_and_waited_for(aws, monkeypatch):
    monkeypatch.setattr("perseid.aws.deploy.prerequisites.POLL_SECONDS", 0.01)
    told = []
    with answers(aws, "iam") as stub:
        stub.add_response("create_service_linked_role", role("x"), {"AWSServiceName": ANY})
        stub.add_client_error("get_role", "NoSuchEntity", http_status_code=404)
        stub.add_response("get_role", role("AWSServiceRoleForECS"), {"RoleName": ANY})
        ensure_ecs_role(aws, told.append)
    assert "made ECS's own role AWSServiceRoleForECS" in told[0]


@pytest.mark.parametrize(("code", "told"), [("InvalidInput", 0), ("AccessDenied", 1)])
def test_the_role_of_ecs_that_is_there_or_may_not_be_made(aws, code, told):
    said = []
    with answers(aws, "iam") as stub:
        stub.add_client_error("create_service_linked_role", code, "taken, or denied")
        ensure_ecs_role(aws, said.append)
    assert len(said) == told


def zone(stub, private=False):
    stub.add_response("get_hosted_zone", {"HostedZone": {
        "Id": ZONE, "Name": "example.org.", "CallerReference": "r",
        "Config": {"PrivateZone": private}}}, {"Id": ZONE})  # fmt: skip


def records(stub, *entries):
    sets = [{"Name": "meet.example.org.", "Type": kind, "TTL": ttl,
             "ResourceRecords": [{"Value": value} for value in values]}
            for kind, ttl, *values in entries]  # fmt: skip
    stub.add_response("list_resource_record_sets", {
        "ResourceRecordSets": sets, "IsTruncated": False, "MaxItems": "10"})  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "taken"),
    [
        ([], False),
        ([("A", 15, "192.0.2.1")], False),  # as perseid writes it
        ([("TXT", 300, '"text"')], False),
        ([("A", 300, "192.0.2.1")], True),
        ([("A", 15, "192.0.2.1", "192.0.2.2")], True),
        ([("CNAME", 15, "elsewhere.org")], True),
        ([("AAAA", 15, "2001:db8::1")], True),
    ],
)
def test_a_record_that_others_use_is_not_taken(aws, entries, taken):
    with answers(aws, "route53") as stub:
        zone(stub)
        records(stub, *entries)
        if not taken:
            check_zone(aws, ZONE, "meet.example.org")
            return
        with pytest.raises(BadInputError, match="which perseid did not write"):
            check_zone(aws, ZONE, "meet.example.org")


def test_zones_that_cannot_hold_the_record(aws):
    with answers(aws, "route53") as stub:
        zone(stub, private=True)
        with pytest.raises(BadInputError, match="is private"):
            check_zone(aws, ZONE, "meet.example.org")
        zone(stub)
        with pytest.raises(
            BadInputError, match=r"not a name in the zone Z0123456789.*example\.org"
        ):
            check_zone(aws, ZONE, "meet.notexample.org")
        stub.add_client_error("get_hosted_zone", "NoSuchHostedZone", "none")
        with pytest.raises(BadInputError, match="cannot be used"):
            check_zone(aws, ZONE, "meet.example.org")


@pytest.mark.parametrize(("found", "says"), [
    ([], "DS5110 is not there in eu-west-1"),
    ([{"clusterName": "DS5110", "status": "INACTIVE"}], "DS5110 is INACTIVE in eu-west-1"),
])  # fmt: skip
def test_a_cluster_that_takes_no_service_is_refused(aws, found, says):
    with answers(aws, "ecs") as stub:
        stub.add_response("describe_clusters", {"clusters": found}, {"clusters": ["DS5110"]})
        with pytest.raises(BadInputError, match=says):
            check_cluster(aws, "DS5110")
    with answers(aws, "ecs") as stub:
        active = [{"clusterName": "DS5110", "status": "ACTIVE"}]
        stub.add_response("describe_clusters", {"clusters": active}, {"clusters": ["DS5110"]})
        check_cluster(aws, "DS5110")


def test_results_in_another_region_are_refused(aws):
    """Step Functions would not read the run's items there."""
    with answers(aws, "s3") as stub:
        stub.add_response("head_bucket", {"BucketRegion": "us-east-1"}, {"Bucket": "far"})
        with pytest.raises(BadInputError, match=r"far is in us-east-1.*--region us-east-1"):
            check_results_buckets(aws, Options(write_buckets=("far",)))


@pytest.mark.parametrize("partition", ["aws-us-gov", "aws-cn"])
def test_other_partitions_are_refused_at_once(aws, partition):
    with answers(aws, "sts") as stub:
        stub.add_response("get_caller_identity", {"Arn": f"arn:{partition}:iam::123456789012:root"})
        with pytest.raises(AwsError, match=f"in the partition {partition}"):
            aws.check_partition()


def described(state, **more):
    return {"Stacks": [{"StackName": "perseid", "StackId": "arn:s", "StackStatus": state,
                        "CreationTime": datetime.now(UTC),
                        "Description": stack.DESCRIPTION, **more}]}  # fmt: skip


def description(state, **more):
    [entry] = described(state, **more)["Stacks"]
    return stack.Description.of(Fields(entry))


@pytest.mark.parametrize(
    ("state", "update", "removal"),
    [
        ("UPDATE_ROLLBACK_FAILED", "continue-update-rollback --stack-name perseid", None),
        ("UPDATE_IN_PROGRESS", "somebody is changing it", "somebody is changing it"),
        ("DELETE_IN_PROGRESS", "somebody is changing it", "somebody is changing it"),
        ("DELETE_FAILED", None, None),
        ("ROLLBACK_FAILED", None, None),
        ("CREATE_COMPLETE", None, None),
        ("REVIEW_IN_PROGRESS", None, None),
    ],
)
def test_each_state_of_a_stack_has_its_sentence(state, update, removal):
    found = description(state)
    for check, said in ((found.check_takes_update, update), (found.check_idle, removal)):
        if said is None:
            check("perseid")
            continue
        with pytest.raises(AwsError, match=said):
            check("perseid")


def event(number, state, when, reason=""):
    return {"StackId": "arn:s", "EventId": str(number), "StackName": "perseid",
            "LogicalResourceId": "Worker", "ResourceType": "AWS::Lambda::Function",
            "Timestamp": when, "ResourceStatus": state, "ResourceStatusReason": reason}  # fmt: skip


def test_events_are_told_whatever_the_clocks_say(aws, monkeypatch):
    """This machine's clock is a day fast, and the first look still finds the state of before."""
    monkeypatch.setattr(stack_events, "POLL_SECONDS", 0.01)
    then = datetime.now(UTC) - timedelta(days=1)
    old = event(1, "CREATE_COMPLETE", then)
    new = event(2, "DELETE_FAILED", then + timedelta(seconds=1), "it is in use")
    told = []
    with answers(aws, "cloudformation") as stub:
        stub.add_response("describe_stacks", described("CREATE_COMPLETE"))
        stub.add_response("describe_stack_events", {"StackEvents": [old]})
        stub.add_response("delete_stack", {}, {"StackName": "perseid"})
        stub.add_response("describe_stacks", described("CREATE_COMPLETE"))
        stub.add_response("describe_stack_events", {"StackEvents": [old]})
        stub.add_response("describe_stacks", described("DELETE_FAILED"))
        stub.add_response("describe_stack_events", {"StackEvents": [new, old]})
        with pytest.raises(AwsError, match=r"DELETE_FAILED: Worker .*: it is in use"):
            stack.delete(aws, "perseid", told.append)
    assert [found.status for found in told] == ["DELETE_FAILED"]


def test_why_a_change_set_was_refused_is_found_in_its_events(aws):
    refused = {"Status": "FAILED", "StatusReason": "validation failed: see DescribeEvents"}
    found = [{"EventId": "1", "ValidationStatusReason": "the bucket exists already",
              "ValidationPath": "/Resources/Bucket"}]  # fmt: skip
    with answers(aws, "cloudformation") as stub:
        stub.add_response("describe_stacks", described("CREATE_COMPLETE"))
        stub.add_response("create_change_set", {"Id": "arn:change", "StackId": "arn:s"})
        stub.add_response("describe_change_set", refused)
        stub.add_response("describe_events", {"OperationEvents": found})
        with pytest.raises(AwsError, match="/Resources/Bucket: the bucket exists already"):
            stack.change(aws, "perseid", "{}", {}, lambda said: None, lambda changes: True)


RENDEZVOUS = {
    "RendezvousCluster": "perseid", "RendezvousService": "perseid-rendezvous",
    "RendezvousAddressParameter": "/perseid/rendezvous-address",
}  # fmt: skip


def services(running, wanted=1):
    return {"services": [{"status": "ACTIVE", "desiredCount": wanted, "runningCount": running,
                          "pendingCount": 0}]}  # fmt: skip


def test_the_rendezvous_is_stopped_before_its_stack_goes(aws, monkeypatch):
    monkeypatch.setattr(service, "POLL_SECONDS", 0.01)
    told = []
    with answers(aws, "ecs") as stub:
        stub.add_response("describe_services", services(1))
        stub.add_response("describe_services", services(1))
        stub.add_response("update_service", {}, {
            "cluster": "perseid", "service": "perseid-rendezvous", "desiredCount": 0})  # fmt: skip
        stub.add_response("describe_services", services(1, 0))
        stub.add_response("describe_services", services(0, 0))
        service.drain(aws, RENDEZVOUS, told.append)
    assert told == ["stopping the rendezvous first"]


def test_a_rendezvous_that_cannot_be_stopped_keeps_nothing_from_being_destroyed(aws):
    told = []
    with answers(aws, "ecs") as stub:
        stub.add_client_error("describe_services", "AccessDeniedException", "no")
        service.drain(aws, RENDEZVOUS, told.append)
    assert "could not be stopped first" in told[0]


def test_objects_that_cannot_be_deleted_are_told(aws):
    """DeleteObjects succeeds as a call, and says of each key whether it went."""
    gone = {"Error": {"Code": "ValidationError", "Message": "Stack does not exist"}}
    with (
        answers(aws, "cloudformation") as cloudformation,
        answers(aws, "sts") as sts,
        answers(aws, "ssm") as ssm,
        answers(aws, "s3") as s3,
    ):
        cloudformation.add_client_error(
            "describe_stacks", gone["Error"]["Code"], gone["Error"]["Message"]
        )
        sts.add_response("get_caller_identity", {"Account": "123456789012"})
        ssm.add_response("delete_parameter", {}, {"Name": "/perseid/rendezvous-secret"})
        s3.add_response("head_bucket", {})
        s3.add_client_error("get_bucket_tagging", "NoSuchTagSet")
        s3.add_response("list_objects_v2", {"Contents": [{"Key": "perseid/perseid/code/a.zip"}]})
        s3.add_response(
            "delete_objects",
            {
                "Errors": [
                    {
                        "Key": "perseid/perseid/code/a.zip",
                        "Code": "AccessDenied",
                        "Message": "locked",
                    }
                ]
            },
        )
        with pytest.raises(AwsError, match=r"code/a\.zip cannot be deleted: locked"):
            destroy(aws, "perseid", lambda said: None)


@pytest.fixture
def packages(tmp_path):
    return {name: Package(name, tmp_path, "d" * 64, {}) for name in ("worker", "control", "tools")}


def values(packages, previous, **options):
    return template.parameters(Options(**options), packages, Target(), "bucket", previous)


def test_what_was_chosen_is_kept_and_the_rest_follows_the_template(packages):
    first = values(packages, {}, memory_mb=10240, log_days=7, extra={"ControlMemory": "2048"})
    assert "WorkerTimeout" not in first
    assert first["Chosen"] == "ControlMemory,LogRetention,WorkerMemory"
    # CloudFormation tells every parameter, defaults included; one is no longer in the template.
    told = {**first, "WorkerTimeout": "600", "RendezvousImage": "python:3.12-slim", "Dropped": "1"}
    again = values(packages, told, log_days=30)
    assert (again["WorkerMemory"], again["LogRetention"], again["ControlMemory"]) == (
        "10240", "30", "2048"
    )  # fmt: skip
    assert not {"WorkerTimeout", "RendezvousImage", "Dropped"} & again.keys()
    assert again.keys() <= template.parameter_names()


def test_an_older_stack_keeps_all_it_has_and_its_rendezvous(packages):
    told = {"WorkerMemory": "512", "RendezvousStart": "program", "WriteBuckets": "", "Dropped": "1"}
    again = values(packages, told)
    assert (again["WorkerMemory"], again["Rendezvous"]) == ("512", "yes")
    assert again["Chosen"] == "WorkerMemory"
    assert "Dropped" not in again
    assert values(packages, {})["Rendezvous"] == "no"
    assert values(packages, {}, zone=ZONE, record="meet.example.org")["Rendezvous"] == "yes"
    assert values(packages, told, rendezvous=False)["Rendezvous"] == "no"


@pytest.mark.parametrize("previous", [False, True])
def test_rights_in_a_shared_bucket_end_at_the_results_prefix(packages, previous):
    """Else a script of one student could delete the whole class's data; it stays so."""
    places = ("bucket/runs/ann", "more")
    told = values(packages, {}, write_buckets=places)
    if previous:
        told = values(packages, told, memory_mb=512)
    arn = "arn:aws:s3:::"
    assert told["WriteObjects"] == f"{arn}bucket/runs/ann/*,{arn}more/*"
    assert told["WriteBuckets"] == f"{arn}bucket,{arn}more"
    assert told["ReadObjects"] == f"{arn}bucket/*,{arn}more/*"
    person = policy.runner("perseid", "1" * 12, "eu-west-1", ["bucket", "more"], places)
    [write] = [s for s in person["Statement"] if s["Sid"] == "Results"]
    assert write["Resource"] == [f"{arn}bucket/runs/ann/*", f"{arn}more/*"]
    whole = values(packages, {})
    assert whole["WriteObjects"] == f"{arn}bucket/*"


IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/torch-worker:1"


def test_a_worker_is_an_image_of_ecr_or_a_zip_and_never_changes_between_them(packages):
    told = values(packages, {}, worker_image=IMAGE)
    assert (told["WorkerImage"], told["Chosen"]) == (IMAGE, "WorkerImage")
    again = values(packages, told)
    assert again["WorkerImage"] == IMAGE
    check_image(Options(), told)
    check_image(Options(worker_image=IMAGE.replace(":1", ":2")), told)
    for options, previous in ((Options(worker_image=IMAGE), values(packages, {})),
                              (Options(worker_image=""), told)):  # fmt: skip
        with pytest.raises(BadInputError, match="`perseid aws destroy`"):
            check_image(options, previous)
    for given, said in (({"worker_image": "python:3.12"}, "not in ECR"),
                        ({"worker_image": IMAGE, "layers": ("a",)}, "no layers")):  # fmt: skip
        with pytest.raises(BadInputError, match=said):
            Options(**given)


def test_every_role_that_reads_or_writes_objects_may_use_the_buckets_key():
    text = template.template()
    parts = re.findall(r"\n  (\w+):\n    Type: AWS::IAM::Role\n(.*?)(?=\n  \w+:\n)", text, re.S)
    assert len(parts) == 8
    for name, body in parts:
        assert ("Sid: Key" in body) == ("s3:GetObject" in body), name


def test_functions_name_the_key_in_each_write():
    """A bucket's policy may refuse what does not; nothing is named where no key was given."""
    text = template.template()
    functions = dict(
        re.findall(r"\n  (\w+):\n    Type: AWS::Lambda::Function\n(.*?)(?=\n  \w+:\n)", text, re.S)
    )
    writers = {name for name, body in functions.items() if "AWS_SSE_KMS_KEY_ID" in body}
    assert writers == {"Initialize", "Worker", "LargerWorker", "Summarize"}
    for name in writers:
        assert '_ENCRYPTION: !If [HasKey, "aws:kms", !Ref "AWS::NoValue"]' in functions[name]
        assert 'KEY_ID: !If [HasKey, !Ref KmsKey, !Ref "AWS::NoValue"]' in functions[name]


def test_packages_are_encrypted_with_the_key_that_was_given(aws, tmp_path):
    (tmp_path / "zip").write_bytes(b"")
    zips = {name: Package(name, tmp_path / "zip", "d" * 64, {}) for name in ("worker", "tools")}
    given = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "arn:aws:kms:eu-west-1:1:key/k"}
    with answers(aws, "s3") as stub:
        for _ in zips:
            stub.add_client_error("head_object", "404", http_status_code=404)
            put = {"Bucket": "b", "Key": ANY, "Body": ANY, **given}
            stub.add_response("put_object", {}, put)
        stub.add_response("put_object", {}, {**put, "ContentType": "application/json"})
        upload(aws, "b", "perseid", zips, lambda said: None,
               kms_key="arn:aws:kms:eu-west-1:1:key/k")  # fmt: skip


@pytest.mark.parametrize(("given", "bad"), [("", True), ("arn:aws:kms:eu-west-1:1:key/k", False)])
def test_a_key_that_no_role_may_use_is_found_by_doctor(aws, given, bad):
    key = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "arn:aws:kms:eu-west-1:1:key/k"}
    rules = [{"ApplyServerSideEncryptionByDefault": key}]
    with answers(aws, "s3") as stub:
        stub.add_response("get_bucket_location", {"LocationConstraint": "eu-west-1"})
        stub.add_response(
            "get_bucket_encryption", {"ServerSideEncryptionConfiguration": {"Rules": rules}}
        )
        parameters = {"ReadBuckets": "arn:aws:s3:::b", "KmsKey": given}
        checks = dict(doctor.CHECKS)
        facts = doctor.Facts(outputs={}, parameters=parameters)
        found = checks["buckets"](aws, "perseid", facts)
    assert found.state == ("bad" if bad else "ok")
    assert ("--kms-key" in found.text) == bad


@pytest.mark.parametrize(
    ("state", "lasts"),
    [("CREATE_COMPLETE", True), ("UPDATE_COMPLETE", True), ("UPDATE_ROLLBACK_COMPLETE", True),
     ("ROLLBACK_COMPLETE", False), ("CREATE_FAILED", False), ("REVIEW_IN_PROGRESS", False),
     ("DELETE_FAILED", False)],
)  # fmt: skip
def test_options_of_a_stack_that_was_never_whole_are_forgotten(state, lasts):
    chosen = [{"ParameterKey": "WorkerMemory", "ParameterValue": "10240"}]
    assert bool(description(state, Parameters=chosen).lasting_parameters) == lasts
