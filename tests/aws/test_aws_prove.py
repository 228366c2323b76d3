"""A proof from beginning to end on both doubles: each line, its files, nobody named."""

from __future__ import annotations

import getpass
import json
import platform
import re
from pathlib import Path

import boto3
import pytest

from perseid.aws.deploy.template import secret_name
from perseid.aws.prove.budget import CAP_USD, Budget, FunctionPrice
from perseid.aws.prove.proof import LINES, anonymous
from perseid.aws.prove.prove import NAME, ProveSettings, _each
from perseid.aws.prove.survey_map import MapSize
from perseid.cli import main
from perseid.errors import BadInputError
from perseid.rendezvous import Config, EmbeddedServer

RANKS, ROWS = 5, 64
DOUBLES_PAGE = Path(__file__).parents[2] / "docs/reference/aws-doubles.md"
NOBODY = [
    r"arn:aws", r"\b\d{12}\b", r"\b\d{1,3}(\.\d{1,3}){3}\b", r"https?://\d", r"s3://", r"AKIA",
    r"/(root|home)/", r"/tmp/\w",
]  # fmt: skip
"""What no file that is mailed may hold."""


def prove(folder: Path, *words: str) -> dict[str, dict[str, object]]:
    """The lines that were found, by name."""
    secret = "5f" * 32
    boto3.client("ssm").put_parameter(Name=secret_name(NAME), Value=secret, Type="SecureString")
    config = Config(host="127.0.0.1", port=0, secret=secret.encode())
    with EmbeddedServer(config) as server:
        sizes = ["--ranks", str(RANKS), "--rows", str(ROWS), "--gang", "8"]
        where = ["--rendezvous", str(server.address), "--out", str(folder), *words]
        status = main(["aws", "prove", "--yes", *sizes, *where])
    found = json.loads((folder / "prove.json").read_text())
    print(json.dumps(found, indent=1))
    assert status == 3  # the rendezvous of the stack itself was not measured
    assert found["spent_usd_at_most"] < found["cap_usd"] == CAP_USD
    return {line["name"]: line for line in found["lines"]}


def check(folder: Path, lines: dict[str, dict[str, object]]) -> None:
    assert set(lines) == set(LINES) - {"gang-32"}
    states = {name: line["state"] for name, line in lines.items()}
    assert states == dict.fromkeys(states, "measured") | {"rendezvous": "skipped"}, lines
    for architecture in ("x86_64", "arm64"):
        said = lines[f"{architecture}.processor"]["values"]
        assert said["onnxruntime"]
        assert said["rows_per_second"] > 0
        starts = lines[f"{architecture}.start"]["values"]
        assert starts["cold_calls"] >= 1
        assert len(starts["warm_seconds"]) >= 1
    gang = lines["gang-8"]["values"]
    assert sum(gang["paths"].values()) == 8 * 7
    assert set(gang["allreduce_seconds"]) == {"8 bytes", "1048576 bytes"}
    mapped, bill = lines["map"]["values"], lines["bill"]["values"]
    assert (mapped["ranks"], mapped["received"], mapped["rows"]) == (RANKS, RANKS, RANKS * ROWS)
    assert bill["invocations"] == RANKS
    assert bill["billed_ms"] >= bill["duration_ms"]
    for name in ("prove.json", "prove.html"):
        text = (folder / name).read_text()
        # Where :root is not a person.
        text = re.sub("<style>.*?</style>", "", text, flags=re.DOTALL)
        for pattern in (*NOBODY, rf"\b{getpass.getuser()}\b", re.escape(platform.node())):
            assert not re.search(pattern, text), (name, pattern)
    found = boto3.client("cloudformation").list_stacks()["StackSummaries"]
    assert not [s for s in found if s["StackName"].startswith(NAME)
                and s["StackStatus"] != "DELETE_COMPLETE"]  # fmt: skip
    buckets = boto3.client("s3").list_buckets()["Buckets"]
    assert not [bucket for bucket in buckets if NAME in bucket["Name"]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_proof_on_ministack(ministack, tmp_path):
    check(tmp_path, prove(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_proof_on_moto(moto_unlimited, tmp_path):
    check(tmp_path, prove(tmp_path))


def test_nobody_is_named():
    said = anonymous(
        "User: arn:aws:iam::123456789012:user/ann is not authorized (ann, 123456789012) at "
        "10.0.0.7:443 and 2001:db8:0:0:1:2:3:4, https://x.y/z, subnet-0123456789abcdef0, "
        "ami-of-annabel, s3://anns-bucket/a, 1f0a9c3b-1111-2222-3333-444455556666",
        ["ann", "", "anns-bucket"],
    )
    assert said == (
        "User: ARN is not authorized (NAME, ACCOUNT) at ADDRESS and ADDRESS, URL ID, "
        "ami-of-annabel, URL ID"
    )


@pytest.mark.parametrize("cap", [0.05, 0.3, CAP_USD])
@pytest.mark.parametrize("memory", [1769, 3008, 10_240])
def test_no_map_begins_that_could_cost_more_than_the_cap(cap, memory):
    """If each rank took all of its time: either it fits, or it does not begin."""
    settings = ProveSettings(cap_usd=cap, memory_mb=memory)
    most = FunctionPrice(memory).calls(MapSize().ranks, settings.timeout)
    assert most <= cap or Budget(cap).lacks(most)
    if (cap, memory) == (CAP_USD, 1769):
        assert most < 0.65 * cap
        assert settings.timeout >= 30


def test_the_cap_is_kept():
    budget = Budget(0.5)
    assert not budget.lacks(0.4)
    assert budget.take(0.4, 0.1) == 0.1
    assert budget.take(0.3, None) == 0.3  # nobody knows: its bound
    assert "0.100 USD are left of the cap of 0.5 USD" in budget.lacks(0.2)
    assert budget.take(0.05, 7.0) == 0.05
    for cap in (0.0, -1.0, 1.0, float("nan")):
        with pytest.raises(BadInputError, match="the cap is"):
            Budget(cap)


def test_the_page_of_doubles_says_which_line_settles_what():
    text = DOUBLES_PAGE.read_text()
    assert {name for name in LINES if f"`{name}`" in text} == set(LINES)


def test_numbers_look_like_no_accounts():
    values = {"x": 0.123456789012, "of": {"y": (2.5, 1769), "z": "123456789012"}}
    assert json.dumps(_each(values, anonymous)) == (
        '{"x": 0.1234568, "of": {"y": [2.5, 1769], "z": "ACCOUNT"}}'
    )
