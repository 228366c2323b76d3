"""The ECS service of the rendezvous: start it for a run, stop it afterwards, and find its
address."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from perseid.aws import stack
from perseid.aws.handlers.service_address import (
    ServiceAddress,
    ServiceNames,
    look,
    publish,
    read,
    recorded,
)
from perseid.aws.session import Aws, aws_errors
from perseid.errors import AwsError, BadInputError, NotFoundError, RendezvousUnreachableError
from perseid.rendezvous.client.connectivity import Ping, ping
from perseid.rendezvous.net import DEFAULT_PORT, Endpoint

START_SECONDS = 300.0
"""Longest wait in seconds for the task: pull of the image, start, address."""
PING_SECONDS = 5.0
POLL_SECONDS = 2.0
REMAKE = (
    "CloudFormation does not notice what was deleted or changed without it: another deploy would "
    "do nothing: `perseid aws destroy` (data stays), then `perseid aws deploy`"
)
"""What to do if a part of a stack is missing."""


@dataclass(frozen=True)
class Status:
    """Status of the rendezvous' service."""

    wanted: int
    """Number of tasks that are wanted: 0 or 1."""
    running: int
    task: ServiceAddress
    """The task, according to ECS."""
    published: ServiceAddress
    """The address in the parameter."""
    recorded: tuple[str, ...]
    """Addresses in the DNS record."""
    name: str
    """The DNS name; empty if there is none."""

    @property
    def consistent(self) -> bool:
        """Whether the parameter and the DNS record agree with ECS."""
        same = self.published.address == self.task.address
        return same and (
            not self.name or not self.task.address or self.recorded == (self.task.address,)
        )

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint to connect to, with the DNS name if there is one."""
        if self.task.address is None:
            return None
        return Endpoint(self.name or self.task.address, DEFAULT_PORT)


def names(outputs: Mapping[str, str]) -> ServiceNames:
    """Names from the stack's outputs; raises `BadInputError` if the stack has no rendezvous."""
    if "RendezvousCluster" not in outputs:
        raise BadInputError(
            "this stack has no rendezvous: its ranks exchange through the bucket; `perseid aws "
            "deploy --rendezvous` adds one"
        )
    return ServiceNames(
        outputs["RendezvousCluster"],
        outputs["RendezvousService"],
        outputs["RendezvousAddressParameter"],
        outputs.get("HostedZone", ""),
        outputs.get("RendezvousName", ""),
    )


def status(aws: Aws, name: str) -> Status:
    """Ask ECS whether the stack's rendezvous runs, and where."""
    here = names(stack.outputs(aws, name))
    with aws_errors():
        service = _service(aws, here)
        return Status(
            int(service["desiredCount"]),
            int(service["runningCount"]),
            look(here, aws.client),
            read(here, aws.client),
            tuple(recorded(here, aws.client)),
            here.record,
        )


def start(
    aws: Aws, name: str, tell: Callable[[str], None], *, seconds: float = START_SECONDS
) -> Status:
    """Request one task and wait until its address is published.

    The address is also published from here, so that nothing has to wait for the ECS event.

    Raises
    ------
    AwsError
        The task did not start in time; the message contains ECS's last event.
    """
    here = names(stack.outputs(aws, name))
    _want(aws, here, 1)
    tell("asked for one task; it takes about a minute until it runs")
    deadline = time.monotonic() + seconds
    while True:
        with aws_errors():
            place = look(here, aws.client)
        if place.address is not None:
            break
        if time.monotonic() > deadline:
            raise AwsError(
                f"no task of {here.service} runs after {seconds:g} s: {_last_event(aws, here)}; "
                f"its log group is /perseid/{name}-rendezvous"
            )
        time.sleep(POLL_SECONDS)
    with aws_errors():
        publish(here, aws.client)
    return status(aws, name)


def drain(aws: Aws, outputs: Mapping[str, str], tell: Callable[[str], None]) -> None:
    """Stop the task before the stack is deleted, so that its address is released and its service
    can be deleted.

    A failure here is reported and does not stop the command: deleting the stack may still work.
    """
    here = names(outputs)
    try:
        found = _service(aws, here)
        if not int(found["desiredCount"]) and not int(found["runningCount"]):
            return
        tell("stopping the rendezvous first")
        _want(aws, here, 0)
        deadline = time.monotonic() + START_SECONDS
        while int(found["runningCount"]) + int(found.get("pendingCount", 0)):
            if time.monotonic() > deadline:
                tell(f"its task has not ended within {START_SECONDS:g} s")
                return
            time.sleep(POLL_SECONDS)
            found = _service(aws, here)
    except (AwsError, NotFoundError) as error:
        tell(f"the rendezvous could not be stopped first: {error}")


def stop(aws: Aws, name: str) -> None:
    """Request no task: the running one drains and ends, and causes no further cost."""
    _want(aws, names(stack.outputs(aws, name)), 0)


def try_it(endpoint: Endpoint) -> Ping | str:
    """The result of a ping from this machine, or a sentence saying why it failed."""
    try:
        return ping(endpoint, PING_SECONDS)
    except RendezvousUnreachableError as error:
        return str(error)


def _want(aws: Aws, here: ServiceNames, count: int) -> None:
    # If the service is gone, this says what to do; an update would only say "not found".
    _service(aws, here)
    with aws_errors():
        aws.client("ecs").update_service(
            cluster=here.cluster, service=here.service, desiredCount=count
        )


def _service(aws: Aws, here: ServiceNames) -> Mapping[str, Any]:
    """The service. ECS still lists a deleted one for a while, as inactive."""
    try:
        with aws_errors():
            found = aws.client("ecs").describe_services(
                cluster=here.cluster, services=[here.service]
            )["services"]
    except NotFoundError:  # the cluster is gone
        found = []
    if not found or found[0].get("status", "ACTIVE") != "ACTIVE":
        raise AwsError(f"the service {here.service} is gone: {REMAKE}")
    return dict(found[0])


def _last_event(aws: Aws, here: ServiceNames) -> str:
    with aws_errors():
        events = _service(aws, here).get("events", ())
    return str(events[0]["message"]) if events else "ECS said nothing"
