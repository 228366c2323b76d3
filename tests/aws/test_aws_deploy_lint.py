"""The template and the state machine under the linters, and rules of our own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import perseid.aws
from perseid.aws import policy, template
from perseid.aws.collect import GIVEN_UP
from perseid.aws.template import default_bucket

DATA = Path(perseid.aws.__file__).parent / "data"
ERRORS = Path(perseid.aws.__file__).parents[1] / "errors.py"


def run(*words, **options):
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(*words, **options):
    """Get a linter from its registry; where there is no way to it, the test is skipped."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, **options)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        pytest.skip(f"{words[-1]} cannot be installed here: {said[-1] if said else 'no reason'}")


def test_cfn_lint_finds_nothing():
    linter = Path(sys.executable).parent / "cfn-lint"
    assert run(linter, "--include-checks", "I", "--ignore-checks", "I3011", "I3042", "--",
               DATA / "template.yaml").strip() == ""  # fmt: skip


def machine():
    return json.loads(template.definition())


def test_both_maps_differ_in_their_kind_alone():
    states = machine()["States"]
    standard = json.dumps(states["WorkersStandard"])
    express = json.dumps(states["WorkersExpress"])
    for one, other in (("STANDARD", "EXPRESS"), ("standard", "express"), ("Standard", "Express")):
        standard = standard.replace(one, other)
    assert standard == express


def test_every_way_out_of_the_machine_is_caught_or_has_a_cause():
    states = machine()["States"]
    for name, state in states.items():
        if state["Type"] in ("Task", "Map"):
            assert any("States.ALL" in catch["ErrorEquals"] for catch in state["Catch"]), name
        if state["Type"] == "Fail":
            assert state.get("CausePath", "$.").startswith("$.")
            assert state.get("CausePath") or state["Cause"]
    work = states["WorkersStandard"]["ItemProcessor"]["States"]["WorkStandard"]
    assert states["WorkersStandard"]["ResultPath"] is None  # 256 KiB would be 800 ranks
    [throttled] = work["Retry"]
    assert "Lambda.TooManyRequestsException" in throttled["ErrorEquals"]
    final, again = work["Catch"]
    assert again["ErrorEquals"] == ["States.ALL"]
    assert (final["Next"], again["Next"]) == ("GiveUpStandard", "CountStandard")


def test_states_wait_longer_than_their_functions():
    """Lambda's own error of a time-out has a cause; that of the state has none."""
    text = (DATA / "template.yaml").read_text()
    for name in ("Initialize", "Summarize"):
        function = text.split(f"\n  {name}:\n")[1].split("\n\n")[0]
        limit = int(function.split("\n      Timeout: ")[1].split("\n")[0])
        assert machine()["States"][name]["TimeoutSeconds"] > limit, name


def test_errors_that_are_not_retried_are_errors_of_ours():
    states = machine()["States"]
    named = states["WorkersStandard"]["ItemProcessor"]["States"]["WorkStandard"]["Catch"][0]
    ours = ERRORS.read_text()
    for name in named["ErrorEquals"]:
        assert f"class {name}(" in ours, name
    assert set(named["ErrorEquals"]) == GIVEN_UP  # so they are billed


def test_long_names_fit_iam_too():
    name, region = "x" * 20, "ap-southeast-1"
    bucket = default_bucket(name, "1" * 12, region)
    made = policy.deployer(name, "1" * 12, region, bucket, "Z" * 21)
    assert len(json.dumps(made, separators=(",", ":"))) <= 6144


def test_policies_fit_iam_and_name_what_they_allow():
    for made in (
        policy.deployer("perseid", "123456789012", "eu-central-1", "bucket", "Z0123456789"),
        policy.runner("perseid", "123456789012", "eu-central-1", ["data"], ["results"], "Z012345"),
    ):
        [record] = [s["Resource"] for s in made["Statement"] if "route53" in s["Action"][0]]
        assert record[0].startswith("arn:aws:route53:::hostedzone/Z012345")
        size = len(json.dumps(made, separators=(",", ":")))
        assert size <= 6144, size  # a managed policy's limit
        for statement in made["Statement"]:
            wild = statement["Resource"] == ["*"] and "Condition" not in statement
            names = {action.partition(":")[2] for action in statement["Action"]}
            readers = ("Describe", "List", "Get")
            assert not wild or statement["Sid"] == "TaskDefinitions" or all(
                name.startswith(readers) for name in names
            ), statement["Sid"]  # fmt: skip


@pytest.mark.slow
def test_asl_validator_finds_nothing(tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine")
    install("npm", "install", "--loglevel=error", "--no-audit", "asl-validator@4.0.0", cwd=tmp_path)
    run("npx", "asl-validator", "--json-path", DATA / "statemachine.asl.json", cwd=tmp_path)


@pytest.mark.slow
def test_checkov_finds_nothing_but_what_is_listed(tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    pip = (tmp_path / "venv/bin/python", "-m", "pip", "install", "-q")
    install(*pip, "--disable-pip-version-check", "checkov==3.3.30")
    # By its name alone: checkov takes a path of 40 characters for the key of an AWS account.
    run(tmp_path / "venv/bin/checkov", "--config-file", Path(__file__).parent / "checkov.yaml",
        "-f", "template.yaml", cwd=DATA)  # fmt: skip
