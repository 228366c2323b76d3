"""Initialize, by how many ranks may run at once: kind of the children, their limit, gangs."""

from __future__ import annotations

from types import SimpleNamespace

import boto3
import ministack as doubles
import pytest

from perseid.aws.handlers.initialize import handler

PARTITIONS = 4


@pytest.fixture(scope="module")
def account():
    """A server whose account lets three functions run at once."""
    with (
        doubles.running(LAMBDA_ACCOUNT_CONCURRENCY="3") as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.env.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def data(account, put_survey):
    boto3.client("s3").create_bucket(Bucket="narrow")
    put_survey("s3://narrow/data", PARTITIONS)
    return "s3://narrow/data"


@pytest.fixture
def begin(data, monkeypatch, request):
    """Begin a run of the test's own; what the state machine is told."""
    monkeypatch.setenv("WORKER_TIMEOUT", "900")
    names = iter(range(9))

    def go(reserve=0, **keys):
        monkeypatch.setenv("RESERVED_CONCURRENCY", str(reserve))
        name = f"{abs(hash(request.node.name))}-{next(names)}"
        given = {"data": data, "results": f"s3://narrow/runs/{name}", "timeout": 60, **keys}
        if "resume" in keys:
            given = keys
        context = SimpleNamespace(aws_request_id="request")
        return handler({"input": given, "execution": name}, context)

    return go


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({}, "STANDARD"),  # four ranks, three at once: one may wait longer than EXPRESS may last
        ({"file_limit": 3}, "EXPRESS"),
        ({"workers": 2}, "EXPRESS"),  # the others wait as items, not as children
        ({"reserve": 2}, "EXPRESS"),
        ({"reserve": 2, "timeout": 900}, "STANDARD"),
    ],
)
def test_children_are_express_only_where_none_waits_for_its_turn(begin, keys, kind):
    assert begin(**keys)["children"] == kind


def test_where_the_account_does_not_say_children_can_wait(begin, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", "http://127.0.0.1:9")
    assert begin(file_limit=1)["children"] == "STANDARD"
    assert "account not known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "most"),
    [
        ({}, 3),  # what the account has left
        ({"reserve": 2}, 2),
        ({"reserve": 2, "workers": 1}, 1),
        ({"reserve": 2, "workers": 3}, 2),
        ({"workers": 2}, 2),
        ({"workers": 9}, 3),
    ],
)
def test_no_more_children_than_are_let_through(begin, keys, most):
    """Each that is refused costs a state transition."""
    assert begin(**keys)["max_concurrency"] == most


DIRECT = {"transport": "direct", "rendezvous_endpoint": "127.0.0.1"}


def test_a_gang_runs_at_once_or_not_at_all(begin):
    fits = begin(reserve=PARTITIONS, **DIRECT)
    assert (fits["max_concurrency"], fits["children"]) == (PARTITIONS, "STANDARD")
    refused = begin(reserve=3, **DIRECT)
    assert (refused["ok"], refused["error"]) == (False, "BadInputError")
    for words in (
        "4 ranks are to merge collectively",
        "only 3 workers may run at once",
        "--reserve 4",
    ):
        assert words in refused["message"]
    fewer = begin(reserve=3, world_size=3, **DIRECT)
    assert fewer["max_concurrency"] == 3
    poor = begin(**DIRECT)  # without a reserve the account's own limit counts
    assert (poor["ok"], poor["error"]) == (False, "BadInputError")
    for words in ("only 3 workers may run at once", "Service Quotas", "`world_size`"):
        assert words in poor["message"]
    assert begin(**{**DIRECT, "transport": "auto"})["max_concurrency"] == 3


def test_where_the_account_does_not_say_a_gang_begins(begin, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", "http://127.0.0.1:9")
    assert begin(**DIRECT)["max_concurrency"] == PARTITIONS


def test_a_gang_that_need_not_meet_does_without(begin):
    state = begin(reserve=3, **{**DIRECT, "transport": "auto"})
    assert (state["max_concurrency"], state["children"]) == (3, "EXPRESS")


def test_ranks_that_are_resumed_meet_nobody(begin):
    begun = begin(reserve=PARTITIONS, **DIRECT)
    again = begin(reserve=2, resume=begun["results_url"])
    assert (again["ranks"], again["max_concurrency"]) == (PARTITIONS, 2)


def test_scripts_that_talk_run_at_once_or_not_at_all(begin, data):
    """Standard children, as many as ranks: an EXPRESS one may run twice at once."""
    boto3.client("s3").put_object(Bucket="narrow", Key="code/run.py", Body=b"pass")
    script = {
        "bucket": "narrow", "data_bucket": "narrow", "data_prefix": "data", "script": "run.py",
        "S3_object_name": "code", "result_path": "runs/talk", "fmi_enabled": True,
    }  # fmt: skip
    refused = begin(reserve=3, data=None, results=None, **script)
    assert (refused["ok"], refused["error"]) == (False, "BadInputError")
    assert "4 ranks of this script talk to each other" in refused["message"]
    state = begin(reserve=9, data=None, results=None, workers=2, **script)
    assert (state["children"], state["max_concurrency"]) == ("STANDARD", 4)
