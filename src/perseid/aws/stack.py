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
from perseid.plaintext import option

CHANGE_SET_SECONDS, LOOK_SECONDS = 300.0, 0.25
"""Longest wait for a change set, and the time between two polls, in seconds."""
TAG = "perseid:stack"
"""Tag of our stacks and of the bucket that we created; its value is the stack's name."""
DESCRIPTION = "perseid - "
"""Beginning of the template's description, which identifies a stack that has lost its tag."""
_UNCHANGED = ("didn't contain changes", "No updates are to be performed")


NEVER_MADE = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED")
"""States of a stack that cannot be updated; it must be deleted and created again."""


@dataclass(frozen=True)
class Description:
    """A stack as described by CloudFormation."""

    status: str
    """Status of the stack, e.g. ``UPDATE_COMPLETE``."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """None if the stack was never completely created."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Values of the template's parameters."""
    tags: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    """Description in the template."""
    arn: str = ""

    @classmethod
    def of(cls, answer: Fields) -> Description:
        """Create it from an entry of DescribeStacks."""
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
        """Whether the stack consists of nothing but a change set."""
        return self.status == "REVIEW_IN_PROGRESS"

    @property
    def lasting_parameters(self) -> Mapping[str, str]:
        """Values of the parameters; empty for a stack that was never completely created."""
        lasts = self.status == "CREATE_COMPLETE" or self.status.startswith(("UPDATE_", "IMPORT_"))
        return self.parameters if lasts else {}

    @property
    def lasting_tags(self) -> dict[str, str]:
        """Tags that an update keeps, such as those used for billing."""
        return {key: value for key, value in self.tags.items() if not key.startswith("aws:")}

    def is_ours(self, name: str) -> bool:
        """Whether the stack has the tag or the description of perseid's stacks."""
        return self.tags.get(TAG) == name or self.text.startswith(DESCRIPTION)

    def check_idle(self, name: str) -> None:
        """Raise `AwsError` while another operation is in progress, since CloudFormation accepts no
        second one."""
        if self.status.endswith("IN_PROGRESS") and not self.under_review:
            raise AwsError(
                f"the stack {name} is {self.status}: somebody is changing it; wait until that has "
                "ended"
            )

    def check_takes_update(self, name: str) -> None:
        """Raise `AwsError`, saying what to do, if the stack cannot be updated now."""
        self.check_idle(name)
        if self.status == "UPDATE_ROLLBACK_FAILED":
            raise AwsError(
                f"the stack {name} is {self.status}: run `aws cloudformation "
                f"continue-update-rollback --stack-name {name}`, and then this again"
            )


NOT_THERE = Description("")
"""Status of a stack that does not exist."""


def as_tags(values: Mapping[str, str], name: str) -> list[dict[str, str]]:
    """Convert tags to the form that AWS takes, with the tag that marks a stack of ours."""
    return [{"Key": key, "Value": value} for key, value in {**values, TAG: name}.items()]


def _pairs(answer: Fields, section: str, key: str, value: str) -> dict[str, str]:
    return {entry.text(key) or "": entry.text(value) or "" for entry in answer.rows(section)}


def describe(aws: Aws, name: str) -> Description | None:
    """Describe a stack; None if there is none."""
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
    """Describe a stack of perseid's; None if there is none.

    Raises
    ------
    BadInputError
        A stack with this name exists, but it is not one of perseid's.
    """
    found = describe(aws, name)
    # A stack that is only under review has no resources yet, and no tag.
    if found is None or found.under_review or found.is_ours(name):
        return found
    raise BadInputError(
        f"the stack {name} in {aws.region} is not perseid's: it has neither the tag {TAG} nor our "
        f"description; give another {option('stack')}"
    )


def outputs(aws: Aws, name: str) -> dict[str, str]:
    """The outputs of a stack.

    Raises
    ------
    NotFoundError
        The stack does not exist in this region.
    """
    stack = describe(aws, name)
    if stack is None or stack.under_review:
        raise NotFoundError(
            f"there is no stack {name} in {aws.region}: make it with `perseid aws deploy`, or give "
            f"{option('region')} or {option('stack')}"
        )
    return dict(stack.outputs)


def change(
    aws: Aws, name: str, body: str, values: Mapping[str, str], tell: Tell,
    confirm: Callable[[list[Change]], bool], tags: Mapping[str, str] | None = None,
) -> bool:  # fmt: skip
    """Create or update a stack according to the template; returns whether anything was changed.

    Parameters
    ----------
    body, values
        The template and its parameters.
    tell
        Called with each event while waiting.
    confirm
        Called with the changes first; if it returns False, nothing is done.
    tags
        Further tags; those that the stack has are kept.

    Raises
    ------
    AwsError
        The change failed, for the first reason that CloudFormation gave, or took too long.
    BadInputError
        The stack is not one of perseid's.
    """
    former = describe_ours(aws, name)
    (former or NOT_THERE).check_takes_update(name)
    if former is not None and former.status in NEVER_MADE:
        tell(f"the stack {name} could not be created before: its remains are removed first")
        delete(aws, name, tell)
        former = None
    # A stack under review exists in name only: its change set was never executed.
    fresh = former is None or former.under_review
    client = aws.client("cloudformation")
    with aws_errors():
        # A change set instead of a plain update shows the user beforehand what would be replaced.
        made = client.create_change_set(
            StackName=name,
            ChangeSetName=f"perseid-{int(time.time() * 1000)}",
            ChangeSetType="CREATE" if fresh else "UPDATE",
            TemplateBody=body,
            Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in values.items()],
            Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM"],
            Tags=as_tags((former.lasting_tags if former else {}) | dict(tags or {}), name),
        )
        # Policies refer to the stack by name.
        this = {"StackName": name, "ChangeSetName": made["Id"]}
        changes = _changes(client, this)
        if changes is None:
            client.delete_change_set(**this)
            return False
        if not _confirmed(client, this, lambda: confirm(changes), fresh=fresh):
            return False
        # Read before the change begins. Ids are used instead of times, as this machine's clock may
        # be wrong.
        seen = last_events(client, made["StackId"])
        client.execute_change_set(**this)
        wait(client, made["StackId"], seen, tell)
    return True


def _confirmed(
    client: Any, this: Mapping[str, str], confirm: Callable[[], bool], *, fresh: bool
) -> bool:
    """Ask the user. Unless the answer is yes, the change set is deleted, also after Ctrl-C."""
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
    """Delete the stack, which must be one of perseid's, and wait until it is gone."""
    stack = describe_ours(aws, name)
    if stack is None:
        return
    client = aws.client("cloudformation")
    with aws_errors():
        seen = last_events(client, stack.arn)
        client.delete_stack(StackName=name)
        wait(client, stack.arn, seen, tell)


def _changes(client: Any, this: Mapping[str, str]) -> list[Change] | None:
    """The changes that a change set would make, once CloudFormation knows them; None if there are
    none."""
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
    """Why a change set was refused: events of its validation name the resource and the property."""
    try:
        with aws_errors():
            found = client.describe_events(**this, Filters={"FailedEvents": True})
    except (AwsError, NotFoundError):  # the caller then reports the change set's own reason
        return []
    told = []
    for event in found.get("OperationEvents", ()):
        why = event.get("ValidationStatusReason") or event.get("ResourceStatusReason")
        if why:
            where = event.get("ValidationPath") or event.get("LogicalResourceId") or ""
            told.append(f"{where}: {why}" if where else str(why))
    return list(dict.fromkeys(told))
