"""The CloudFormation stack: change sets, live events, outputs, deletion."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from perseid.aws.session import Aws, aws_errors, error_code
from perseid.errors import AwsError, BadInputError, NotFoundError
from perseid.measure.fields import Fields

POLL_SECONDS = 2.0
"""Between two looks at the stack's events."""
CHANGE_SET_SECONDS = 300.0
UNSEEN_SECONDS = 15.0
"""So long an operation may show no event until the stack's state is believed nevertheless."""
STACK_SECONDS = 1800.0
"""Longest wait for a stack to be made, changed or deleted."""
TAG = "perseid:stack"
"""On our stacks, and on the bucket that we made; its value is the stack's name."""
DESCRIPTION = "perseid - "
"""How the template's description begins: the mark of a stack that lost its tag."""
_UNCHANGED = ("didn't contain changes", "No updates are to be performed")


@dataclass(frozen=True)
class Change:
    """One line of a change set."""

    action: str
    """``Add``, ``Modify``, ``Remove``."""
    resource: str
    kind: str
    """E.g. ``AWS::Lambda::Function``."""
    replacement: bool = False


@dataclass(frozen=True)
class StackEvent:
    """One resource came to a new state."""

    when: datetime
    resource: str
    kind: str
    status: str
    reason: str = ""


Tell = Callable[[Change | StackEvent | str], None]
NEVER_MADE = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED")
"""States of a stack that takes no update; it can be deleted and made again."""


@dataclass(frozen=True)
class Description:
    """A stack as CloudFormation describes it."""

    status: str
    """E.g. ``UPDATE_COMPLETE``."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """None where it never was made whole."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Values that it was made with."""
    tags: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    """The template's description."""
    arn: str = ""

    @classmethod
    def of(cls, answer: Fields) -> Description:
        """From an entry of DescribeStacks."""
        return cls(
            answer.text("StackStatus") or "",
            _pairs(answer, "Outputs", "OutputKey", "OutputValue"),
            _pairs(answer, "Parameters", "ParameterKey", "ParameterValue"),
            _pairs(answer, "Tags", "Key", "Value"),
            answer.text("Description") or "",
            answer.text("StackId") or "",
        )

    @property
    def under_review(self) -> bool:
        """Whether a change set is all there is of it."""
        return self.status == "REVIEW_IN_PROGRESS"

    @property
    def lasting_parameters(self) -> Mapping[str, str]:
        """Values that it was made with; none of a stack that never came to be whole."""
        lasts = self.status == "CREATE_COMPLETE" or self.status.startswith(("UPDATE_", "IMPORT_"))
        return self.parameters if lasts else {}

    def is_ours(self, name: str) -> bool:
        """Whether it bears the tag or the description of perseid's stacks."""
        return self.tags.get(TAG) == name or self.text.startswith(DESCRIPTION)

    def check_idle(self, name: str) -> None:
        """Raise `AwsError` while another operation is under way: it takes no second one."""
        if self.status.endswith("IN_PROGRESS") and not self.under_review:
            raise AwsError(
                f"the stack {name} is {self.status}: somebody is changing it; wait until that has "
                "ended"
            )

    def check_takes_update(self, name: str) -> None:
        """Raise `AwsError`, saying what to do, where it takes no update now."""
        self.check_idle(name)
        if self.status == "UPDATE_ROLLBACK_FAILED":
            raise AwsError(
                f"the stack {name} is {self.status}: run `aws cloudformation "
                f"continue-update-rollback --stack-name {name}`, and then this again"
            )


NOT_THERE = Description("")
"""Status of a stack that does not exist."""


def _pairs(answer: Fields, section: str, key: str, value: str) -> dict[str, str]:
    return {entry.text(key) or "": entry.text(value) or "" for entry in answer.rows(section)}


def describe(aws: Aws, name: str) -> Description | None:
    """The stack, or None where there is none."""
    try:
        with aws_errors():
            answer = Fields(aws.client("cloudformation").describe_stacks(StackName=name))
    except AwsError as error:
        if error_code(error) == "ValidationError" and "does not exist" in str(error):
            return None
        raise
    found = [Description.of(entry) for entry in answer.rows("Stacks")]
    return None if not found or found[0].status == "DELETE_COMPLETE" else found[0]


