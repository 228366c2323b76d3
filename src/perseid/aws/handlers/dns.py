"""The function that publishes the rendezvous' address when a task of its service changed."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from perseid.aws.handlers import log
from perseid.aws.handlers.ready import answers_check
from perseid.aws.handlers.service_address import ServiceNames, publish


@answers_check()
def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Look at ECS and publish; the event (EventBridge, *ECS Task State Change*) is not believed."""
    detail = event.get("detail") or {}
    log.write("looking", task=detail.get("taskArn"), status=detail.get("lastStatus"))
    place = asdict(publish(names(), _client))
    log.write("published", **place)
    return place


def names() -> ServiceNames:
    """What the template put into the environment."""
    env = os.environ
    return ServiceNames(
        cluster=env["CLUSTER"],
        service=env["SERVICE"],
        parameter=env["ADDRESS_PARAMETER"],
        zone=env.get("HOSTED_ZONE", ""),
        record=env.get("RECORD_NAME", ""),
    )


@functools.cache
def _client(service: str) -> Any:
    import boto3  # the Lambda runtime has it

    return boto3.client(service)
