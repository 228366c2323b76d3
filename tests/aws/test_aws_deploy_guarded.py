"""Accounts where an organization or an earlier stack stands in the way of a deployment."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError
from small_stack import TEMPLATE

from perseid.aws import stack
from perseid.aws.deploy.deployment import ensure_bucket, tell_foreign_keys
from perseid.aws.deploy.prerequisites import check_log_groups
from perseid.aws.deploy.tags import tag_values
from perseid.aws.deploy.template import Options
from perseid.errors import AwsError, BadInputError


def test_a_log_group_that_is_there_before_its_stack_is_named(aws):
    check_log_groups(aws, "left")
    for name in ("/aws/lambda/left-worker-of-somebody", "/aws/lambda/left-worker"):
        aws.client("logs").create_log_group(logGroupName=name)
    with pytest.raises(BadInputError, match="log groups /aws/lambda/left-worker are there"):
        check_log_groups(aws, "left")


def test_tags_are_set_and_stay(aws):
    def put(days, tags):
        values = {"Days": str(days)}
        return stack.change(
            aws, "tagged", TEMPLATE, values, lambda event: None, lambda _: True, tags
        )

    assert put(7, tag_values(("Project=a=b", "Owner=me")))
    assert put(14, {"Owner": "you"})
    assert stack.describe(aws, "tagged").tags == {
        "Project": "a=b", "Owner": "you", "perseid:stack": "tagged"
    }  # fmt: skip
    ensure_bucket(aws, "tagged-too", "tagged", given=False, tell=lambda said: None,
                  tags={"Project": "a"})  # fmt: skip
    found = aws.client("s3").get_bucket_tagging(Bucket="tagged-too")["TagSet"]
    assert {"Key": "Project", "Value": "a"} in found
    assert {"Key": "perseid:stack", "Value": "tagged"} in found


def test_buckets_with_a_key_that_no_role_may_use_are_told_before_anything_is_made(aws):
    s3, told = aws.client("s3"), []
    key = "arn:aws:kms:us-east-1:000000000000:key/k"
    for bucket in ("locked", "plain"):
        s3.create_bucket(Bucket=bucket)
    rule = {
        "ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    }
    s3.put_bucket_encryption(Bucket="locked", ServerSideEncryptionConfiguration={"Rules": [rule]})
    options = Options(write_buckets=("locked/runs",), read_buckets=("plain", "nowhere"))
    tell_foreign_keys(aws, options, "not-made-yet", "", told.append)
    [said] = told
    assert f"locked is encrypted with the key {key}" in said
    assert "--kms-key" in said
    tell_foreign_keys(aws, options, "not-made-yet", key, told.append)
    assert told == [said]


@pytest.mark.parametrize(
    "tag", ["Project", "aws:x=1", "perseid:stack=other", "=x", "a" * 129 + "="]
)
def test_tags_that_cannot_be(tag):
    with pytest.raises(BadInputError, match="--tag"):
        Options(tags=(tag,))


def denied(call):
    error = {"Code": "AccessDenied", "Message": "with an explicit deny in a service control policy"}
    return ClientError({"Error": error}, call)


def test_an_organization_that_keeps_buckets_closed_is_no_obstacle(aws):
    """It denies buckets that do not state their ownership, and changes of what closes them."""
    s3 = aws.client("s3")

    def unstated(params, **_):
        if params.get("ObjectOwnership") != "BucketOwnerEnforced":
            raise denied("CreateBucket")

    def closing(**_):
        raise denied("PutPublicAccessBlock")

    events = s3.meta.events
    events.register("provide-client-params.s3.CreateBucket", unstated)
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.create_bucket(Bucket="guarded", ObjectOwnership="BucketOwnerEnforced")
    s3.put_public_access_block(
        Bucket="guarded", PublicAccessBlockConfiguration=dict.fromkeys(closed, True)
    )  # a new bucket of AWS has this, one of the double has not
    events.register("before-call.s3.PutPublicAccessBlock", closing)
    ensure_bucket(aws, "guarded", "mine", given=False, tell=lambda said: None)
    assert s3.get_bucket_tagging(Bucket="guarded")["TagSet"][0]["Value"] == "mine"
    # Where the bucket is not closed, the refusal stands.
    with pytest.raises((AwsError, ClientError), match="PublicAccessBlock"):
        ensure_bucket(aws, "open", "mine", given=False, tell=lambda said: None)
    assert s3.head_bucket(Bucket="open"), "its ownership was stated"
