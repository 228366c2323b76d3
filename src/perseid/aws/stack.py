"""The CloudFormation stack: change sets, outputs, deletion."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from perseid.aws.session import Aws, aws_errors, error_code
from perseid.aws.stack_events import Change, Tell, last_events, wait
from perseid.errors import AwsError, BadInputError, NotFoundError
from perseid.measure.fields import Fields

CHANGE_SET_SECONDS, LOOK_SECONDS = 300.0, 0.25
"""Longest wait for a change set, and between two looks at it."""
TAG = "perseid:stack"
"""On our stacks, and on the bucket that we made; its value is the stack's name."""
DESCRIPTION = "perseid - "
"""How the template's description begins: the mark of a stack that lost its tag."""
_UNCHANGED = ("didn't contain changes", "No updates are to be performed")


NEVER_MADE = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED")
"""States of a stack that takes no update; it can be deleted and made again."""


@dataclass(frozen=True)
class Description:
    """A stack as CloudFormation describes it."""

    status: str
    """E.g. ``UPDATE_COMPLETE``."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """None if it never was made whole."""
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
    """The stack, or None if there is none."""
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
    """The stack, or None if there is none.

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
        if not _confirmed(client, this, lambda: confirm(changes), fresh=fresh):
            return False
        # Before the change begins. By id rather than by time, for this machine's clock may be
        # wrong.
        seen = last_events(client, made["StackId"])
        client.execute_change_set(**this)
        wait(client, made["StackId"], seen, tell)
    return True


def _confirmed(
    client: Any, this: Mapping[str, str], confirm: Callable[[], bool], *, fresh: bool
) -> bool:
    """What the user says; but for a yes nothing is left of the change set, Ctrl-C included."""
    agreed = False
    try:
        agreed = confirm()
    finally:
        if not agreed:
            client.delete_change_set(**this)
            if fresh:
                client.delete_stack(StackName=this["StackName"])
    return agreed


def delete(aws: Aws, name: str, tell: Tell) -> None:
    """Delete the stack, which must be ours, and wait until it is gone."""
    stack = describe_ours(aws, name)
    if stack is None:
        return
    client = aws.client("cloudformation")
    with aws_errors():
        seen = last_events(client, stack.arn)
        client.delete_stack(StackName=name)
        wait(client, stack.arn, seen, tell)


def _changes(client: Any, this: Mapping[str, str]) -> list[Change] | None:
    """What a change set would do, once CloudFormation knows; None if nothing."""
    deadline = time.monotonic() + CHANGE_SET_SECONDS
    while True:
        found = client.describe_change_set(**this)
        if found["Status"] in ("CREATE_COMPLETE", "FAILED"):
            break
        if time.monotonic() > deadline:
            raise AwsError(f"the change set is {found['Status']} for {CHANGE_SET_SECONDS:g} s")
        time.sleep(LOOK_SECONDS)
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
