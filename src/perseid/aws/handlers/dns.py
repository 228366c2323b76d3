"""The function that publishes the rendezvous' address after a task of its service changed, and that
stops a rendezvous that nothing uses."""

from __future__ import annotations

import functools
import os
from dataclasses import asdict
from typing import Any

from perseid.aws.handlers import log
from perseid.aws.handlers.ready import Answer, Event, answers_check, inner
from perseid.aws.handlers.service_address import ServiceNames, publish
from perseid.aws.handlers.service_lifetime import stop_if_idle

SCHEDULED = "Scheduled Event"
"""Kind of the events that an EventBridge rule sends periodically."""


@answers_check()
def handler(event: Event, context: Any) -> Answer:
    """Ask ECS for the address and publish it; the contents of the event (EventBridge, *ECS Task
    State Change*) are not trusted.

    At a *Scheduled Event* the rendezvous is stopped if nothing uses it.
    """
    here = ServiceNames.of_environment()
    if event.get("detail-type") == SCHEDULED:
        done = stop_if_idle(here, _client, os.environ["STATE_MACHINE"])
        log.write("idle", done=done)
        return {"done": done}
    detail = inner(event, "detail")
    log.write("looking", task=detail.get("taskArn"), status=detail.get("lastStatus"))
    place = asdict(publish(here, _client))
    log.write("published", **place)
    return place


@functools.cache
def _client(service: str) -> Any:
    import boto3  # part of the Lambda runtime

    return boto3.client(service)
