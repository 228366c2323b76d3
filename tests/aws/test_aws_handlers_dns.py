"""The DNS updater on moto: tasks with network interfaces, Route 53, late and repeated events."""

from __future__ import annotations

import itertools
import json
import threading
from datetime import UTC, datetime, timedelta, timezone

import boto3
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ecs.models import ecs_backends
from moto.server import ThreadedMotoServer
from moto_server import keep_tasks

from perseid.aws.handlers import dns, service_lifetime
from perseid.aws.handlers.service_address import (
    TTL,
    ServiceNames,
    Task,
    newest_first,
    publish,
    read,
    recorded,
)

RECORD = "rendezvous.example.org"


@pytest.fixture(scope="module")
def moto():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_PROFILE", raising=False)
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.setenv(name, "us-east-1")
        keep_tasks(f"http://{host}:{port}")
        yield
    server.stop()


class Rendezvous:
    """A service's tasks with addresses, as Fargate makes them."""

    numbers = itertools.count()

    def __init__(self) -> None:
        self.number = next(self.numbers)
        self.ecs, self.ec2 = boto3.client("ecs"), boto3.client("ec2")
        self.cluster = self.ecs.create_cluster(clusterName=f"c{self.number}")["cluster"][
            "clusterName"
        ]
        vpc = self.ec2.create_vpc(CidrBlock="10.83.0.0/24")["Vpc"]["VpcId"]
        self.ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
        subnet = self.ec2.create_subnet(VpcId=vpc, CidrBlock="10.83.0.0/26")["Subnet"]["SubnetId"]
        group = self.ec2.create_security_group(GroupName="r", Description="r", VpcId=vpc)["GroupId"]
        place = {"subnets": [subnet], "securityGroups": [group], "assignPublicIp": "ENABLED"}
        self.network = {"awsvpcConfiguration": place}
        self.ecs.register_task_definition(
            family="rendezvous", networkMode="awsvpc", requiresCompatibilities=["FARGATE"],
            containerDefinitions=[{"name": "r", "image": "p", "memory": 512}],
        )  # fmt: skip
        zone = (
            boto3.client("route53")
            .create_hosted_zone(Name="example.org", CallerReference=str(self.number))["HostedZone"][
                "Id"
            ]
            .rpartition("/")[2]
        )
        parameter = f"/p{self.number}/rendezvous-address"
        boto3.client("ssm").put_parameter(Name=parameter, Value="{}", Type="String")
        self.names = ServiceNames(self.cluster, "rendezvous", parameter, zone, RECORD)

    def start(self) -> tuple[str, str]:
        """A task of the service comes to run; its ARN and public address."""
        [task] = self.ecs.run_task(
            cluster=self.cluster, taskDefinition="rendezvous", launchType="FARGATE",
            networkConfiguration=self.network, group="service:rendezvous",
        )["tasks"]  # fmt: skip
        details = {d["name"]: d["value"] for d in task["attachments"][0]["details"]}
        address = self.ec2.allocate_address(Domain="vpc")
        self.ec2.associate_address(
            AllocationId=address["AllocationId"],
            NetworkInterfaceId=details["networkInterfaceId"],
        )
        return task["taskArn"], address["PublicIp"]

    def stop(self, task: str) -> None:
        self.ecs.stop_task(cluster=self.cluster, task=task)


@pytest.fixture
def rendezvous(moto, monkeypatch):
    found = Rendezvous()
    monkeypatch.setenv("CLUSTER", found.cluster)
    monkeypatch.setenv("SERVICE", "rendezvous")
    monkeypatch.setenv("ADDRESS_PARAMETER", found.names.parameter)
    monkeypatch.setenv("HOSTED_ZONE", found.names.zone)
    monkeypatch.setenv("RECORD_NAME", RECORD)
    dns._client.cache_clear()
    return found


def event(task: str, status: str = "RUNNING") -> dict[str, object]:
    """As EventBridge delivers it."""
    return {"detail-type": "ECS Task State Change", "source": "aws.ecs",
            "detail": {"taskArn": task, "lastStatus": status}}  # fmt: skip


def published(rendezvous) -> tuple[str | None, list[str]]:
    place = read(rendezvous.names, boto3.client)
    return place.address, list(recorded(rendezvous.names, boto3.client))


def test_a_task_that_runs_is_published_in_both_places(rendezvous):
    task, address = rendezvous.start()
    said = dns.handler(event(task), None)
    assert said["address"] == address
    assert published(rendezvous) == (address, [address])
    [record] = [
        r for r in boto3.client("route53").list_resource_record_sets(
            HostedZoneId=rendezvous.names.zone)["ResourceRecordSets"] if r["Type"] == "A"
    ]  # fmt: skip
    assert record["TTL"] == TTL <= 30


def test_late_and_repeated_events_of_an_old_task_change_nothing(rendezvous):
    old, _ = rendezvous.start()
    dns.handler(event(old), None)
    rendezvous.stop(old)
    new, address = rendezvous.start()
    for late in (event(new), event(old), event(old, "STOPPED"), event(new), event(old)):
        dns.handler(late, None)
        assert published(rendezvous) == (address, [address])


