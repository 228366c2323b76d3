"""The function that publishes the rendezvous' address when a task of its service changed, and stops
a rendezvous that nothing uses."""

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
"""Kind of the events that a rule sends from time to time."""


@answers_check()
def handler(event: Event, context: Any) -> Answer:
    """Look at ECS and publish; the event (EventBridge, *ECS Task State Change*) is not believed.

    At a *Scheduled Event* the rendezvous is stopped where nothing uses it.
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
    import boto3  # the Lambda runtime has it

    return boto3.client(service)
