"""The rendezvous' service from start to stop: its name in an existing zone, a run that uses it.

moto's ECS starts no task for a service: a thread in Fargate's place does, with a network interface
and a public address, and the server itself in its process, keyed with the stack's secret.
"""

from __future__ import annotations

import json
import socket
import threading
from contextlib import ExitStack

import pytest
from double import PYTHON
from waiting import eventually

from perseid.aws import stack as stacks
from perseid.aws.deploy.deployment import deploy
from perseid.aws.deploy.template import Options
from perseid.aws.handlers.service_lifetime import HTTP_PORT
from perseid.cli import main
from perseid.rendezvous import Client, Config, EmbeddedServer, job_key
from perseid.rendezvous.net.endpoint import DEFAULT_PORT
from perseid.storage import Storage

ADDRESS, NAME = "127.0.0.1", "localhost"
"""Of the task, and of the record: it must lead to the task on the machine that tests."""


class Fargate:
    """Has as many tasks as the service wants, 0 or 1."""

    def __init__(self, aws, outputs):
        self.client, self.outputs = aws.client, outputs
        self.task, self.address, self.server = None, None, ExitStack()
        values = stacks.describe(aws, "zoned").parameters
        # As in the template; moto's CloudFormation drops it from the service.
        self.network = {
            "subnets": values["SubnetIds"].split(","), "assignPublicIp": "ENABLED",
            "securityGroups": [group["GroupId"] for group in groups(aws, values)],
        }  # fmt: skip
        self.over, self.told = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(30)
        if self.task is not None:
            self.server.close()

    def work(self):
        place = {"cluster": self.outputs["RendezvousCluster"]}
        while not self.over.wait(0.2):
            found = self.client("ecs").describe_services(
                services=[self.outputs["RendezvousService"]], **place
            )["services"][0]
            self.have(found["desiredCount"])

    def have(self, wanted):
        if wanted and self.task is None:
            self.begin()
        elif not wanted and self.task is not None:
            self.client("ecs").stop_task(cluster=self.outputs["RendezvousCluster"], task=self.task)
            self.client("ec2").release_address(AllocationId=self.address)
            self.server.close()
            self.told.clear()
            self.task = None
            self.tell("STOPPED")
            self.told.set()

    def begin(self):
        secret = self.client("ssm").get_parameter(
            Name=self.outputs["RendezvousSecretParameter"], WithDecryption=True
        )["Parameter"]["Value"]
        config = Config(
            host=ADDRESS, port=DEFAULT_PORT, http_port=HTTP_PORT, secret=secret.encode()
        )
        self.server.enter_context(EmbeddedServer(config))
        # moto knows no memory of the template's, which is the task's and not its container's.
        self.client("ecs").register_task_definition(
            family="plain", networkMode="awsvpc", requiresCompatibilities=["FARGATE"],
            containerDefinitions=[{"name": "rendezvous", "image": "python", "memory": 512}],
        )  # fmt: skip
        [task] = self.client("ecs").run_task(
            cluster=self.outputs["RendezvousCluster"], taskDefinition="plain",
            networkConfiguration={"awsvpcConfiguration": self.network}, launchType="FARGATE",
            group=f"service:{self.outputs['RendezvousService']}",
        )["tasks"]  # fmt: skip
        details = {d["name"]: d["value"] for d in task["attachments"][0]["details"]}
        ec2 = self.client("ec2")
        self.address = ec2.allocate_address(Domain="vpc", Address=ADDRESS)["AllocationId"]
        ec2.associate_address(
            AllocationId=self.address, NetworkInterfaceId=details["networkInterfaceId"]
        )
        self.task = task["taskArn"]
        self.tell("RUNNING")

    def tell(self, status):
        """As EventBridge's rule would."""
        event = {"detail-type": "ECS Task State Change", "detail": {"lastStatus": status}}
        self.client("lambda").invoke(
            FunctionName=self.outputs["DnsUpdaterFunction"], Payload=json.dumps(event).encode()
        )


