"""Deploy perseid: from this package to a running stack."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perseid.aws import stack
from perseid.aws.deploy import policy, template
from perseid.aws.deploy.doctor import foreign_key
from perseid.aws.deploy.packaging import Package, build
from perseid.aws.deploy.prerequisites import (
    check_cluster,
    check_image,
    check_log_groups,
    check_region,
    check_results_buckets,
    check_zone,
    ensure_ecs_role,
)
from perseid.aws.deploy.tags import tag_values
from perseid.aws.deploy.template import Options
from perseid.aws.session import Aws, aws_errors, error_code
from perseid.aws.stack import as_tags
from perseid.aws.stack_events import Change, Tell
from perseid.errors import AwsError, NotFoundError


@dataclass(frozen=True)
class Deployed:
    """Outputs of the deployed stack, and its packages."""

    outputs: Mapping[str, str]
    changed: bool
    packages: Mapping[str, Package]


def deploy(
    aws: Aws,
    options: Options,
    folder: Path,
    tell: Tell,
    confirm: Callable[[list[Change]], bool],
    **packaging: Any,
) -> Deployed:
    """Build the packages, upload them, and create or update the stack.

    Parameters
    ----------
    folder
        Folder in which the zips are built.
    tell
        Called with sentences and the stack's events.
    confirm
        Called with the changes before any is made; returns whether to make them.
    packaging
        Further arguments for `perseid.aws.deploy.packaging.build`.

    Raises
    ------
    BadInputError
        A package is too large, an option is not usable, or the stack is not one of perseid's.
    AwsError
        AWS refuses the deployment; what existed before is unchanged.
    """
    aws.check_partition()
    former = stack.describe_ours(aws, options.name)
    (former or stack.NOT_THERE).check_takes_update(options.name)
    previous = (former or stack.NOT_THERE).lasting_parameters
    check_image(options, previous)
    if former is None:
        check_log_groups(aws, options.name)
    _check(aws, options, template.wants_rendezvous(options, previous), tell)
    bucket = options.bucket or previous.get("CodeBucket")
    bucket = bucket or template.default_bucket(options.name, aws.account, aws.region)
    key = previous.get("KmsKey", "") if options.kms_key is None else options.kms_key
    tell_foreign_keys(aws, options, bucket, key, tell)
    target = options.target(previous)
    tell(f"packaging for {target.runtime} on {target.architecture}")
    packages = build(folder, target, **packaging)
    with aws_errors():
        ensure_bucket(
            aws,
            bucket,
            options.name,
            given=options.bucket is not None,
            tell=tell,
            tags=tag_values(options.tags),
        )
        # Not part of the template, because CloudFormation cannot create a SecureString.
        ensure_secret(aws, options.name)
        upload(aws, bucket, options.name, packages, tell, kms_key=key)
    # The template sets the number of tasks, so without this an update would stop the rendezvous.
    running = _wanted_tasks(aws, options.name, previous) if former is not None else 0
    values = template.parameters(options, packages, target, bucket, previous, running)
    changed = stack.change(
        aws, options.name, template.template(), values, tell, confirm, tag_values(options.tags)
    )
    return Deployed(
        stack.outputs(aws, options.name) if changed or former else {}, changed, packages
    )


def _check(aws: Aws, options: Options, rendezvous: bool, tell: Tell) -> None:
    check_results_buckets(aws, options)
    if options.zone and options.record:
        check_zone(aws, options.zone.rpartition("/")[2], options.record)
    if options.architecture == "arm64":
        tell("arm64 is experimental: nobody has run onnxruntime on such functions for perseid yet")
    if options.cluster:
        check_cluster(aws, options.cluster)
    elif rendezvous:
        ensure_ecs_role(aws, tell)


def tell_foreign_keys(aws: Aws, options: Options, bucket: str, key: str, tell: Tell) -> None:
    """Report which of the user's buckets are encrypted with a customer-managed key, unless a `key`
    was given."""
    if options.role:
        return  # the permissions of the user's own role are unknown
    places = (bucket, *(options.write_buckets or ()), *(options.read_buckets or ()))
    for name in dict.fromkeys(place.partition("/")[0] for place in places):
        if said := foreign_key(aws, name, key):
            tell(said)


def dry_run(
    options: Options, folder: Path, packages_folder: Path, account: str, region: str,
    **packaging: Any,
) -> dict[str, Package]:  # fmt: skip
    """Write everything that would be deployed to `folder`, without calling AWS; returns the
    packages."""
    target = options.target({})
    packages = build(packages_folder, target, **packaging)
    folder.mkdir(parents=True, exist_ok=True)
    bucket = options.bucket or template.default_bucket(options.name, account, region)
    values = template.parameters(options, packages, target, bucket, {})
    texts = {
        "template.yaml": template.template(),
        "statemachine.asl.json": template.definition(),
        "parameters.json": template.as_json(values),
        "policy-deploy.json": policy.text(
            policy.deployer(options.name, account, region, bucket, _names(values["ReadBuckets"]),
                            role=options.role or "", boundary=options.boundary or "")
        ),
        "policy-deploy-rendezvous.json": policy.text(
            policy.rendezvous_deployer(
                options.name, account, region, options.zone or "", cluster=options.cluster or ""
            )
        ),
        "policy-run.json": policy.text(
            policy.runner(options.name, account, region, _names(values["ReadBuckets"]),
                          _names(values["WriteObjects"]), options.zone or "",
                          cluster=options.cluster or "")
        ),
    }  # fmt: skip
    for package in packages.values():
        lines = [f"{size:>10}  {name}" for name, size in package.entries.items()]
        texts[f"{package.name}.zip.txt"] = "\n".join([*lines, ""])
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return packages


def ensure_bucket(
    aws: Aws, bucket: str, name: str, *, given: bool, tell: Tell,
    tags: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """The bucket for the packages: the user's, or one that is created, private and encrypted."""
    s3 = aws.client("s3")
    try:
        with aws_errors():
            found = s3.head_bucket(Bucket=bucket, **template.expected_owner(bucket, aws.account))
        check_region(bucket, found.get("BucketRegion"), aws.region)
        if not given:
            _finish_bucket(s3, bucket, as_tags(tags or {}, name))
        return
    except NotFoundError:
        if given:
            raise NotFoundError(
                f"there is no bucket {bucket}: make it, or leave --bucket out"
            ) from None
    except AwsError as error:
        raise AwsError(
            f"the bucket {bucket} is there but cannot be used: {error}; where it is another "
            "account's, give another --bucket"
        ) from error
    tell(f"making the bucket {bucket}")
    where = {} if aws.region == "us-east-1" else {
        "CreateBucketConfiguration": {"LocationConstraint": aws.region}
    }  # fmt: skip
    _create_bucket(s3, {"Bucket": bucket, **where})
    _close_and_tag(s3, bucket, as_tags(tags or {}, name))


