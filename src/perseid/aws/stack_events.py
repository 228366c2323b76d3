"""Follow what CloudFormation does with a stack, event by event, until it is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from perseid.aws.session import aws_errors
from perseid.errors import AwsError, NotFoundError, RunInterruptedError
from perseid.measure.fields import Fields

POLL_SECONDS = 2.0
"""Seconds between two polls of the stack's events."""
UNSEEN_SECONDS = 15.0
"""Seconds without any event of an operation after which the stack's state is believed
nevertheless."""
STACK_SECONDS = 1800.0
"""Longest wait in seconds for a stack to be created, changed or deleted."""
PATIENCE_SECONDS = 300.0
"""Seconds for which polls may fail one after the other, as without a network or with expired
credentials."""
_GOES_ON = (
    "CloudFormation goes on without this command; run it again when that has ended (`perseid aws "
    "doctor` says how far it is)"
)
UNSEEN = "UNSEEN_IN_PROGRESS"
"""State of a stack that could not be read."""


@dataclass(frozen=True)
class Change:
    """One line of a change set."""

    action: str
    """Action: ``Add``, ``Modify`` or ``Remove``."""
    resource: str
    kind: str
    """Type of the resource, e.g. ``AWS::Lambda::Function``."""
    replacement: bool = False


@dataclass(frozen=True)
class StackEvent:
    """A resource reached a new state."""

    when: datetime
    resource: str
    kind: str
    status: str
    reason: str = ""


Tell = Callable[[Change | StackEvent | str], None]


def wait(client: Any, stack_id: str, seen: set[str], tell: Tell) -> None:
    """Report events that are not in `seen` until the operation has ended; raise the first failure.

    The stack's state is believed only after an event of this operation, because at first it may be
    the old one.
    """
    looks = _Looks(client, stack_id, seen, tell)
    try:
        status = looks.until_it_rests()
    except KeyboardInterrupt:
        raise RunInterruptedError(f"no longer waited for: {_GOES_ON}") from None
    if status not in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "DELETE_COMPLETE"):
        why = looks.first_failure or "no reason was given"
        raise AwsError(f"the stack ended as {status}: {why}")


class _Looks:
    """Polls of a stack, some of which may fail, because the operation does not depend on them."""

    def __init__(self, client: Any, stack_id: str, seen: set[str], tell: Tell) -> None:
        self._client, self._stack_id, self._seen, self._tell = client, stack_id, seen, tell
        self._begun = False
        self._worked = time.monotonic()
        self._said = ""
        self.first_failure = ""
        """The first failure. When one resource fails, CloudFormation cancels the others, whose
        events are only consequences."""

    def until_it_rests(self) -> str:
        """Wait until the operation has ended, and return the final state."""
        trusted = time.monotonic() + UNSEEN_SECONDS
        deadline, pause = time.monotonic() + STACK_SECONDS, 0.1
        while True:
            status = self._status()
            self._look_at_events()
            gone = status == "DELETE_COMPLETE"
            believed = self._begun or gone or time.monotonic() > trusted
            if believed and not status.endswith("IN_PROGRESS"):
                return status
            if time.monotonic() > deadline:
                raise AwsError(f"the stack is {status} for {STACK_SECONDS / 60:g} minutes: see the "
                               "CloudFormation console")  # fmt: skip
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS)

    def _look_at_events(self) -> None:
        for event in _new_events(self._client, self._stack_id, self._seen):
            self._begun = True
            failed = event.status.endswith("FAILED") and "cancelled" not in event.reason
            if failed and not self.first_failure:
                self.first_failure = f"{event.resource} ({event.kind}): {event.reason}"
            self._tell(event)

    def _status(self) -> str:
        try:
            found = _status(self._client, self._stack_id)
        except AwsError as error:
            if time.monotonic() - self._worked >= PATIENCE_SECONDS:
                raise AwsError(f"{error}; {_GOES_ON}") from error
            if str(error) != self._said:  # once, not every two seconds
                self._tell(f"CloudFormation goes on, but its progress cannot be read: {error}")
            self._said = str(error)
            return UNSEEN
        self._worked, self._said = time.monotonic(), ""
        return found


def _status(client: Any, stack_id: str) -> str:
    try:
        with aws_errors():
            found = client.describe_stacks(StackName=stack_id)["Stacks"]
    except AwsError as error:
        if "does not exist" in str(error):
            return "DELETE_COMPLETE"
        raise
    return str(found[0]["StackStatus"]) if found else "DELETE_COMPLETE"


def last_events(client: Any, stack_id: str) -> set[str]:
    """Ids of the newest events, by which later ones are recognized, since clocks may differ."""
    try:
        with aws_errors():
            found = client.describe_stack_events(StackName=stack_id)["StackEvents"]
    except (AwsError, NotFoundError):  # there are no events yet
        return set()
    return {entry["EventId"] for entry in found}


def _new_events(client: Any, stack_id: str, seen: set[str]) -> list[StackEvent]:
    """Events that were not seen yet, oldest first; AWS lists the newest first."""
    fresh: list[StackEvent] = []
    try:
        with aws_errors():
            for page in client.get_paginator("describe_stack_events").paginate(StackName=stack_id):
                known = [entry["EventId"] in seen for entry in page["StackEvents"]]
                count = known.index(True) if True in known else len(known)
                entries = page["StackEvents"][:count]
                seen.update(entry["EventId"] for entry in entries)
                fresh += [_event(Fields(entry), entry["Timestamp"]) for entry in entries]
                if count < len(known):
                    break
    except (AwsError, NotFoundError):  # a deleted stack may have no events
        return []
    return fresh[::-1]


def _event(entry: Fields, when: datetime) -> StackEvent:
    return StackEvent(
        _utc(when), entry.text("LogicalResourceId") or "", entry.text("ResourceType") or "",
        entry.text("ResourceStatus") or "", entry.text("ResourceStatusReason") or "",
    )  # fmt: skip


def _utc(when: datetime) -> datetime:
    return when if when.tzinfo else when.replace(tzinfo=UTC)
