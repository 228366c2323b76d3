"""Prerequisites of creating or changing a stack, checked before anything is changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from perseid.aws.deploy.template import Options, log_groups
from perseid.aws.handlers.service_address import TTL
from perseid.aws.session import Aws, aws_errors, error_code
from perseid.errors import AwsError, BadInputError, NotFoundError

ECS = "ecs.amazonaws.com"
ECS_ROLE = "AWSServiceRoleForECS"
"""Service-linked role with which ECS acts in an account
(https://docs.aws.amazon.com/AmazonECS/latest/developerguide/using-service-linked-roles.html)."""
ROLE_SECONDS = 60.0
"""Longest wait, in seconds, until a new role is visible everywhere."""
POLL_SECONDS = 2.0


def ensure_ecs_role(aws: Aws, tell: Callable[[str], None], seconds: float = ROLE_SECONDS) -> None:
    """Create ECS's service-linked role if the account has none, and wait until it is visible.

    ECS creates this role together with an account's first cluster, which then fails because the
    role is not visible everywhere yet. If the user may not create the role, a note says so, since
    it may already exist.
    """
    iam = aws.client("iam")
    try:
        with aws_errors():
            # Trying to create it is the test, because listing roles takes rights that many users
            # lack.
            iam.create_service_linked_role(AWSServiceName=ECS)
    except AwsError as error:
        if error_code(error) != "InvalidInput":  # this error says that the role exists
            tell(f"whether ECS has its role {ECS_ROLE} is not known: {error}")
        return
    tell(f"made ECS's own role {ECS_ROLE}: this account never had a cluster")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with aws_errors():
                iam.get_role(RoleName=ECS_ROLE)
        except (AwsError, NotFoundError):
            time.sleep(POLL_SECONDS)
            continue
        time.sleep(POLL_SECONDS)  # ECS sees the role a little later than IAM
        return


def check_cluster(aws: Aws, cluster: str) -> None:
    """Raise `BadInputError` unless the ECS cluster exists and accepts services."""
    try:
        with aws_errors():
            found = aws.client("ecs").describe_clusters(clusters=[cluster])["clusters"]
    except NotFoundError:
        found = []
    state = str(found[0]["status"]) if found else "not there"
    if state != "ACTIVE":
        raise BadInputError(
            f"the ECS cluster {cluster} is {state} in {aws.region}: give another --cluster, or "
            "leave it out to have one made"
        )


def check_zone(aws: Aws, zone: str, record: str) -> None:
    """Raise `BadInputError` unless the record can be ours: the zone is public and contains the
    name, which is free.

    A record that looks as the dns-updater writes it (one address, its time to live) is taken for
    ours.
    """
    client = aws.client("route53")
    try:
        with aws_errors():
            found = client.get_hosted_zone(Id=zone)["HostedZone"]
    except (AwsError, NotFoundError) as error:
        raise BadInputError(f"the hosted zone {zone} cannot be used: {error}") from error
    name = str(found["Name"]).rstrip(".")
    if found.get("Config", {}).get("PrivateZone"):
        raise BadInputError(
            f"the hosted zone {zone} ({name}) is private, and functions ask the public DNS: give "
            "the public zone, or leave --zone and --record out"
        )
    if record.rstrip(".") != name and not record.rstrip(".").endswith(f".{name}"):
        raise BadInputError(f"--record {record} is not a name in the zone {zone}, which is {name}")
    with aws_errors():
        answer = client.list_resource_record_sets(
            HostedZoneId=zone, StartRecordName=record, MaxItems="10"
        )
    for entry in answer["ResourceRecordSets"]:
        if entry["Name"].rstrip(".") == record.rstrip(".") and not _may_be_ours(entry):
            raise BadInputError(
                f"{record} has a {entry['Type']} record already, which perseid did not write: give "
                "another --record, or delete that one"
            )


def _may_be_ours(entry: dict[str, Any]) -> bool:
    # Records of other types do not affect the address.
    if entry["Type"] not in ("A", "AAAA", "CNAME"):
        return True
    values = entry.get("ResourceRecords", ())
    return entry["Type"] == "A" and entry.get("TTL") == TTL and len(values) == 1


def check_image(options: Options, previous: Mapping[str, str]) -> None:
    """Raise `BadInputError` if the worker would change between zip and image.

    A function cannot change its form, and CloudFormation cannot create a second one of the same
    name.
    """
    if options.worker_image is None or not previous:
        return
    if bool(options.worker_image) != bool(previous.get("WorkerImage")):
        raise BadInputError(
            f"the stack {options.name} has its worker in the other form, and a function cannot "
            "change between zip and image: `perseid aws destroy` (data stays), then deploy it again"
        )


def check_log_groups(aws: Aws, name: str) -> None:
    """Raise `BadInputError` if a log group of the stack exists before the stack does.

    CloudFormation cannot create a log group that already exists. One can be left over if a function
    was allowed to create it again while the stack was being deleted, as with the user's own role.
    """
    left = [group for group in log_groups(name) if _is_log_group(aws, group)]
    if left:
        raise BadInputError(
            f"there is no stack {name}, but its log groups {', '.join(left)} are there, and "
            "CloudFormation does not take over what exists: delete them (`aws logs "
            f"delete-log-group --log-group-name {left[0]}`), or give another --stack"
        )


def _is_log_group(aws: Aws, group: str) -> bool:
    try:
        with aws_errors():
            found = aws.client("logs").describe_log_groups(logGroupNamePrefix=group)["logGroups"]
    except (AwsError, NotFoundError):  # CloudFormation will report an existing group later
        return False
    return any(entry["logGroupName"] == group for entry in found)


def check_results_buckets(aws: Aws, options: Options) -> None:
    """Raise `BadInputError` if results would go to another region.

    Step Functions reads a run's items from the results, and only from a bucket in its own region
    (https://docs.aws.amazon.com/step-functions/latest/dg/input-output-itemreader.html).
    """
    for place in options.write_buckets or ():
        bucket = place.partition("/")[0]
        try:
            with aws_errors():
                where = aws.client("s3").head_bucket(Bucket=bucket).get("BucketRegion")
        except (AwsError, NotFoundError):
            # CloudFormation accepts such a bucket; `doctor` reports it.
            continue
        check_region(bucket, where, aws.region)


def check_region(bucket: str, where: str | None, region: str) -> None:
    """Raise `BadInputError` if a bucket is in another region; CloudFormation would notice only at
    the end."""
    if where not in (None, region):
        raise BadInputError(
            f"the bucket {bucket} is in {where}, but functions in {region} take packages and begin "
            f"runs in a bucket there: give another bucket, or --region {where}"
        )
