"""``perseid status`` and ``logs`` of runs that are not there, or are of another kind."""

from __future__ import annotations

import os

import pytest

from perseid.cli import main

UNSET = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL")


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """A machine that knows no region of AWS, in an empty folder."""
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", [("status",), ("logs",), ("logs", "--follow"),
                                     ("status", "--wait")])  # fmt: skip
def test_a_name_that_is_no_run(nowhere, capsys, command):
    assert main([command[0], "first", *command[1:]]) == 2
    said = capsys.readouterr().err
    assert f"there is no run first on this machine (no {nowhere}/first/manifest.json)" in said
    assert "name a run on AWS by its s3:// URL, its id or an execution's ARN" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("command", ["status", "logs"])
def test_a_path_that_is_no_run(nowhere, capsys, command):
    assert main([command, "runs/first"]) == 2
    said = capsys.readouterr().err
    assert f"there is no run at {nowhere}/runs/first" in said
    assert "region" not in said


@pytest.mark.parametrize("command", ["status", "logs"])
def test_a_run_on_aws_needs_a_region(capsys, command):
    arn = "arn:aws:states:eu-central-1:123456789012:execution:perseid-run:one"
    assert main([command, arn]) == 2
    assert "no AWS region is set: give --region, or set AWS_REGION" in capsys.readouterr().err