def describe_ours(aws: Aws, name: str) -> Description | None:
    """The stack, or None where there is none.

    Raises
    ------
    BadInputError
        A stack of this name is there, but it is not one of perseid's.
    """
    found = describe(aws, name)
    # What is only under review holds nothing yet, and bears no mark.
    if found is None or found.under_review or found.is_ours(name):
        return found
    raise BadInputError(
        f"the stack {name} in {aws.region} is not perseid's: it has neither the tag {TAG} nor our "
        "description; give another --stack"
    )


def outputs(aws: Aws, name: str) -> dict[str, str]:
    """The stack's outputs.

    Raises
    ------
    NotFoundError
        There is no such stack here.
    """
    stack = describe(aws, name)
    if stack is None or stack.under_review:
        raise NotFoundError(
            f"there is no stack {name} in {aws.region}: make it with `perseid aws deploy`, or give "
            "--region or --stack"
        )
    return dict(stack.outputs)


def change(
    aws: Aws, name: str, body: str, values: Mapping[str, str], tell: Tell,
    confirm: Callable[[list[Change]], bool],
) -> bool:  # fmt: skip
    """Make the stack, or bring it up to the template; whether anything was changed.

    Parameters
    ----------
    body, values
        Template and its parameters.
    tell
        Called with each event while waiting.
    confirm
        Shown the changes first; False stops it, and nothing was done.

    Raises
    ------
    AwsError
        It failed, with the first reason that CloudFormation gave, or took too long.
    BadInputError
        The stack is not one of perseid's.
    """
    former = describe_ours(aws, name)
    (former or NOT_THERE).check_takes_update(name)
    if former is not None and former.status in NEVER_MADE:
        tell(f"the stack {name} failed to be made before: its rest is removed first")
        delete(aws, name, tell)
        former = None
    # A stack under review exists in name only: a change set was made and never carried out.
    fresh = former is None or former.under_review
    client = aws.client("cloudformation")
    with aws_errors():
        # A change set and not a plain update: the user sees what would be replaced before it is.
        made = client.create_change_set(
            StackName=name,
            ChangeSetName=f"perseid-{int(time.time() * 1000)}",
            ChangeSetType="CREATE" if fresh else "UPDATE",
            TemplateBody=body,
            Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in values.items()],
            Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM"],
            Tags=[{"Key": TAG, "Value": name}],
        )
        this = {"StackName": name, "ChangeSetName": made["Id"]}  # the name, too: policies have it
        changes = _changes(client, this)
        if changes is None:
            client.delete_change_set(**this)
            return False
        if not confirm(changes):
            client.delete_change_set(**this)
            if fresh:
                client.delete_stack(StackName=name)
            return False
        # Before the change begins. By id rather than by time, for this machine's clock may be
        # wrong.
        seen = _last_events(client, made["StackId"])
        client.execute_change_set(**this)
        _wait(client, made["StackId"], seen, tell)
    return True


def delete(aws: Aws, name: str, tell: Tell) -> None:
    """Delete the stack, which must be ours, and wait until it is gone."""
    stack = describe_ours(aws, name)
    if stack is None:
        return
    client = aws.client("cloudformation")
    with aws_errors():
        seen = _last_events(client, stack.arn)
        client.delete_stack(StackName=name)
        _wait(client, stack.arn, seen, tell)


def _changes(client: Any, this: Mapping[str, str]) -> list[Change] | None:
    """What a change set would do, once CloudFormation knows; None where nothing."""
    deadline = time.monotonic() + CHANGE_SET_SECONDS
    while True:
        found = client.describe_change_set(**this)
        if found["Status"] in ("CREATE_COMPLETE", "FAILED"):
            break
        if time.monotonic() > deadline:
            raise AwsError(f"the change set is {found['Status']} for {CHANGE_SET_SECONDS:g} s")
        time.sleep(POLL_SECONDS / 8)
    if found["Status"] == "FAILED":
        reason = found.get("StatusReason", "")
        if any(text in reason for text in _UNCHANGED):
            return None
        failed = "; ".join(_failed_events(client, this)) or reason
        raise AwsError(f"CloudFormation refuses the change: {failed}")
    entries = list(found.get("Changes", ()))
    while found.get("NextToken"):
        found = client.describe_change_set(**this, NextToken=found["NextToken"])
        entries += found.get("Changes", ())
    changes = [entry["ResourceChange"] for entry in entries]
    return [
        Change(
            entry["Action"], entry["LogicalResourceId"], entry["ResourceType"],
            entry.get("Replacement") in ("True", "Conditional"),
        )
        for entry in changes
    ]  # fmt: skip


