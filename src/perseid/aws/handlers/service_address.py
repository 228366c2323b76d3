"""The rendezvous' address: its task's public address, published in a parameter and in DNS.

What ECS says now is published, never the contents of an event, which only triggers the check. So
late, repeated and reordered events all lead to the same record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from perseid.jsontext import parse_json

TTL = 15
"""Seconds for which resolvers may cache the address."""
ROUNDS = 5
"""Most attempts until the published address agrees with what ECS says."""


@dataclass(frozen=True)
class ServiceAddress:
    """The running task of the service, if there is one."""

    address: str | None = None
    """Public IPv4 address; empty if no task runs."""
    task: str | None = None
    """ARN of the task."""
    started: str | None = None
    """When the task started, in ISO 8601, UTC."""


@dataclass(frozen=True)
class ServiceNames:
    """Names of the stack's resources from which the address is read and in which it is
    published."""

    cluster: str
    service: str
    parameter: str
    zone: str = ""
    """Id of the hosted zone; empty if there is no DNS record."""
    record: str = ""
    """Name of the DNS record, e.g. ``rendezvous.example.org``."""

    @classmethod
    def of_environment(cls) -> ServiceNames:
        """Read the names that the template put into a function's environment."""
        env = os.environ
        return cls(
            cluster=env["CLUSTER"],
            service=env["SERVICE"],
            parameter=env.get("ADDRESS_PARAMETER", ""),
            zone=env.get("HOSTED_ZONE", ""),
            record=env.get("RECORD_NAME", ""),
        )


@dataclass(frozen=True)
class Task:
    """A task as described by DescribeTasks."""

    arn: str
    status: str
    """State of the task, e.g. ``RUNNING``."""
    started: str
    """When it started, or when it was created if it has not started; ISO 8601, UTC."""
    interface: str | None
    """Id of the task's network interface."""

    @classmethod
    def of(cls, entry: Mapping[str, object]) -> Task:
        """Create it from an entry of the answer."""
        return cls(
            str(entry["taskArn"]), str(entry["lastStatus"]), _started(entry), _interface(entry)
        )


def publish(names: ServiceNames, client: Any) -> ServiceAddress:
    """Publish the address of the service's newest running task.

    Parameters
    ----------
    client
        Function such that ``client("ecs")`` returns a boto3 client.

    Returns
    -------
    What is published now. If two callers publish at once, the later writer checks again, so the
    record ends up as ECS says.
    """
    place = look(names, client)
    for _ in range(ROUNDS):
        _write(names, place, client)
        # Check again after writing: of two overlapping updaters, the one that read earlier may
        # write later, and its address would stay.
        now = look(names, client)
        if now == place:
            break
        place = now
    return place


def look(names: ServiceNames, client: Any) -> ServiceAddress:
    """The newest running task of the service, with its public address."""
    ecs = client("ecs")
    pages = ecs.get_paginator("list_tasks").paginate(
        cluster=names.cluster, serviceName=names.service, desiredStatus="RUNNING"
    )
    arns = [arn for page in pages for arn in page["taskArns"]]
    tasks: list[Task] = []
    for start in range(0, len(arns), 100):  # the most that DescribeTasks accepts
        part = arns[start : start + 100]
        found = ecs.describe_tasks(cluster=names.cluster, tasks=part)["tasks"]
        tasks += [Task.of(entry) for entry in found]
    for task in newest_first(tasks):
        address = _address(task, client("ec2"))
        if address is not None:
            return ServiceAddress(address, task.arn, task.started)
    return ServiceAddress()


def newest_first(tasks: Sequence[Task]) -> list[Task]:
    """The running tasks, the one that started last first."""
    running = [task for task in tasks if task.status == "RUNNING"]
    return sorted(running, key=lambda task: task.started, reverse=True)


def read(names: ServiceNames, client: Any) -> ServiceAddress:
    """The address that the parameter contains now; none if its text is not ours."""
    value = client("ssm").get_parameter(Name=names.parameter)["Parameter"]["Value"]
    try:
        plain = parse_json(value)
    except ValueError:
        return ServiceAddress()
    found = plain if isinstance(plain, Mapping) else {}
    known = {field.name: found.get(field.name) for field in fields(ServiceAddress)}
    # Somebody may have edited the parameter: values that are not text are not an address.
    if not all(isinstance(value, str | None) for value in known.values()):
        return ServiceAddress()
    return ServiceAddress(**known)


def forget(names: ServiceNames, client: Any) -> None:
    """Clear the address in the parameter, because the task is about to end."""
    _put(names, ServiceAddress(), client)


def recorded(names: ServiceNames, client: Any) -> Sequence[str]:
    """The addresses in the DNS record; empty if it does not exist."""
    if not names.zone:
        return []
    answer = client("route53").list_resource_record_sets(
        HostedZoneId=names.zone, StartRecordName=names.record, StartRecordType="A", MaxItems="1"
    )
    sets = [
        entry
        for entry in answer["ResourceRecordSets"]
        if entry["Name"].rstrip(".") == names.record.rstrip(".") and entry["Type"] == "A"
    ]
    return [value["Value"] for entry in sets for value in entry.get("ResourceRecords", ())]


def _started(entry: Mapping[str, object]) -> str:
    when = entry.get("startedAt") or entry.get("createdAt") or datetime.fromtimestamp(0, UTC)
    return when.astimezone(UTC).isoformat() if isinstance(when, datetime) else str(when)


def _interface(entry: Any) -> str | None:
    """Id of the task's network interface, from DescribeTasks."""
    details = {
        detail["name"]: detail["value"]
        for attachment in entry.get("attachments", ())
        if attachment.get("type") == "ElasticNetworkInterface"
        for detail in attachment.get("details", ())
    }
    return details.get("networkInterfaceId")


def _address(task: Task, ec2: Any) -> str | None:
    """Public address of the task's network interface."""
    if task.interface is None:
        return None
    ids = [task.interface]
    found = ec2.describe_network_interfaces(NetworkInterfaceIds=ids)["NetworkInterfaces"]
    public = [entry["Association"].get("PublicIp") for entry in found if entry.get("Association")]
    return public[0] if public else None


def _write(names: ServiceNames, place: ServiceAddress, client: Any) -> None:
    if read(names, client) != place:
        _put(names, place, client)
    # The record of an ended task is kept: without any record, resolvers would remember for the
    # zone's negative caching time (900 s by default) that there is none.
    if names.zone and place.address and list(recorded(names, client)) != [place.address]:
        record = {
            "Name": names.record, "Type": "A", "TTL": TTL,
            "ResourceRecords": [{"Value": place.address}],
        }  # fmt: skip
        change = {"Action": "UPSERT", "ResourceRecordSet": record}
        client("route53").change_resource_record_sets(
            HostedZoneId=names.zone, ChangeBatch={"Changes": [change]}
        )


def _put(names: ServiceNames, place: ServiceAddress, client: Any) -> None:
    client("ssm").put_parameter(
        Name=names.parameter, Value=json.dumps(asdict(place)), Type="String", Overwrite=True
    )
