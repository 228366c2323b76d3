"""The rendezvous of a run: find it if it runs, start it if the run needs it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perseid.aws.handlers import log
from perseid.aws.handlers.service_address import ServiceNames, read
from perseid.aws.handlers.service_lifetime import (
    START_SECONDS,
    ask_for_task,
    stop_unless_needed,
)
from perseid.errors import BadInputError, RunError
from perseid.pipeline.request import RunRequest

STARTING = "perseid_starting"
"""Key of a state in which the state machine waits and then calls initialize again."""


@dataclass(frozen=True)
class Wait:
    """How long an execution has waited for its rendezvous."""

    since: float = 0.0
    """When the execution first requested the rendezvous, in seconds since the epoch; 0 if it did
    not."""
    started: bool = False
    """Whether this execution started the rendezvous, because no task was wanted before; it then
    also stops it."""

    @classmethod
    def of(cls, given: object) -> tuple[object, Wait]:
        """The execution's own input, and its wait if initialize is called again."""
        if not isinstance(given, Mapping) or STARTING not in given:
            return given, cls()
        return given["input"], cls(float(given["since"]), bool(given["started"]))

    def state(self, given: object) -> dict[str, object]:
        """The state that the state machine returns to initialize after a while."""
        return {"ok": True, STARTING: True, "input": given, **vars(self)}


def with_endpoint(request: RunRequest, wait: Wait, client: Any) -> tuple[RunRequest | None, Wait]:
    """The request with the stack's own rendezvous, if ranks are to communicate and it names none.

    Returns None instead of a request while the rendezvous is starting.

    Raises
    ------
    BadInputError
        Ranks must communicate, and the stack has no rendezvous.
    RunError
        The rendezvous did not start in time.
    """
    name = os.environ.get("ADDRESS_PARAMETER")
    if request.transport == "store" or request.rendezvous_endpoint or name is None:
        return request, wait
    may_do_without = request.transport == "auto"
    if not name and not may_do_without:
        raise BadInputError(
            f"transport is {request.transport} but this stack has no rendezvous: deploy it with "
            "`perseid aws deploy --rendezvous`, or leave `transport` at store"
        )
    if not name:
        return request, wait
    here = ServiceNames.of_environment()
    if not may_do_without:
        wait = _asked(here, wait, client)
    address = read(here, client).address
    if address is not None:
        return RunRequest.parse({**request.given(), "rendezvous_endpoint": address}), wait
    if may_do_without:
        return request, wait
    if time.time() - wait.since > START_SECONDS:
        raise RunError(
            f"transport is {request.transport}, but no task of {here.service} came to run within "
            f"{START_SECONDS:g} s: its log group is /perseid/{here.service}"
        )
    return None, wait


def stop_after(started: bool, execution: str, client: Any) -> None:
    """At the end of an execution that started the rendezvous, request that no task runs any more.

    A failure is only logged, because the hourly check will stop the rendezvous.
    """
    machine = os.environ.get("STATE_MACHINE")
    if not started or machine is None:
        return
    try:
        done = stop_unless_needed(ServiceNames.of_environment(), client, machine, execution)
    except Exception as error:  # the run is done and must not fail because of this
        done = f"not stopped: {str(error)[:500]}"
    log.write("rendezvous", done=done)


def _asked(here: ServiceNames, wait: Wait, client: Any) -> Wait:
    """Request a task once; later calls of the same execution only check whether it runs."""
    if wait.since:
        return wait
    stopped = ask_for_task(here, client)
    log.write("rendezvous", done="asked for" if stopped else "runs already")
    return Wait(time.time(), stopped)
