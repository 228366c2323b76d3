"""When the rendezvous runs: from the first run that needs it until nothing does.

A run asks for it and stops it after itself. What a run leaves behind that was stopped, and what
a person started and forgot, ends at the next hourly look that finds it idle.
"""

from __future__ import annotations

import re
import time
import urllib.request
from datetime import datetime
from typing import Any

from perseid.aws.handlers.service_address import ServiceAddress, ServiceNames, forget, look

START_SECONDS = 300.0
"""Longest wait for a task: image, start, address."""
IDLE_SECONDS = 3600.0
"""A task that is younger may still be waited for."""
HTTP_PORT = 10001
HTTP_SECONDS = 5.0
_IN_USE = re.compile(r"^perseid_rendezvous_(ranks|tcpunch_waiting|relays) (\S+)$", re.MULTILINE)


def ask_for_task(names: ServiceNames, client: Any) -> bool:
    """Have one task wanted; whether none was before."""
    ecs = client("ecs")
    found = ecs.describe_services(cluster=names.cluster, services=[names.service])["services"]
    stopped = not found or not found[0]["desiredCount"]
    if stopped:
        forget(names, client)  # the address of a task that ends
    # Also where one is wanted: whoever is about to stop it for another run looks again after this.
    _want(names, client, 1)
    return stopped


def stop_unless_needed(names: ServiceNames, client: Any, machine: str, execution: str) -> str:
    """Have no task wanted, unless another execution goes on; what was done, in a word or two.

    Parameters
    ----------
    machine
        ARN of the state machine whose executions use the rendezvous.
    execution
        Name of the one that is about to end.
    """
    if _others(client, machine, execution):
        return "kept for another run"
    forget(names, client)
    _want(names, client, 0)
    if _others(client, machine, execution):  # it began meanwhile
        _want(names, client, 1)
        return "kept for another run"
    return "stopped"


def stop_if_idle(
    names: ServiceNames, client: Any, machine: str, *, idle_seconds: float = IDLE_SECONDS
) -> str:
    """Have no task wanted where no execution goes on and no rank is registered."""
    place = look(names, client)
    if place.address is None or _age(place) < idle_seconds:
        return "nothing to stop"
    if _others(client, machine, ""):
        return "kept for a run"
    if _in_use(place.address):
        return "kept for those who use it"
    forget(names, client)
    _want(names, client, 0)
    return "stopped"


def _want(names: ServiceNames, client: Any, count: int) -> None:
    client("ecs").update_service(cluster=names.cluster, service=names.service, desiredCount=count)


def _others(client: Any, machine: str, execution: str) -> bool:
    """Whether an execution of another name goes on."""
    pages = client("stepfunctions").get_paginator("list_executions")
    running = pages.paginate(stateMachineArn=machine, statusFilter="RUNNING")
    return any(entry["name"] != execution for page in running for entry in page["executions"])


def _age(place: ServiceAddress) -> float:
    """Seconds since the task started; without end where nothing says when."""
    try:
        return time.time() - datetime.fromisoformat(place.started or "").timestamp()
    except ValueError:
        return float("inf")


def _in_use(address: str) -> bool:
    """Whether anybody is registered there; a server that does not answer is of use to nobody."""
    try:
        url = f"http://{address}:{HTTP_PORT}/metrics"
        with urllib.request.urlopen(url, timeout=HTTP_SECONDS) as answer:
            text = answer.read(1 << 16).decode("utf-8", "replace")
    except (OSError, ValueError):
        return False
    return any(float(number) > 0 for _, number in _IN_USE.findall(text))
