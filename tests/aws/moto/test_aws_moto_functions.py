"""The stack's other functions on moto, as their zips are: payloads, ranks that meet, addresses."""

from __future__ import annotations

import json

import published
import pytest
from packets import assert_encrypted, captured

from perseid.cli import main
from perseid.rendezvous import Config, EmbeddedServer
from perseid.storage import Storage


def invoke(moto, output, event):
    """What a function answers."""
    answer = moto.aws.client("lambda").invoke(
        FunctionName=moto.outputs[output], Payload=json.dumps(event).encode()
    )
    return answer.get("FunctionError"), json.loads(answer["Payload"].read())


def test_an_existing_payload_with_its_own_script(moto, put_survey, tmp_path, capsys):
    path = published.write(moto.outputs["Bucket"], put_survey, tmp_path / "payload.json")
    assert main(["run", str(path), "--engine", "aws", "--workers", "2"]) == 0
    assert "complete: 4 of 4 ranks" in capsys.readouterr().out
    published.check(f"{moto.bucket}/{published.RESULTS}")


def test_ranks_meet_with_the_stacks_secret(moto, put_survey, tmp_path):
    """Three at once by MaxConcurrencyPath, which moto obeys; by the relay, where all is seen."""
    data, results = f"{moto.bucket}/talk", f"{moto.bucket}/runs/talk"
    put_survey(data, 3)
    name = moto.outputs["RendezvousSecretParameter"]
    ssm = moto.aws.client("ssm")
    secret = ssm.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"].encode()
    config = Config(host="127.0.0.1", port=0, http_port=None, secret=secret)
    with EmbeddedServer(config) as server:
        given = {"data": data, "results": results, "transport": "relay"}
        path = tmp_path / "request.json"
        path.write_text(json.dumps({**given, "rendezvous_endpoint": str(server.address)}))
        with captured(int(str(server.address).rpartition(":")[2])) as packets:
            assert main(["run", str(path), "--engine", "aws", "--quiet"]) == 0
    records = json.loads(Storage(results).get("combined_data.json"))
    assert [record["transport"] for record in records] == ["relay"] * 3
    assert_encrypted(packets, results, secret)


def test_ping_answers_from_where_the_workers_are(moto):
    with EmbeddedServer(Config(host="127.0.0.1", port=0, http_port=None)) as server:
        failed, said = invoke(moto, "PingFunction", {"rendezvous_endpoint": str(server.address)})
    assert failed is None
    assert said["perseid"]
    failed, said = invoke(moto, "PingFunction", {})
    assert (failed, said["errorType"]) == ("Unhandled", "BadInputError")


@pytest.fixture
def task(moto):
    """A task of the deployed service, with a public address as Fargate gives one.

    moto starts none itself, and its CloudFormation keeps neither memory nor network of the service.
    """
    ecs, ec2 = moto.aws.client("ecs"), moto.aws.client("ec2")
    cluster, name = moto.outputs["RendezvousCluster"], moto.outputs["RendezvousService"]
    of_the_stack = [{"Name": "cidr-block", "Values": ["10.83.0.0/26"]}]
    [subnet] = ec2.describe_subnets(Filters=of_the_stack)["Subnets"]
    ec2.modify_vpc_attribute(VpcId=subnet["VpcId"], EnableDnsHostnames={"Value": True})
    container = {"name": "rendezvous", "image": "python", "memory": 512}
    ecs.register_task_definition(
        family="by-hand", networkMode="awsvpc", requiresCompatibilities=["FARGATE"],
        containerDefinitions=[container],
    )  # fmt: skip
    groups = ec2.describe_security_groups(
        Filters=[{"Name": "vpc-id", "Values": [subnet["VpcId"]]}]
    )["SecurityGroups"]  # fmt: skip
    network = {"subnets": [subnet["SubnetId"]], "assignPublicIp": "ENABLED",
               "securityGroups": [group["GroupId"] for group in groups]}  # fmt: skip
    [task] = ecs.run_task(
        cluster=cluster, taskDefinition="by-hand", launchType="FARGATE", group=f"service:{name}",
        networkConfiguration={"awsvpcConfiguration": network},
    )["tasks"]  # fmt: skip
    details = {d["name"]: d["value"] for d in task["attachments"][0]["details"]}
    address = ec2.allocate_address(Domain="vpc")
    interface = details["networkInterfaceId"]
    ec2.associate_address(AllocationId=address["AllocationId"], NetworkInterfaceId=interface)
    yield task["taskArn"], address["PublicIp"]
    ecs.stop_task(cluster=cluster, task=task["taskArn"])


def test_the_dns_updaters_zip_publishes_the_task_of_the_deployed_service(moto, task, capsys):
    arn, address = task
    event = {"detail-type": "ECS Task State Change", "source": "aws.ecs",
             "detail": {"taskArn": arn, "lastStatus": "RUNNING"}}  # fmt: skip
    failed, said = invoke(moto, "DnsUpdaterFunction", event)
    assert (failed, said["address"], said["task"]) == (None, address, arn)
    name = moto.outputs["RendezvousAddressParameter"]
    value = moto.aws.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    assert json.loads(value)["address"] == address
    main(["aws", "rendezvous", "status"])
    assert address in capsys.readouterr().out