@pytest.fixture(scope="module")
def zoned(moto, packages_folder):
    """A stack with a bucket, a cluster, a VPC and a hosted zone that were there before."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, DEFAULT_PORT))
        except OSError as error:
            pytest.skip(f"the rendezvous' port is taken here: {error}")
    aws, ec2 = moto.aws, moto.aws.client("ec2")
    aws.client("s3").create_bucket(Bucket="mine")
    vpc = ec2.create_vpc(CidrBlock="10.7.0.0/24")["Vpc"]["VpcId"]
    ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.7.0.0/26")["Subnet"]["SubnetId"]
    made = aws.client("route53").create_hosted_zone(Name=NAME, CallerReference="here")
    zone = made["HostedZone"]["Id"].rpartition("/")[2]
    aws.client("ecs").create_cluster(clusterName="DS5110-Fargate-Cluster")
    options = Options(
        name="zoned", bucket="mine", cluster="DS5110-Fargate-Cluster", vpc=vpc, subnets=(subnet,),
        zone=zone, record=NAME,
    )  # fmt: skip
    done = deploy(
        aws, options, packages_folder, lambda event: None, lambda changes: True, compression=1,
        interpreter=PYTHON,
    )  # fmt: skip
    with Fargate(aws, done.outputs) as fargate:
        yield aws, done.outputs, fargate


def groups(aws, values):
    """Security groups that the stack made in the VPC that was given."""
    found = aws.client("ec2").describe_security_groups(
        Filters=[{"Name": "vpc-id", "Values": [values["VpcId"]]}]
    )["SecurityGroups"]
    return [group for group in found if group["GroupName"] != "default"]


def perseid(capsys, *words):
    status = main([*map(str, words), "--stack", "zoned"])
    said = capsys.readouterr()
    return status, said.out, said.err


def doctor(capsys):
    """Its findings by name: ok, note, BAD or -, and the sentence."""
    _, out, _ = perseid(capsys, "aws", "doctor")
    return {line[6:20].strip(): (line[:4].strip(), line[21:]) for line in out.splitlines()}


def records(aws, outputs):
    sets = aws.client("route53").list_resource_record_sets(HostedZoneId=outputs["HostedZone"])
    return {entry["Name"]: (entry["TTL"], [r["Value"] for r in entry["ResourceRecords"]])
            for entry in sets["ResourceRecordSets"] if entry["Type"] == "A"}  # fmt: skip


@pytest.fixture(scope="module")
def data(zoned, put_survey):
    put_survey("s3://mine/talk", 3)
    return "s3://mine/talk"


def test_what_was_there_is_used_and_nothing_made_in_its_place(zoned):
    aws, outputs, _ = zoned
    assert (outputs["Bucket"], outputs["RendezvousName"]) == ("mine", NAME)
    made = aws.client("cloudformation").list_stack_resources(StackName="zoned")
    names = {r["LogicalResourceId"] for r in made["StackResourceSummaries"]}
    assert not {"Cluster", "Vpc", "Subnet", "Gateway", "Route"} & names
    assert outputs["RendezvousCluster"] == "DS5110-Fargate-Cluster"
    values = stacks.describe(aws, "zoned").parameters
    [group] = groups(aws, values)
    assert [(rule["FromPort"], rule["ToPort"]) for rule in group["IpPermissions"]] == [
        (10000, 10001)
    ]
    updater = aws.client("lambda").get_function_configuration(FunctionName="zoned-dns-updater")
    assert updater["Environment"]["Variables"]["HOSTED_ZONE"] == outputs["HostedZone"]


def test_a_run_that_must_meet_has_it_started_and_stopped_after_itself(zoned, data, capsys):
    aws, outputs, _ = zoned
    results = "s3://mine/runs/early"
    words = ["--data", data, "--out", results, "--transport", "direct"]
    status, _, said = perseid(capsys, "run", "--engine", "aws", *words)
    assert status == 0, said
    left = json.loads(Storage(results).get("combined_data.json"))
    assert [record["transport"] for record in left] == ["direct"] * 3
    machine = outputs["StateMachineArn"]
    [execution] = aws.client("stepfunctions").list_executions(stateMachineArn=machine)["executions"]
    history = aws.client("stepfunctions").get_execution_history(
        executionArn=execution["executionArn"], maxResults=1000
    )["events"]
    entered = [e["stateEnteredEventDetails"]["name"] for e in history
               if "stateEnteredEventDetails" in e]  # fmt: skip
    assert "AwaitRendezvous" in entered
    status, out, _ = perseid(capsys, "aws", "rendezvous", "status")
    assert "of 0 wanted" in out
    plain = json.loads(perseid(capsys, "aws", "rendezvous", "status", "--json")[1])
    assert (plain["wanted"], plain["published"]["address"]) == (0, None)


def test_a_run_that_need_not_meet_starts_nothing(zoned, data, capsys):
    words = ["--data", data, "--out", "s3://mine/runs/auto", "--transport", "auto"]
    assert perseid(capsys, "run", "--engine", "aws", *words, "--quiet")[0] == 0
    left = json.loads(Storage("s3://mine/runs/auto").get("combined_data.json"))
    assert {record["transport"] for record in left} == {"store"}
    assert "of 0 wanted" in perseid(capsys, "aws", "rendezvous", "status")[1]


def test_started_it_has_a_name_and_an_address_and_answers(zoned, capsys):
    aws, outputs, _ = zoned
    status, out, said = perseid(capsys, "aws", "rendezvous", "start", "--wait", 60)
    assert status == 0, (out, said)
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["address"] == lines["published"] == ADDRESS
    assert lines["DNS"] == f"{NAME} -> {ADDRESS}"
    assert lines["ping"].endswith(" ms")
    assert records(aws, outputs) == {f"{NAME}.": (15, [ADDRESS])}
    found = doctor(capsys)
    for name in ("rendezvous", "address", "ping"):
        assert found[name][0] == "ok", found[name]
    assert "NAT" in found["ping"][1]  # a function of the stack has tried it


def test_ranks_find_it_by_the_parameter_and_meet_with_the_secret(zoned, data, capsys):
    results = "s3://mine/runs/talk"
    words = ["--data", data, "--out", results, "--transport", "direct"]
    status, out, said = perseid(capsys, "run", "--engine", "aws", *words)
    assert status == 0, said
    left = json.loads(Storage(results).get("combined_data.json"))
    assert [record["transport"] for record in left] == ["direct"] * 3
    manifest = json.loads(Storage(results).get("manifest.json"))
    assert manifest["settings"]["options"]["rendezvous_endpoint"] == ADDRESS
    assert "complete: 3 of 3 ranks" in out


def test_what_somebody_started_is_kept_by_runs_and_stopped_when_idle(zoned, capsys):
    """Not while a rank is registered there. (moto's tasks do not say since when they run.)"""
    aws, outputs, _ = zoned
    assert "of 1 wanted" in perseid(capsys, "aws", "rendezvous", "status")[1]  # a run used it
    name = outputs["RendezvousSecretParameter"]
    secret = aws.client("ssm").get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]
    key = job_key(secret.encode(), "somebody")
    with Client.register(f"{ADDRESS}:{DEFAULT_PORT}", "somebody", 0, 2, key=key):
        assert hourly_look(aws, outputs) == "kept for those who use it"
    eventually(lambda: hourly_look(aws, outputs) == "stopped", pause=0.2)
    assert "of 0 wanted" in perseid(capsys, "aws", "rendezvous", "status")[1]
    assert perseid(capsys, "aws", "rendezvous", "start", "--wait", 60)[0] == 0


