"""Remove a stack and everything that deploying created beside it, and list what remains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perseid.aws import stack
from perseid.aws.deploy import service, template
from perseid.aws.handlers.service_address import TTL, ServiceNames
from perseid.aws.session import Aws, aws_errors
from perseid.aws.stack import TAG
from perseid.aws.stack_events import Tell
from perseid.errors import AwsError, NotFoundError


@dataclass(frozen=True)
class Remains:
    """Something that still exists after `destroy`, and why."""

    name: str
    """Name of the resource, e.g. ``s3://perseid-123456789012-eu-central-1``."""
    why: str


def destroy(aws: Aws, name: str, tell: Tell, *, delete_bucket: bool = False) -> list[Remains]:
    """Remove the stack, its DNS record, packages and secret. Data stays unless `delete_bucket` is
    set.

    If the stack no longer exists, what was left beside it is removed.

    Returns
    -------
    What remains, for the user to keep or remove.

    Raises
    ------
    NotFoundError
        The stack does not exist, and nothing is left of one.
    BadInputError
        The stack is not one of perseid's.
    """
    former = stack.describe_ours(aws, name)
    found = former or stack.NOT_THERE
    bucket = found.parameters.get("CodeBucket") or template.default_bucket(
        name, aws.account, aws.region
    )
    remains: list[Remains] = []
    found.check_idle(name)
    if former is not None:
        if "RendezvousCluster" in former.outputs:
            # Drained first, because the network cannot be deleted while a task has an address in
            # it.
            service.drain(aws, former.outputs, tell)
        stack.delete(aws, name, tell)
        remains += _forget_record(aws, former.outputs, tell)
    with aws_errors():
        secret = _delete_secret(aws.client("ssm"), name)
        cleared, left = _clear_bucket(aws, bucket, name, tell, delete_bucket)
    if former is None and not secret and not cleared:
        raise NotFoundError(
            f"there is no stack {name} in {aws.region}, and nothing was left of one"
        )
    return remains + left


def _delete_secret(ssm: Any, name: str) -> bool:
    """Delete the stack's secret; returns whether it existed."""
    try:
        ssm.delete_parameter(Name=template.secret_name(name))
    except ssm.exceptions.ParameterNotFound:
        return False
    return True


def _forget_record(aws: Aws, outputs: Mapping[str, str], tell: Tell) -> list[Remains]:
    """Delete the DNS record that the dns-updater wrote, because its address will soon belong to
    somebody else.

    This must follow the stack's deletion, because its function would write the record again. A
    record is taken for ours if it looks as the function writes it: one address, our time to live.
    """
    if not outputs.get("HostedZone") or "RendezvousCluster" not in outputs:
        return []
    here = service.names(outputs)
    left = Remains(f"DNS record {here.record}", f"in the hosted zone {here.zone}; delete it there")
    try:
        with aws_errors():
            client = aws.client("route53")
            record = _record(client, here)
            if record is None:
                return []
            if record.get("TTL") != TTL or len(record.get("ResourceRecords", ())) != 1:
                return [Remains(left.name, "it is not as perseid writes it, so it is not deleted")]
            change = {"Action": "DELETE", "ResourceRecordSet": record}
            client.change_resource_record_sets(
                HostedZoneId=here.zone, ChangeBatch={"Changes": [change]}
            )
    except (AwsError, NotFoundError) as error:
        # The stack is gone, so this cannot be tried again: report it instead.
        return [Remains(left.name, f"{left.why}: {error}")]
    tell(f"deleted the DNS record {here.record}")
    return []


def _record(client: Any, here: ServiceNames) -> dict[str, Any] | None:
    """The current A record; None if there is none."""
    answer = client.list_resource_record_sets(
        HostedZoneId=here.zone, StartRecordName=here.record, StartRecordType="A", MaxItems="1"
    )
    for entry in answer["ResourceRecordSets"]:
        if entry["Type"] == "A" and entry["Name"].rstrip(".") == here.record.rstrip("."):
            return dict(entry)
    return None


def _clear_bucket(
    aws: Aws, bucket: str, name: str, tell: Tell, delete_bucket: bool
) -> tuple[bool, list[Remains]]:
    """Remove the stack's objects; returns whether there were any, and what remains."""
    s3 = aws.client("s3")
    try:
        with aws_errors():
            s3.head_bucket(Bucket=bucket, **template.expected_owner(bucket, aws.account))
    except NotFoundError:
        return False, []
    # A bucket of the user's own is never deleted, whatever was asked for.
    ours = _tag(s3, bucket) == name
    whole = delete_bucket and ours
    removed = delete_below(s3, bucket, "" if whole else template.prefix(name) + "/")
    if whole:
        s3.delete_bucket(Bucket=bucket)
        tell(f"deleted the bucket {bucket} and all it held")
        return True, []
    why = "your data and results" if not ours else "made by deploy; holds your data and results"
    if delete_bucket:
        why = "not made by this stack, so it is not deleted"
    return removed, [Remains(f"s3://{bucket}", why)]


def delete_below(s3: Any, bucket: str, prefix: str) -> bool:
    """Delete all objects below a prefix; returns whether there were any."""
    found = False
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        keys = [{"Key": entry["Key"]} for entry in page.get("Contents", ())]
        if keys:
            found = True
            answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            # The call succeeds even if single objects could not be deleted.
            for error in answer.get("Errors", ()):
                raise AwsError(
                    f"s3://{bucket}/{error.get('Key')} cannot be deleted: {error.get('Message')} "
                    f"({error.get('Code')}); the stack is gone already, and what is left is this "
                    "bucket"
                )
    return found


def _tag(s3: Any, bucket: str) -> str:
    try:
        with aws_errors():
            tags = s3.get_bucket_tagging(Bucket=bucket)["TagSet"]
    except AwsError:  # the bucket has no such setting
        return ""
    return next((tag["Value"] for tag in tags if tag["Key"] == TAG), "")
