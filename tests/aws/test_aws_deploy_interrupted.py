"""Ctrl-C and lost sight at each moment of a deployment: what there is goes on, or nothing stays."""

from __future__ import annotations

import pytest
from botocore.exceptions import EndpointConnectionError
from small_stack import TEMPLATE

from perseid.aws import stack, stack_events
from perseid.aws.deploy.deployment import ensure_bucket
from perseid.errors import AwsError, RunInterruptedError


def put(aws, name, days=7, tell=lambda event: None, confirm=lambda changes: True):
    return stack.change(aws, name, TEMPLATE, {"Days": str(days)}, tell, confirm)


def interrupt(*_):
    raise KeyboardInterrupt


def test_ctrl_c_at_the_question_leaves_nothing(aws):
    with pytest.raises(KeyboardInterrupt):
        put(aws, "asked", confirm=interrupt)
    assert stack.describe(aws, "asked") is None
    assert put(aws, "asked")
    with pytest.raises(KeyboardInterrupt):
        put(aws, "asked", days=14, confirm=interrupt)
    client = aws.client("cloudformation")
    assert [s for s in client.list_change_sets(StackName="asked")["Summaries"]
            if s["ExecutionStatus"] == "AVAILABLE"] == []  # fmt: skip
    assert stack.describe(aws, "asked").parameters["Days"] == "7"


def test_ctrl_c_while_cloudformation_works_says_that_it_goes_on(aws):
    with pytest.raises(RunInterruptedError, match="CloudFormation goes on without this command"):
        put(aws, "waited", tell=interrupt)
    assert not put(aws, "waited")  # it is there, as asked
    with pytest.raises(RunInterruptedError, match="goes on"):
        stack.delete(aws, "waited", interrupt)
    stack.delete(aws, "waited", lambda event: None)  # and gone, or as good as gone
    assert stack.describe(aws, "waited") is None


def test_looks_that_fail_are_notes_while_cloudformation_works(aws, monkeypatch):
    client, told = aws.client("cloudformation"), []
    failing = 3

    def lose(**_):
        nonlocal failing
        failing -= 1
        if failing >= 0:
            raise EndpointConnectionError(endpoint_url="https://cloudformation")

    client.meta.events.register("before-call.cloudformation.DescribeStackEvents",
                                lambda **_: register())  # fmt: skip

    def register():
        client.meta.events.register("before-call.cloudformation.DescribeStacks", lose, "lose")

    assert put(aws, "unseen", tell=told.append)
    notes = [said for said in told if isinstance(said, str) and "progress cannot be read" in said]
    assert len(notes) == 1  # once, not at each look
    assert stack.describe(aws, "unseen").status == "CREATE_COMPLETE"
    failing = 10**6
    monkeypatch.setattr(stack_events, "PATIENCE_SECONDS", 0.3)
    former = stack.Description("CREATE_COMPLETE", text="perseid - of a test")
    monkeypatch.setattr(stack, "describe", lambda *_: former)
    with pytest.raises(AwsError, match=r"could not be asked.*CloudFormation goes on"):
        put(aws, "unseen", days=14)


def test_a_bucket_that_was_made_and_no_more_is_finished(aws):
    s3 = aws.client("s3")
    for bucket, key in (("half-made", None), ("somebodys", "data")):
        s3.create_bucket(Bucket=bucket)
        if key:
            s3.put_object(Bucket=bucket, Key=key, Body=b"x")
        ensure_bucket(aws, bucket, "mine", given=False, tell=lambda said: None)
    tags = s3.get_bucket_tagging(Bucket="half-made")["TagSet"]
    assert tags == [{"Key": "perseid:stack", "Value": "mine"}]
    assert all(s3.get_public_access_block(Bucket="half-made")[
        "PublicAccessBlockConfiguration"].values())  # fmt: skip
    with pytest.raises(s3.exceptions.ClientError, match="NoSuchTagSet"):
        s3.get_bucket_tagging(Bucket="somebodys")