def _create_bucket(s3: Any, bucket: Mapping[str, object]) -> None:
    try:
        with aws_errors():
            s3.create_bucket(**bucket)
    except AwsError as error:
        if error_code(error) != "AccessDenied":
            raise
        # Some organizations refuse a bucket unless the request states that its owner owns all
        # objects. New buckets have that setting anyway, but stating it needs a permission of its
        # own, so it is stated only after such a refusal.
        s3.create_bucket(**bucket, ObjectOwnership="BucketOwnerEnforced")


def _finish_bucket(s3: Any, bucket: str, tags: list[dict[str, str]]) -> None:
    """Set a new bucket's options, also for an empty bucket of an interrupted deployment."""
    try:
        with aws_errors():
            s3.get_bucket_tagging(Bucket=bucket)
    except (AwsError, NotFoundError):
        if not s3.list_objects_v2(Bucket=bucket, MaxKeys=1).get("KeyCount"):
            _close_and_tag(s3, bucket, tags)


def _close_and_tag(s3: Any, bucket: str, tags: list[dict[str, str]]) -> None:
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    try:
        with aws_errors():
            s3.put_public_access_block(
                Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(closed, True)
            )
    except AwsError:
        # Some organizations deny this call so that nobody can make a bucket public. New buckets
        # are not public, so it is enough to check that this one is not.
        found = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
        if not all(found.get(name) for name in closed):
            raise
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": tags})


def ensure_secret(aws: Aws, name: str) -> None:
    """Create the secret from which job keys are derived, if missing; it is never shown and never
    replaced."""
    ssm = aws.client("ssm")
    try:
        # Without Overwrite: replacing the secret would lock out workers that hold keys derived from
        # it.
        ssm.put_parameter(
            Name=template.secret_name(name), Value=template.new_secret(), Type="SecureString",
            Description="perseid: job keys of the rendezvous are derived from it",
        )  # fmt: skip
    except ssm.exceptions.ParameterAlreadyExists:
        return


def upload(
    aws: Aws,
    bucket: str,
    name: str,
    packages: Mapping[str, Package],
    tell: Tell,
    *,
    kms_key: str = "",
) -> None:
    """Upload the packages and the definition to the bucket, unless they are already there."""
    # A bucket's policy may refuse uploads that do not say how to encrypt them.
    how = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
    s3, below = aws.client("s3"), template.prefix(name)
    for package in packages.values():
        key = f"{below}/{package.key}"
        if not _is_there(s3, bucket, key):
            tell(f"uploading {package.name}.zip, {package.zipped / 1e6:.1f} MB")
            with package.path.open("rb") as body:
                s3.put_object(Bucket=bucket, Key=key, Body=body, **how)
    s3.put_object(
        Bucket=bucket, Key=f"{below}/{template.definition_key()}",
        Body=template.definition().encode(), ContentType="application/json", **how,
    )  # fmt: skip


def _is_there(s3: Any, bucket: str, key: str) -> bool:
    try:
        with aws_errors():
            s3.head_object(Bucket=bucket, Key=key)
    except NotFoundError:
        return False
    return True


def _wanted_tasks(aws: Aws, name: str, previous: Mapping[str, str]) -> int:
    """Desired number of rendezvous tasks, so that a deployment does not stop a task that an
    operator started."""
    try:
        with aws_errors():
            found = aws.client("ecs").describe_services(
                cluster=previous.get("ExistingCluster") or name, services=[f"{name}-rendezvous"]
            )
    except (AwsError, NotFoundError):
        return 0
    return max((int(entry["desiredCount"]) for entry in found["services"]), default=0)


def _names(arns: str) -> list[str]:
    return [arn.removesuffix("/*").rpartition(":")[2] for arn in arns.split(",")]


def to_json(deployed: Deployed) -> str:
    """Outputs and packages, for the option ``--json``."""
    packages = {
        p.name: {"zipped": p.zipped, "unzipped": p.unzipped} for p in deployed.packages.values()
    }
    plain = {"changed": deployed.changed, "outputs": dict(deployed.outputs), "packages": packages}
    return json.dumps(plain, indent=1)