def test_events_in_the_wrong_order(rendezvous):
    old, _ = rendezvous.start()
    rendezvous.stop(old)
    _new, address = rendezvous.start()
    dns.handler(event(old, "STOPPED"), None)  # the first that comes tells of the old one's end
    assert published(rendezvous) == (address, [address])


def test_a_stopped_service_has_no_address_but_keeps_its_record(rendezvous):
    task, address = rendezvous.start()
    dns.handler(event(task), None)
    rendezvous.stop(task)
    assert dns.handler(event(task, "STOPPED"), None)["address"] is None
    assert published(rendezvous) == (None, [address])  # resolvers would remember its absence


def test_of_two_running_tasks_the_newer_one_counts():
    def task(name, started, status="RUNNING"):
        return {"taskArn": name, "lastStatus": status, "startedAt": started}

    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    west = timezone(timedelta(hours=-5))
    tasks = [
        task("old", noon),
        task("new", (noon + timedelta(seconds=1)).astimezone(west)),
        task("coming", noon + timedelta(seconds=9), "PROVISIONING"),
        {"taskArn": "unknown", "lastStatus": "RUNNING"},
    ]
    for order in itertools.permutations(tasks):
        found = newest_first([Task.of(entry) for entry in order])
        assert [t.arn for t in found] == ["new", "old", "unknown"]


def test_a_stale_record_is_put_right(rendezvous):
    _, address = rendezvous.start()
    wrong = {"Name": RECORD, "Type": "A", "TTL": 15, "ResourceRecords": [{"Value": "192.0.2.1"}]}
    boto3.client("route53").change_resource_record_sets(
        HostedZoneId=rendezvous.names.zone,
        ChangeBatch={"Changes": [{"Action": "UPSERT", "ResourceRecordSet": wrong}]},
    )
    boto3.client("ssm").put_parameter(
        Name=rendezvous.names.parameter, Value="not JSON", Type="String", Overwrite=True
    )
    publish(rendezvous.names, boto3.client)
    assert published(rendezvous) == (address, [address])


def test_updaters_at_the_same_time_agree_in_the_end(rendezvous):
    old, _ = rendezvous.start()
    started = threading.Barrier(5)
    found = []

    def update(task: str) -> None:
        started.wait()
        found.append(dns.handler(event(task), None))

    threads = [threading.Thread(target=update, args=(old,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    rendezvous.stop(old)
    _new, address = rendezvous.start()
    started.wait()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4
    assert published(rendezvous) == (address, [address])


def test_an_address_written_late_is_corrected_by_its_own_writer(rendezvous, monkeypatch):
    """The slow updater read before the change and wrote after it: it looks again."""
    old, _ = rendezvous.start()
    new_address = []

    def client(service):
        real = boto3.client(service)
        if service == "ssm" and not new_address:  # between its look and its write
            rendezvous.stop(old)
            new_address.append(rendezvous.start()[1])
            publish(rendezvous.names, boto3.client)
        return real

    publish(rendezvous.names, client)
    assert published(rendezvous) == (new_address[0], [new_address[0]])


def test_without_a_zone_there_is_the_parameter_alone(rendezvous):
    _, address = rendezvous.start()
    bare = ServiceNames(rendezvous.cluster, "rendezvous", rendezvous.names.parameter)
    assert publish(bare, boto3.client).address == address
    value = boto3.client("ssm").get_parameter(Name=bare.parameter)["Parameter"]["Value"]
    assert json.loads(value)["address"] == address
    assert recorded(bare, boto3.client) == []


@pytest.mark.parametrize(
    ("minutes", "done", "wanted"),
    [(0, "nothing to stop", 1), (59, "nothing to stop", 1), (61, "stopped", 0)],
)
def test_an_idle_rendezvous_is_stopped_once_it_has_run_for_an_hour(
    rendezvous, monkeypatch, minutes, done, wanted
):
    """Its function looks once an hour: a younger task may still be waited for."""
    monkeypatch.setattr(service_lifetime, "HTTP_SECONDS", 0.2)  # nothing answers at its address
    arn, _ = rendezvous.start()
    cluster = rendezvous.cluster
    rendezvous.ecs.create_service(
        cluster=cluster, serviceName="rendezvous", taskDefinition="rendezvous", desiredCount=1,
        launchType="FARGATE", networkConfiguration=rendezvous.network,
    )  # fmt: skip
    machine = boto3.client("stepfunctions").create_state_machine(
        name=f"run-{rendezvous.number}", roleArn=f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:role/r",
        definition=json.dumps({"StartAt": "E", "States": {"E": {"Type": "Succeed"}}}),
    )["stateMachineArn"]  # fmt: skip
    tasks = ecs_backends[DEFAULT_ACCOUNT_ID]["us-east-1"].tasks[cluster]
    began = datetime.now(UTC) - timedelta(minutes=minutes)
    tasks[arn].started_at = began.timestamp()  # moto's tasks do not say when they started
    dns.handler(event(arn), None)
    assert service_lifetime.stop_if_idle(rendezvous.names, boto3.client, machine) == done
    [service] = rendezvous.ecs.describe_services(cluster=cluster, services=["rendezvous"])[
        "services"
    ]
    assert service["desiredCount"] == wanted
    assert (read(rendezvous.names, boto3.client).address is None) is (wanted == 0)
