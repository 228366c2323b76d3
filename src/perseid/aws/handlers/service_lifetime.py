"""When the rendezvous runs: from the first run that needs it until nothing uses it.

A run starts it and stops it at its end. If a run is stopped before that, or a person started it and
forgot it, the next hourly check that finds it idle stops it.
"""

from __future__ import annotations

import re
import time
import urllib.request
from datetime import datetime
from typing import Any

from perseid.aws.handlers.service_address import ServiceAddress, ServiceNames, forget, look

START_SECONDS = 300.0
"""Longest wait for a task in seconds: pull of the image, start, address."""
IDLE_SECONDS = 3600.0
"""Seconds for which somebody may still be waiting for a new task."""
HTTP_PORT = 10001
HTTP_SECONDS = 5.0
_IN_USE = re.compile(r"^perseid_rendezvous_(ranks|tcpunch_waiting|relays) (\S+)$", re.MULTILINE)


def ask_for_task(names: ServiceNames, client: Any) -> bool:
    """Request one task; returns whether none was wanted before."""
    ecs = client("ecs")
    found = ecs.describe_services(cluster=names.cluster, services=[names.service])["services"]
    stopped = not found or not found[0]["desiredCount"]
    if stopped:
        forget(names, client)  # the address belongs to a task that is ending
    # Also if one is wanted already: another run that is about to stop it checks again after this.
    _want(names, client, 1)
    return stopped


def stop_unless_needed(names: ServiceNames, client: Any, machine: str, execution: str) -> str:
    """Request that no task runs unless another execution is running; returns a few words saying
    what was done.

    Parameters
    ----------
    machine
        ARN of the state machine whose executions use the rendezvous.
    execution
        Name of the execution that is about to end.
    """
    if _others(client, machine, execution):
        return "kept for another run"
    forget(names, client)
    _want(names, client, 0)
    if _others(client, machine, execution):  # another execution began meanwhile
        _want(names, client, 1)
        return "kept for another run"
    return "stopped"


def stop_if_idle(
    names: ServiceNames, client: Any, machine: str, *, idle_seconds: float = IDLE_SECONDS
) -> str:
    """Request that no task runs if no execution is running and no rank is registered."""
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
    """Whether an execution with another name is running."""
    pages = client("stepfunctions").get_paginator("list_executions")
    running = pages.paginate(stateMachineArn=machine, statusFilter="RUNNING")
    return any(entry["name"] != execution for page in running for entry in page["executions"])


def _age(place: ServiceAddress) -> float:
    """Seconds since the task started; infinite if that is unknown."""
    try:
        return time.time() - datetime.fromisoformat(place.started or "").timestamp()
    except ValueError:
        return float("inf")


def _in_use(address: str) -> bool:
    """Whether any rank is registered there; a server that does not answer counts as unused."""
    try:
        url = f"http://{address}:{HTTP_PORT}/metrics"
        with urllib.request.urlopen(url, timeout=HTTP_SECONDS) as answer:
            text = answer.read(1 << 16).decode("utf-8", "replace")
    except (OSError, ValueError):
        return False
    return any(float(number) > 0 for _, number in _IN_USE.findall(text))
