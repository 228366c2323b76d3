"""What doctor says of parts that are missing: each line names what helps."""

from __future__ import annotations

import pytest
from double import PYTHON

from perseid.aws.deploy.deployment import deploy
from perseid.aws.deploy.doctor import examine
from perseid.aws.deploy.template import Options
from perseid.cli import main

HELPS = "`perseid aws destroy` (data stays), then `perseid aws deploy`"


@pytest.fixture(scope="module")
def hurt(stack, packages_folder):
    """A stack whose parts somebody deletes; what doctor found before that was fine."""
    s3 = stack.aws.client("s3")
    for bucket in ("hurt-surveys", "hurt-more"):
        s3.create_bucket(Bucket=bucket)
    s3.create_bucket(
        Bucket="hurt-far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    done = deploy(
        stack.aws, Options(name="hurt", rendezvous=True,
                           read_buckets=("hurt-far", "hurt-surveys", "hurt-more")),
        packages_folder, lambda event: None, lambda changes: True, compression=1,
        interpreter=PYTHON,
    )  # fmt: skip
    return stack.aws, dict(done.outputs)


def findings(aws):
    return {check.name: (check.state, check.text) for check in examine(aws, "hurt")}


def test_every_bucket_is_looked_at(hurt):
    aws, _ = hurt
    state, said = findings(aws)["buckets"]
    assert (state, said.count(";")) == ("note", 0)
    assert "hurt-far is in eu-west-1" in said
    for bucket in ("hurt-surveys", "hurt-more"):
        aws.client("s3").delete_bucket(Bucket=bucket)
    state, said = findings(aws)["buckets"]
    assert state == "bad"
    for bucket in ("hurt-surveys", "hurt-more"):
        assert f"{bucket} is gone: make it again" in said
    assert "`perseid aws deploy --data-bucket`" in said
    assert "hurt-far is in eu-west-1" in said


def test_a_part_that_is_gone_is_made_again_by_destroy_and_deploy(hurt):
    aws, outputs = hurt
    aws.client("lambda").delete_function(FunctionName=outputs["SummarizeFunction"])
    aws.client("stepfunctions").delete_state_machine(stateMachineArn=outputs["StateMachineArn"])
    where = {"cluster": outputs["RendezvousCluster"], "service": outputs["RendezvousService"]}
    aws.client("ecs").delete_service(**where, force=True)
    found = findings(aws)
    for name in ("roles", "state machine", "rendezvous"):
        state, said = found[name]
        assert state == "bad", found[name]
        assert HELPS in said, name
    assert "hurt-rendezvous is gone" in found["rendezvous"][1]


def test_a_service_that_is_gone_is_not_started(hurt, capsys):
    assert main(["aws", "rendezvous", "start", "--stack", "hurt", "--wait", "5"]) == 2
    assert "the service hurt-rendezvous is gone" in capsys.readouterr().err


def test_what_helps_does(hurt, packages_folder, capsys):
    aws, _ = hurt
    words = ["--stack", "hurt", "--yes"]
    assert main(["aws", "destroy", *words, "--delete-bucket"]) == 0
    options = Options(name="hurt", rendezvous=True)
    deploy(
        aws, options, packages_folder, lambda event: None, lambda changes: True, compression=1,
        interpreter=PYTHON,
    )  # fmt: skip
    found = findings(aws)
    assert {found[name][0] for name in ("stack", "buckets", "roles", "state machine")} == {"ok"}
    assert found["rendezvous"][0] == "skip"
    assert main(["aws", "destroy", *words, "--delete-bucket"]) == 0


def test_without_a_region_there_is_a_line_that_says_so(monkeypatch, tmp_path, capsys):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert main(["aws", "doctor"]) == 1
    assert "no AWS region is set: give --region" in capsys.readouterr().out