def hourly_look(aws, outputs):
    """What the function does at the event of the schedule."""
    answer = aws.client("lambda").invoke(
        FunctionName=outputs["DnsUpdaterFunction"],
        Payload=json.dumps({"detail-type": "Scheduled Event"}).encode(),
    )
    return json.loads(answer["Payload"].read())["done"]


def test_a_stale_record_is_seen_by_doctor_and_put_right_by_start(zoned, capsys):
    aws, outputs, _ = zoned
    stale = {"Name": NAME, "Type": "A", "TTL": 15, "ResourceRecords": [{"Value": "192.0.2.7"}]}
    aws.client("route53").change_resource_record_sets(
        HostedZoneId=outputs["HostedZone"],
        ChangeBatch={"Changes": [{"Action": "UPSERT", "ResourceRecordSet": stale}]},
    )
    state, said = doctor(capsys)["address"]
    assert state == "BAD"
    assert f"the task is at {ADDRESS}" in said
    assert "the DNS record 192.0.2.7: `perseid aws rendezvous start` publishes it again" in said
    assert perseid(capsys, "aws", "rendezvous", "status")[0] == 1
    assert perseid(capsys, "aws", "rendezvous", "start")[0] == 0
    assert doctor(capsys)["address"][0] == "ok"
    assert records(aws, outputs) == {f"{NAME}.": (15, [ADDRESS])}


def test_stopped_it_costs_nothing_and_the_parameter_says_so(zoned, capsys):
    aws, outputs, fargate = zoned
    status, out, _ = perseid(capsys, "aws", "rendezvous", "stop")
    assert (status, "costs nothing" in out) == (0, True)
    eventually(lambda: fargate.task is None)
    fargate.told.wait(30)
    status, out, _ = perseid(capsys, "aws", "rendezvous", "status")
    assert status == 0
    assert "published   none" in out
    assert doctor(capsys)["rendezvous"][0] == "-"
    assert perseid(capsys, "aws", "destroy", "--yes", "--delete-bucket")[1].count("kept: ") == 1
    assert records(aws, outputs) == {}  # its address soon is somebody else's
    assert aws.client("s3").head_bucket(Bucket="mine")  # given, so never deleted