def _failed_events(client: Any, this: Mapping[str, str]) -> list[str]:
    """Why a change set was refused: its validation names resource and property in events."""
    try:
        with aws_errors():
            found = client.describe_events(**this, Filters={"FailedEvents": True})
    except (AwsError, NotFoundError):  # the change set's own reason is told then
        return []
    told = []
    for event in found.get("OperationEvents", ()):
        why = event.get("ValidationStatusReason") or event.get("ResourceStatusReason")
        if why:
            where = event.get("ValidationPath") or event.get("LogicalResourceId") or ""
            told.append(f"{where}: {why}" if where else str(why))
    return list(dict.fromkeys(told))


def _wait(client: Any, stack_id: str, seen: set[str], tell: Tell) -> None:
    """Report events that are not in `seen` until the stack rests; raise what failed first.

    The state is believed once an event of this operation was seen: at first it may be the old one.
    """
    first_failure, begun = "", False
    trusted = time.monotonic() + UNSEEN_SECONDS
    deadline, pause = time.monotonic() + STACK_SECONDS, 0.1
    while True:
        status = _status(client, stack_id)
        for event in _new_events(client, stack_id, seen):
            begun = True
            # When one resource fails, CloudFormation cancels the others: those are consequences.
            failed = event.status.endswith("FAILED") and "cancelled" not in event.reason
            if failed and not first_failure:
                first_failure = f"{event.resource} ({event.kind}): {event.reason}"
            tell(event)
        gone = status == "DELETE_COMPLETE"
        believed = begun or gone or time.monotonic() > trusted
        if believed and not status.endswith("IN_PROGRESS"):
            break
        if time.monotonic() > deadline:
            raise AwsError(f"the stack is {status} for {STACK_SECONDS / 60:g} minutes: see the "
                           "CloudFormation console")  # fmt: skip
        time.sleep(pause)
        pause = min(2 * pause, POLL_SECONDS)
    if status not in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "DELETE_COMPLETE"):
        raise AwsError(f"the stack ended as {status}: {first_failure or 'no reason was given'}")


def _status(client: Any, stack_id: str) -> str:
    try:
        with aws_errors():
            found = client.describe_stacks(StackName=stack_id)["Stacks"]
    except AwsError as error:
        if "does not exist" in str(error):
            return "DELETE_COMPLETE"
        raise
    return str(found[0]["StackStatus"]) if found else "DELETE_COMPLETE"


def _last_events(client: Any, stack_id: str) -> set[str]:
    """Ids of the newest events, by which later ones are known: clocks may differ."""
    try:
        with aws_errors():
            found = client.describe_stack_events(StackName=stack_id)["StackEvents"]
    except (AwsError, NotFoundError):  # there are none yet
        return set()
    return {entry["EventId"] for entry in found}


def _new_events(client: Any, stack_id: str, seen: set[str]) -> list[StackEvent]:
    """Events that were not seen yet, oldest first; newest pages first from AWS."""
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
    except (AwsError, NotFoundError):  # a deleted stack may have none
        return []
    return fresh[::-1]


def _event(entry: Fields, when: datetime) -> StackEvent:
    return StackEvent(
        _utc(when), entry.text("LogicalResourceId") or "", entry.text("ResourceType") or "",
        entry.text("ResourceStatus") or "", entry.text("ResourceStatusReason") or "",
    )  # fmt: skip


def _utc(when: datetime) -> datetime:
    return when if when.tzinfo else when.replace(tzinfo=UTC)
